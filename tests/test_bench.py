"""The benchmark: its shapes are the library's, its numbers add up, no row takes others along."""

import dataclasses
import json
import pathlib
import subprocess
import sys
import types

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from configs.doom import teacher
from pallas_kernels.bench import check, peer, programs, rows, run, shapes, table, timing
from pallas_kernels.bench.run import Options
from pallas_kernels.bench.shapes import SHAPES, Shape
from vidstep import masks

PACKED = masks.teacher_forcing_info(masks.chunk_index(5, 2))
KEPT = masks.TokenInfo(*(f[(PACKED.role == masks.NOISY) | (PACKED.chunk < 2)] for f in PACKED))
FRAMES = masks.token_info(np.arange(5), masks.chunk_index(5, 2))
WINDOW = masks.CausalChunks() & masks.Window(2, 1, "chunk")
TINY = [
  Shape("tiny-full", "tiny", 1, 2, 64, lambda: shapes.full(96)),
  Shape("tiny-causal", "tiny", 1, 2, 64, lambda: shapes.by_chunk(shapes.causal, 4, 24)),
]
TINY_OPTIONS = Options(("tiny-*",), ("forward",), seconds=0.01, rounds=4)


@pytest.fixture
def tiny(monkeypatch):
  monkeypatch.setattr(timing, "PEAK_SIZE", {"cpu": 64})
  for shape in TINY:
    monkeypatch.setitem(SHAPES, shape.name, shape)


@pytest.mark.parametrize(
  "ours, rule, info",
  [
    (shapes.by_chunk(shapes.causal, 5, 3, 2), masks.CausalChunks(), FRAMES),
    (shapes.by_chunk(shapes.CausalWindow(2, 1), 5, 3, 2), WINDOW, FRAMES),
    (shapes.packed(5, 3, 2), masks.TeacherForcing(), KEPT),
  ],
  ids=["causal", "window", "teacher forcing"],
)
def test_the_masks_are_those_of_the_library(ours, rule, info):
  assert np.array_equal(ours.dense()[0], masks.dense(rule, info.tokens(3)))


def test_the_shapes_are_wan_and_doom():
  clip = 21 * 1560
  assert SHAPES["wan-1.3b"].pairs == 12 * clip**2 and SHAPES["wan-14b"].pairs == 40 * clip**2
  for chunk in (1, 3):
    packed = SHAPES[f"wan-1.3b-tf-c{chunk}"]
    assert packed.mask.q_len == (42 - chunk) * 1560
    assert packed.pairs == 12 * clip**2  # what packing without the last clean chunk costs
  for size in ("cpu", "gpu"):
    config, shape = teacher.get_config(size), SHAPES[f"doom-{size}"]
    assert (shape.batch, shape.heads) == (config.data.batch_size, config.model.heads)
    assert shape.dim == config.model.dim // config.model.heads
    assert shape.mask.q_len % config.data.frames == 0
  assert all(shape.density > 0.1 for shape in SHAPES.values())


def test_in_the_committed_tables_a_pair_under_a_mask_costs_what_the_readme_says():
  folder = pathlib.Path(__file__).parents[1] / "results/attention"
  missed = {}
  for size in ("4k", "8k", "16k"):
    measured = json.loads((folder / f"cpu-{size}/bench.json").read_text())["rows"]
    assert {row["mode"] for row in measured} == {"forward", "forward_tangent", "backward"}
    for row in measured:
      assert row["density"] > 0.1 and row["shape"] in SHAPES
      if row["pair_time_of_full"] >= 1.3:
        missed[row["shape"], row["mode"]] = row["pair_time_of_full"]
  assert list(missed) == [("small-4k-window", "backward")]
  assert max(missed.values()) < 1.35


def test_every_mode_of_every_runnable_kernel_is_timed(tiny, tmp_path):
  options = dataclasses.replace(TINY_OPTIONS, modes=("*",), check=False, out=str(tmp_path))
  result = run.run(options)
  done = [row for row in result["rows"] if "not_run" not in row]
  ours = {(row["shape"], row["mode"], row["implementation"]) for row in done}
  for shape in TINY:
    for mode in programs.MODES:
      assert {(shape.name, mode, "xla"), (shape.name, mode, "xla_chunked")} <= ours
  for row in done:
    assert row["quartiles"][0] <= row["seconds"] <= row["quartiles"][1]
    count = {"forward": 2, "tangent": 5, "forward_tangent": 6, "backward": 5}
    matmuls = count.get(row["mode"], 7)
    pairs = 2 * 96 * 96 * (1 if row["shape"] == "tiny-full" else 10 / 16)
    assert row["flops_per_second"] * row["seconds"] == pytest.approx(matmuls * 2 * pairs * 64)
    if row["shape"] == "tiny-full":
      assert row["pair_time_of_full"] == 1.0
  assert json.loads((tmp_path / "bench.json").read_text())["rows"] == result["rows"]
  text = (tmp_path / "table.md").read_text()
  assert "`pallas_tpu` not run" in text and "it runs on tpu, not on cpu" in text
  assert text.count("\n| tiny-") == len(done)


def test_a_row_that_fails_says_so_and_the_others_go_on(tiny, monkeypatch):
  def broken(*args, **kwargs):
    raise RuntimeError("no such luck")

  monkeypatch.setattr(
    programs, "DENSE", dataclasses.replace(programs.DENSE, forward=broken, name="xla")
  )
  result = run.run(dataclasses.replace(TINY_OPTIONS, implementations=("xla", "xla_chunked")))
  by_name = {(row["shape"], row["implementation"]): row for row in result["rows"]}
  assert by_name["tiny-full", "xla"]["not_run"] == "RuntimeError: no such luck"
  assert by_name["tiny-full", "xla_chunked"]["seconds"] > 0


def test_a_run_that_breaks_while_it_is_timed_leaves_the_others_their_samples():
  calls = iter(range(3))

  def fragile():
    if next(calls) == 2:
      raise RuntimeError("broke")

  row = lambda: rows.describe(TINY[0], "forward", "xla", jnp.dtype("float32"))
  good, bad, matmul = (timing.Run(call, lambda _: None) for call in (int, fragile, int))
  pairs = [(row(), good), (row(), bad)]
  SHAPES["tiny-full"] = TINY[0]
  try:
    rows.sample(pairs, matmul, seconds=1.0, rounds=4)
  finally:
    del SHAPES["tiny-full"]
  assert pairs[1][0]["not_run"] == "RuntimeError: broke"
  assert pairs[0][0]["samples"] == 4


def test_what_takes_too_long_or_too_much_memory_is_not_started(tiny, monkeypatch):
  slow = run.run(dataclasses.replace(TINY_OPTIONS, max_seconds=1e-9))
  assert "even at the matmul's peak" in _reason(slow, "xla_chunked")
  monkeypatch.setattr(timing, "free_bytes", lambda: 1e3)
  large = run.run(TINY_OPTIONS)
  assert "GiB of memory" in _reason(large, "xla_chunked")
  sleepy = timing.Run(lambda: None, lambda _: __import__("time").sleep(0.02))
  with pytest.raises(timing.NotRun, match="past --max_seconds"):
    timing.warm_up(sleepy, 1.0, 10, 0.01)


def _reason(result, name):
  return next(row["not_run"] for row in result["rows"] if row["implementation"] == name)


def test_short_calls_are_repeated_until_they_can_be_timed():
  calls = []
  quick = timing.Run(lambda: calls.append(0), lambda _: None)
  timing.warm_up(quick, 0.2, 10, 1.0)
  assert quick.loops > 100
  before = len(calls)
  quick.sample()
  assert len(calls) - before == quick.loops


def test_check_passes_sound_kernels_and_names_broken_ones(monkeypatch):
  monkeypatch.setattr(check, "MASKS", {"causal": shapes.by_chunk(shapes.causal, 2, 40)})
  monkeypatch.setattr(check, "DIMS", (64,))
  sound = programs.DENSE
  (record,) = check.check(sound, jnp.dtype("float32"))
  assert record["ok"] and set(record["errors"]) >= {"o", "lse", "do", "dlse", "dq", "dk", "dv"}
  wrong = dataclasses.replace(sound, tangent=lambda *a, **k: [-x for x in sound.tangent(*a, **k)])
  (record,) = check.check(wrong, jnp.dtype("float32"))
  assert not record["ok"] and record["worst"] > 1
  refusing = lambda mode, *rest: "no tangents here" if mode == "tangent" else None
  (record,) = check.check(dataclasses.replace(sound, refuses=refusing), jnp.dtype("float32"))
  assert record["ok"] and record["refused"] == {"tangent": "no tangents here"}
  assert not {"do", "dlse"} & set(record["errors"])
  text = "\n".join(table._checks([record]))
  assert "conforms, 1 of 1 problems run" in text and "no tangent: no tangents here" in text


def test_a_peer_that_is_missing_is_a_row_that_says_so(tiny):
  result = run.run(dataclasses.replace(TINY_OPTIONS, peer="/nowhere/kernel.py"))
  assert "FileNotFoundError" in _reason(result, peer.NAME)


def test_unknown_names_end_in_one_sentence_with_the_choices():
  with pytest.raises(ValueError, match=r"--modes=sideways matches nothing: choose from forward"):
    run.choose("modes", ["sideways"], programs.MODES)
  command = [sys.executable, "-m", "pallas_kernels.bench", "--shapes=wan-99b"]
  done = subprocess.run(command, capture_output=True, text=True, check=False)
  assert done.returncode == 1
  assert "error: --shapes=wan-99b matches nothing: choose from wan-1.3b" in done.stderr
  assert "Traceback" not in done.stderr


def test_a_gpu_is_called_by_the_name_that_kernels_know(monkeypatch):
  for version, name in (("PJRT CUDA 13", "cuda"), ("PJRT ROCm 7", "rocm")):
    client = types.SimpleNamespace(platform_version=version)
    device = types.SimpleNamespace(platform="gpu", client=client)
    monkeypatch.setattr(jax, "devices", lambda device=device: [device])
    assert programs.platform() == name
