"""sample, evaluate and sweep on a network that was really trained, from the command line."""

import json

import av
import pytest
from commands import run_all

SWEEP = """
from configs import common

def get_config(arg=None):
  config = common.sweep()
  config.networks = {"model": "%s:model:ema"}
  config.grid = (
    {"network": "model", "solver": "euler", "steps": (1, 2)},
    {"network": "model", "solver": "consistency", "steps": 2, "shift": (1.0, 3.0)},
  )
  config.videos = 8
  config.resamples = 20
  config.latency_runs = 2
  config.compare = (("model euler 2", "model euler 1"),)
  config.picture = ("real", "model euler 2")
  config.shown = 2
  return config
"""


def done(*commands, **env):
  """What commands say that have to end well."""
  results = run_all(commands, **env)
  for status, _, err in results:
    assert status == 0, err[-3000:]
  return [out for _, out, _ in results]


@pytest.fixture(scope="module")
def cache(tmp_path_factory):
  """What one command has compiled is there for the next."""
  return {"JAX_COMPILATION_CACHE_DIR": str(tmp_path_factory.mktemp("cache"))}


@pytest.fixture(scope="module")
def trained(tmp_path_factory, cache):
  workdir = tmp_path_factory.mktemp("run")
  done(("train", "--config=configs/synthetic.py:tiny", f"--workdir={workdir}"), **cache)
  return workdir


def test_sample_writes_real_above_generated(trained, cache, tmp_path):
  out = tmp_path / "x.mp4"
  words = f"--network={trained}:model:ema", "--steps=2", "--videos=3", f"--out={out}"
  (said,) = done(("sample", *words), **cache)
  assert "euler 2 (2 network evaluations)" in said
  with av.open(str(out)) as video:
    assert len(list(video.decode(video=0))) == 4


def test_sweep_resumes_and_leaves_table_plot_and_pictures(trained, cache, tmp_path):
  config, workdir = tmp_path / "sweep.py", tmp_path / "sweep"
  config.write_text(SWEEP % trained)
  command = ("sweep", f"--config={config}", f"--workdir={workdir}")
  (said,) = done(command, **cache)
  rows = json.loads((workdir / "sweep.json").read_text())["rows"]
  assert list(rows) == [
    *("real", "codec", "repeat last frame", "model euler 1", "model euler 2"),
    *("model consistency 2", "model consistency 2, shift 3"),
  ]
  assert "Cheapest within 10%" in said
  assert rows["repeat last frame"]["motion"]["value"] == 0
  for name in ("table.md", "pareto.png", "picture.png", "picture.mp4"):
    assert (workdir / name).stat().st_size > 0

  # One cell lost: the second run fills that one and leaves the others as they are.
  cells = sorted((workdir / "cells").iterdir())
  assert len(cells) == len(rows)
  before = {path: path.stat().st_mtime_ns for path in cells[1:]}
  cells[0].unlink()
  done(command, **cache)
  assert cells[0].exists()
  assert before == {path: path.stat().st_mtime_ns for path in cells[1:]}


def test_evaluate_writes_every_number(trained, cache, tmp_path):
  out = tmp_path / "e.json"
  words = f"--network={trained}:model:ema", "--steps=2", "--videos=8"
  done(("evaluate", *words, "--latency_runs=2", f"--out={out}"), **cache)
  result = json.loads(out.read_text())
  assert result["latency"]["nfe"] == 2
  assert set(result["latency"]["stages"]) == {"denoise", "decode", "transfer"}
  assert result["frechet_alexnet_clip"]["value"] > result["frechet_alexnet_clip"]["floor"]["mean"]


REFUSED = (
  (("sample",), "Which network?"),
  (("sample", "--network=nowhere:model:ema"), "Train that run first"),
  (("sweep", "--config=configs/doom/sweep.py"), "--workdir"),
  (("sweep", "--config=configs/doom/sweep.py", "--config.vidoes=3"), "config.videos"),
  (("pipeline", "--config=configs/doom/demo.py", "--workdir=x", "--stages=y"), "no stage 'y'"),
  (("codec", "--data=nowhere", "--out=x.npz"), "nowhere"),
)


def test_bad_input_gets_one_sentence(cache):
  results = run_all([args for args, _ in REFUSED], **cache)
  for (args, sentence), (status, _, said) in zip(REFUSED, results, strict=True):
    assert status and sentence in said, args
    assert "Traceback" not in said
