"""experiments.reproduce: cells survive interruptions, verdicts are right, small tables run."""

import json
import math

import numpy as np
import pytest

from configs.doom import objective as doom
from experiments import frozen, networks, reproduce, setup, tables
from experiments.tables import bench, objectives, pictures, videos
from experiments.tables.scm_vs_dcm import updates_to
from experiments.tables.table import Claim, Column, Table, fill, interval, judge, results_of
from vidstep.losses import OBJECTIVES

pytestmark = pytest.mark.usefixtures("unoptimized")


def fake(filled, rows=None, stop_after=None):
  """A table whose cells are numbers made at once; `filled` lists what was trained."""

  def one(recipe, seed):
    if len(filled) == stop_after:
      raise KeyboardInterrupt
    filled.append((recipe["x"], seed))
    return {"y": recipe["x"] + 0.01 * seed, "curve": [seed, recipe["x"]]}

  return Table(
    name="fake",
    title="A fake table",
    rows=rows or {"one": {"x": 1.0}, "two": {"x": 2.0}},
    fill=one,
    columns=(Column("y", "y"), Column("no such metric", "z")),
    claims=lambda r: [
      Claim("two - one is 1", "arithmetic", lambda r: r["two"]["y"] - r["one"]["y"], 0.9, 1.1),
      Claim("two / one is 10", "a wrong claim", lambda r: r["two"]["y"] / r["one"]["y"], low=10),
    ],
    notes="Notes.",
    paper="Paper: 10x.",
    draw=lambda r, path: pictures.bars([{k: v["y"] for k, v in r.items()}], path, panels=("y",),
                                       ylabels=("y",)),
  )  # fmt: skip


# ------------------------------------------------------------------------------------------------
# Cells
# ------------------------------------------------------------------------------------------------


def test_an_interrupted_table_goes_on_where_it_stopped(tmp_path):
  filled = []
  with pytest.raises(KeyboardInterrupt):
    fill(fake(filled, stop_after=2), tmp_path, 2)
  assert filled == [(1.0, 0), (1.0, 1)]
  assert len(list(tmp_path.rglob("*.json"))) == 2
  cells = fill(fake(filled), tmp_path, 2)
  assert filled[2:] == [(2.0, 0), (2.0, 1)]  # those that were done are not trained again
  assert results_of(cells)["two"]["y"].tolist() == [2.0, 2.01]
  fill(fake(filled), tmp_path, 3)
  assert filled[4:] == [(1.0, 2), (2.0, 2)]  # more seeds: the new ones
  assert not list(tmp_path.rglob("*.partial"))


def test_a_changed_recipe_is_trained_anew_and_others_are_not(tmp_path):
  filled = []
  fill(fake(filled), tmp_path, 2)
  changed = {"one": {"x": 1.0}, "two": {"x": 3.0}}
  cells = fill(fake(filled, changed), tmp_path, 2)
  assert filled[4:] == [(3.0, 0), (3.0, 1)]
  assert results_of(cells)["two"]["y"].tolist() == [3.0, 3.01]


def test_a_cell_says_what_it_was_made_of(tmp_path):
  (first, _), _ = fill(fake([]), tmp_path, 2).values()
  assert first["recipe"] == {"x": 1.0} and first["seed"] == 0 and first["row"] == "one"
  assert {"device", "date", "seconds"} < set(first)


def test_what_does_not_exist_is_one_sentence(tmp_path):
  with pytest.raises(ValueError, match=r"no table 'objective': there are objectives, "):
    tables.make("objective")
  with pytest.raises(ValueError, match=r"fake has no row 'three': there are one, two"):
    fill(fake([]), tmp_path, 2, ["three"])
  with pytest.raises(ValueError, match="at least 1 seed"):
    fill(fake([]), tmp_path, 0)
  with pytest.raises(ValueError, match="recipe has no looksl"):
    bench.student("mixture", None, steps=1, rates={}, looksl=1)
  with pytest.raises(ValueError, match="there are gaussian and mixture"):
    videos.video("waves")


# ------------------------------------------------------------------------------------------------
# Verdicts
# ------------------------------------------------------------------------------------------------


def test_the_interval_is_students():
  mean, low, high = interval([1.0, 2.0, 3.0, 4.0, 5.0])
  half = 2.776445 * math.sqrt(2.5) / math.sqrt(5)  # t table, 4 degrees of freedom
  np.testing.assert_allclose([mean, low, high], [3, 3 - half, 3 + half], rtol=1e-6)
  assert interval([1.0]) == (1.0, -math.inf, math.inf)


@pytest.mark.parametrize(
  ("values", "low", "high", "verdict"),
  [
    ([1.0, 1.1, 0.9], 0.5, 1.5, "reproduced"),  # all of 1 +- 0.25
    ([1.0, 1.1, 0.9], 0.9, 1.5, "inconclusive"),  # across the lower end
    ([1.0, 1.1, 0.9], -math.inf, 0.95, "inconclusive"),
    ([1.0, 1.1, 0.9], 2.0, math.inf, "not reproduced"),
    ([1.0, 1.1, 0.9], -math.inf, 0.5, "not reproduced"),
    ([1.0], 0.5, 1.5, "inconclusive"),  # one seed shows nothing
    ([1.0, math.nan, 1.0], 0.5, 1.5, "not reproduced"),
    ([1.0, math.inf], 0.5, math.inf, "not reproduced"),
  ],
)
def test_a_claim_holds_if_the_whole_interval_does(values, low, high, verdict):
  assert judge(Claim("", "", lambda r: values, low, high), {}).verdict == verdict


def test_ratios_are_judged_by_their_geometric_mean():
  verdict = judge(Claim("", "", lambda r: [5.0, 20.0], low=1, log=True), {})
  np.testing.assert_allclose(verdict.value, 10)
  half = 12.7062 * math.log(2)  # t table, 1 degree of freedom; std / sqrt(2) of logs is log 2
  np.testing.assert_allclose([verdict.low, verdict.high], 10 * np.exp([-half, half]), rtol=1e-4)


def test_a_report_holds_claims_rows_and_how_it_was_made(tmp_path, monkeypatch, capsys):
  monkeypatch.setitem(tables.TABLES, "fake", lambda small: fake([]))
  data = reproduce.reproduce("fake", tmp_path, tmp_path / "out", seeds=3)
  assert [c["verdict"] for c in data["claims"]] == ["reproduced", "not reproduced"]
  assert data["claims"][1]["expected"] == [10, None]  # JSON knows no infinity
  text = (tmp_path / "out/fake.md").read_text()
  assert text in capsys.readouterr().out
  assert "| two - one is 1 (arithmetic) | 0.9 to 1.1 | 1 [1, 1] | 3 | **reproduced** |" in text
  assert "| one | 1.010 +- 0.010 |  | 3 | 0 |" in text and "--table=fake --seeds=3" in text
  assert text.index("Paper: 10x.") > text.index("## Published")
  stored = json.loads((tmp_path / "out/fake.json").read_text())
  assert stored["rows"]["two"]["values"]["y"] == [2.0, 2.01, 2.02]
  assert (tmp_path / "out/fake.png").stat().st_size > 1000
  part = reproduce.reproduce("fake", tmp_path, tmp_path / "part", seeds=2, rows=["one"])
  assert part["claims"] == []  # some rows show numbers and no verdicts


# ------------------------------------------------------------------------------------------------
# What is measured
# ------------------------------------------------------------------------------------------------


def test_distances_see_a_shift_and_a_missing_mode():
  rng = np.random.default_rng(0)
  x = rng.normal(size=(2000, 6))
  shift = np.array([1.0, 0, 0, 0, 0, 2.0])
  got = videos.sliced_wasserstein(x, x + shift)
  np.testing.assert_allclose(got, np.sqrt(5), rtol=0.2)  # exact for all directions
  assert videos.sliced_wasserstein(x, x[::-1]) == 0
  with pytest.raises(ValueError, match="one shape"):
    videos.sliced_wasserstein(x, x[:5])
  mixture = videos.video("mixture")
  log = np.asarray(mixture.params.log_weight)
  np.testing.assert_allclose(np.exp(log), [1 / 6, 2 / 6, 3 / 6], rtol=1e-5)
  one = np.asarray(mixture.params.components.start_mean)[2].reshape(1, 1, 1, 1, 2)
  coverage, worst = mixture.coverage(np.tile(one, (10, 3, 1, 1, 1)).astype(np.float32))
  assert worst == 0 and coverage <= 0.51
  assert mixture.distance(np.full((4, *videos.SHAPE), np.nan), None) == math.inf


def test_updates_to_a_level_are_interpolated():
  assert updates_to([4.0, 2.0, 1.0], [0, 10, 20], 1.5) == 15
  assert updates_to([4.0, 2.0, 1.0], [0, 10, 20], 5.0) == 0
  assert updates_to([4.0, 2.0, 1.0], [0, 10, 20], 0.5) == math.inf
  assert updates_to([4.0, 1.0, 3.0, 1.0], [0, 10, 20, 30], 2.0) == 25  # a dip is not quality


def test_every_objective_has_a_row_on_both_videos():
  rows = tables.make("objectives").rows
  for video in ("gaussian", "mixture"):
    mine = [
      r["objective"]["name"] for k, r in rows.items() if k.startswith(video) and r["objective"]
    ]
    assert {*mine, *objectives.ELSEWHERE} == set(OBJECTIVES)


# ------------------------------------------------------------------------------------------------
# The same rows on Doom: configs that build
# ------------------------------------------------------------------------------------------------

DOOM = [*doom.ONE_NETWORK, *doom.DISTILLED, *doom.MATCHED, *doom.STAGES]
# Numbers are all that a size changes: one config of each kind shows them.
SMALL = ["flow_matching", "shortcut", "dmd2_gan", "tf_scm"]


@pytest.mark.parametrize(
  ("label", "size"), [*((name, "gpu") for name in DOOM), *((name, "cpu") for name in SMALL)]
)
def test_every_doom_config_builds(label, size, monkeypatch):
  """Networks, roles, optimizers and shapes; not the runs and the data that it reads."""
  here = {"path": "synthetic:clips=64,frames=16,size=32", "codec": "pixel"}

  def read(reference):  # the run that a network comes from, as its own config describes it
    kind = reference.split(":")[0].rpartition("/")[2]
    arg = f"flow_matching,{size}" if kind == "teacher" else f"{kind},{size}"
    config = doom.get_config(arg)
    config.data.update(here)
    config.model.update(in_channels=3, out_channels=3, action_dim=4, depth=1)
    return config.to_dict()

  monkeypatch.setattr(frozen, "resolve_reference", lambda reference: reference)
  monkeypatch.setattr(networks, "read_config", read)
  config = doom.get_config(f"{label},{size}")
  config.data.update(here)
  config.model.depth = 1  # blocks are alike
  built = setup.build(config)
  assert set(config.nets) == {*built.objective.roles, *built.objective.frozen}
  assert built.models.keys() >= set(built.objective.roles)
  causal = label in (*doom.STAGES, *doom.CAUSAL_STUDENTS)
  assert (networks.chunk_of(built.config, built.objective.roles[0]) == 1) == causal
  assert (built.example.cond.clean is not None) == (config.causal.forcing == "teacher")
  if "fake" in built.objective.roles:  # scores whole clips, also of a causal student
    assert networks.chunk_of(built.config, "fake") is None
  for role in built.objective.roles:
    init = config.nets[role].init
    if init and role != "critic":  # it starts from a network of the same shape
      same = read(init)["model"]
      assert same == built.config["model"] | {"second_time": same["second_time"]}


def test_doom_configs_cover_every_objective_and_refuse_others():
  assert {*doom.ONE_NETWORK, *doom.DISTILLED, *doom.MATCHED} == set(OBJECTIVES)
  with pytest.raises(ValueError, match=r"write name,size .* out of flow_matching, "):
    doom.get_config("scms,gpu")


# ------------------------------------------------------------------------------------------------
# The tables themselves, small
# ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", list(tables.TABLES))
def test_a_small_version_of_each_table_runs(name, tmp_path):
  data = reproduce.reproduce(name, tmp_path, tmp_path / "out", small=True)
  assert data["claims"] and data["seeds"] == 2
  for row in data["rows"].values():
    assert all(np.isfinite(v).all() for v in row["values"].values())
  assert (tmp_path / f"out/{name}.png").exists()
  if name == "objectives":  # needs no training, and so is exact already
    assert {c["verdict"] for c in data["claims"]} <= {"reproduced", "inconclusive"}
    for n in (1, 2):
      got = np.mean(data["rows"]["gaussian teacher"]["values"][f"w2@{n}"])
      assert abs(got - objectives.walk(np.linspace(1, 0, n + 1))) < 0.1
