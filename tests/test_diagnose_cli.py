"""experiments.diagnose reads runs in any state; experiments.train stops one that has collapsed."""

import json
import pathlib
import re
import types

import jax
import numpy as np
import pytest
from jax.experimental.compilation_cache import compilation_cache
from PIL import Image

from configs import common, synthetic
from experiments import diagnose, diagnose_page, train
from experiments import flags as shared
from vidstep.training.checkpoint import load_network
from vidstep.training.diagnosis import Collapsed
from vidstep.training.log import read_metrics

ROOT = pathlib.Path(__file__).parents[1]

# ------------------------------------------------------------------------------------------------
# A run that never learns, stopped, resumed, and drawn
# ------------------------------------------------------------------------------------------------


def still(**watch):
  """A network that predicts a grey x0 and is not allowed to learn: a still, constant answer."""
  config = synthetic.get_config("tiny")
  config.data.path = "synthetic:clips=16,frames=4,size=16"
  config.data.context = 0
  config.objective = {"name": "flow_matching"}
  config.optim.lr = 1e-9
  config.train.update(steps=7, save_every=100, sample_every=7)
  config.eval.update(steps=1, videos=3)
  config.diagnose.update(every=1, samples=2, patience=2, **watch)
  return config


@pytest.fixture(scope="module", autouse=True)
def compiled_once(unoptimized, one_device, tmp_path_factory):
  """A resumed run finds what it compiled before."""
  shared.use_compilation_cache(tmp_path_factory.mktemp("cache"))
  compilation_cache.reset_cache()
  yield
  jax.config.update("jax_compilation_cache_dir", None)
  compilation_cache.reset_cache()


@pytest.fixture(scope="module")
def stopped(tmp_path_factory):
  """(workdir, sentence, number of finished steps) of a run that stopped itself."""
  workdir = tmp_path_factory.mktemp("runs") / "still"
  with pytest.raises(Collapsed) as reason:
    train.train(still(stop=True), workdir)
  return workdir, str(reason.value), len(read_metrics(workdir))


def test_a_collapse_that_stands_stops_the_run_with_a_checkpoint(stopped):
  workdir, sentence, steps = stopped
  assert steps == 5  # four looks to be sure that it never moved, and patience for one more
  assert re.match(r"step 5: .* --config\.diagnose\.stop=False goes on from it", sentence)
  load_network(f"{workdir}:model@5")
  found = [json.loads(line) for line in (workdir / "diagnosis.jsonl").read_text().splitlines()]
  assert {"static", "constant", "diversity"} <= {e["name"] for e in found}
  assert all(e["step"] == 4 for e in found)


def test_a_stopped_run_goes_on_where_it_was_and_every_state_has_a_page(stopped, capsys):
  workdir, _, _ = stopped
  picture, page = diagnose.diagnose([workdir], workdir / "diagnosis")
  assert "still, at step 5 of 7: this run has collapsed." in capsys.readouterr().out
  train.train(still(stop=False), workdir)
  said = capsys.readouterr().out
  assert "resuming" in said and "collapse:" not in said  # told before, and not again
  assert [m["step"] for m in read_metrics(workdir)] == list(range(1, 8))
  assert [p.name for p in sorted((workdir / "samples").iterdir())] == [
    "step_0000001.png", "step_0000007.png"
  ]  # fmt: skip
  assert diagnose.diagnose([workdir], workdir / "diagnosis") == (picture, page)
  assert "still, finished 7 steps" in capsys.readouterr().out
  run = diagnose.open_run(workdir)
  strip = diagnose_page.landscape(run.picture, run.clips)
  assert strip.shape == (2 * 18, 3 * (4 * 18), 3)  # three clips side by side


def test_the_program_ends_with_status_3_and_a_sentence(monkeypatch, capsys):
  def collapse(*args, **kwargs):
    raise Collapsed("step 5: all alike.")

  monkeypatch.setattr(train, "train", collapse)
  for name in ("CONFIG", "WORKDIR", "PROFILE", "WANDB"):
    monkeypatch.setattr(train, name, types.SimpleNamespace(value="x"))
  with pytest.raises(SystemExit) as end:
    train.main([])
  assert end.value.code == 3 and capsys.readouterr().err == "stopped: step 5: all alike.\n"


def test_a_probe_needs_a_sample(tmp_path):
  config = still()
  config.diagnose.samples = 0
  with pytest.raises(ValueError, match=r"diagnose\.samples=0"):
    train.train(config, tmp_path)


# ------------------------------------------------------------------------------------------------
# The page of the documentation
# ------------------------------------------------------------------------------------------------


def test_the_documentation_knows_every_warning_and_its_commands_exist(monkeypatch):
  monkeypatch.setattr(shared, "_schema", common.base)
  page = (ROOT / "docs" / "diagnosis.md").read_text()
  sources = [f.read_text() for f in (ROOT / "vidstep" / "training" / "detectors").glob("*.py")]
  made = {n for s in sources for n in re.findall(r'Finding\(\s*f?"([\w/]+)', s)}
  made |= {"diversity", "constant"}  # one detector, two names
  rows = re.findall(r"^\| `(\w+/?)(?:<role>)?` \|", page, re.M)
  assert set(rows) == made and len(rows) == len(made)
  config = ROOT / "configs" / "synthetic_student.py"
  known = shared.flatten(shared.load_config(config).to_dict())
  assert set(re.findall(r"--config\.([\w.]+)=", page)) <= set(known)
  assert shared.load_config(f"{config}:teacher").objective.name == "flow_matching"


# ------------------------------------------------------------------------------------------------
# Runs made by hand
# ------------------------------------------------------------------------------------------------


def made(folder, rows, *, steps=None):
  folder.mkdir()
  text = "".join(json.dumps({"step": i, **row}) + "\n" for i, row in enumerate(rows, 1))
  (folder / "metrics.jsonl").write_text(text)
  if steps:
    (folder / "config.json").write_text(json.dumps({"train": {"steps": steps}}))
  return folder


def two_roles(n):
  rng = np.random.default_rng(0)
  rows = []
  for i in range(n):
    role = "student" if i % 3 == 2 else "fake"
    row = {f"{role}/{name}": float(rng.uniform(0.5, 1)) for name in ("loss", "grad_norm", "lr")}
    bins = "gap" if role == "student" else "loss"
    row |= {f"{role}/{bins}_t{k}": float(rng.uniform(0.5, 1)) for k in range(4)}
    row |= {"student/gap": 0.4} if role == "student" else {}
    if i % 10 == 0:
      measures = ("motion", "diversity", "spread", "contrast", "saturation", "clipped")
      row |= {f"probe/{m}{real}": 0.5 for m in measures for real in ("", "_real")}
      row["probe/finite"] = 1.0
    rows.append(row)
  return rows


def test_runs_of_several_roles_stand_side_by_side_on_one_page(tmp_path, capsys):
  one = made(tmp_path / "one", two_roles(60), steps=60)
  bright = {"probe/saturation": 0.9}
  bad = [r | bright if i in (40, 50) else r for i, r in enumerate(two_roles(60))]
  two = made(tmp_path / "two", bad, steps=100)
  picture, page = diagnose.diagnose([one, two], tmp_path / "both")
  said = capsys.readouterr().out
  assert "one, finished 60 steps: nothing looks wrong, judged by 6 looks at its samples." in said
  assert "two, at step 60 of 100: look at this." in said and "[1] saturation, warning" in said
  with Image.open(picture) as image:
    assert image.size[0] == 1200
  text = page.read_text()
  assert "saturation" in text and "Try: " in text
  assert re.findall(r'(?:src|href)="([^"]{5})', text) == ["data:"]  # nothing is elsewhere


def test_an_aborted_run_says_what_was_not_finite(tmp_path, capsys):
  rows = [{"model/loss": 1.0, "model/grad_norm": 1.0}] * 20
  rows += [{"model/loss": "nan", "model/grad_norm": "inf"}]
  folder = made(tmp_path / "broken", rows, steps=50)
  (folder / "nonfinite").mkdir()
  (folder / "nonfinite" / "metrics.json").write_text('{"step": 21}')
  diagnose.diagnose([folder], folder / "diagnosis")
  said = capsys.readouterr().out
  assert "broken, aborted at step 21, which was not finite: this run has collapsed" in said
  assert "Model/loss, model/grad_norm are not finite, since step 21" in said


def test_a_running_run_may_be_cut_in_its_last_line_and_have_no_samples(tmp_path, capsys):
  folder = made(tmp_path / "young", [{"model/loss": 1.0, "model/grad_norm": 1.0}] * 3)
  with (folder / "metrics.jsonl").open("a") as file:
    file.write('{"step": 4, "model/lo')
  diagnose.diagnose([folder], folder / "diagnosis")
  said = capsys.readouterr().out
  assert "young, at step 3: nothing looks wrong" in said and "diagnose.every > 0" in said


def test_what_went_away_is_told_as_past(tmp_path):
  ratios = [1, 1, 0.1, 0.1, 0.1, 0.9, 1]
  rows = [{"probe/motion": 10 * r, "probe/motion_real": 10.0} for r in ratios]
  run = diagnose.open_run(made(tmp_path / "back", rows))
  assert diagnose_page.findings(run) == []
  (past,) = diagnose_page.passed(run)
  assert past.startswith("Earlier, from step 4 to 6 (static): samples move 10% as much")


def test_folders_that_are_no_runs_are_one_sentence(tmp_path):
  with pytest.raises(FileNotFoundError, match=r"does not exist\. Give the --workdir"):
    diagnose.open_run(tmp_path / "nowhere")
  with pytest.raises(FileNotFoundError, match=r"is no run: it has no metrics\.jsonl"):
    diagnose.open_run(tmp_path)
  with pytest.raises(ValueError, match="has not finished a step yet"):
    diagnose.open_run(made(tmp_path / "empty", []))
