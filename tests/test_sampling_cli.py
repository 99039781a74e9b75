"""sample, evaluate and sweep on a network that was really trained, from the command line."""

import json
import pathlib
import subprocess
import sys

import av
import pytest

ROOT = pathlib.Path(__file__).parents[1]
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


def run(module, *args, ok=True):
  result = subprocess.run(
    [sys.executable, "-m", f"experiments.{module}", *map(str, args)],
    cwd=ROOT,
    capture_output=True,
    text=True,
    check=False,
  )
  assert (result.returncode == 0) == ok, result.stderr[-3000:]
  return result.stdout if ok else result.stderr


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
  workdir = tmp_path_factory.mktemp("run")
  run("train", "--config=configs/synthetic.py:tiny", f"--workdir={workdir}")
  return workdir


def test_sample_writes_real_above_generated(trained, tmp_path):
  out = tmp_path / "x.mp4"
  said = run("sample", f"--network={trained}:model:ema", "--steps=2", "--videos=3", f"--out={out}")
  assert "euler 2 (2 network evaluations)" in said
  with av.open(str(out)) as video:
    assert len(list(video.decode(video=0))) == 4


def test_sweep_resumes_and_leaves_table_plot_and_pictures(trained, tmp_path):
  config, workdir = tmp_path / "sweep.py", tmp_path / "sweep"
  config.write_text(SWEEP % trained)
  command = ("sweep", f"--config={config}", f"--workdir={workdir}")
  said = run(*command)
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
  run(*command)
  assert cells[0].exists()
  assert before == {path: path.stat().st_mtime_ns for path in cells[1:]}


def test_evaluate_writes_every_number(trained, tmp_path):
  out = tmp_path / "e.json"
  run(
    *("evaluate", f"--network={trained}:model:ema", "--steps=2", "--videos=8"),
    *("--latency_runs=2", f"--out={out}"),
  )
  result = json.loads(out.read_text())
  assert result["latency"]["nfe"] == 2
  assert set(result["latency"]["stages"]) == {"denoise", "decode", "transfer"}
  assert result["frechet_alexnet_clip"]["value"] > result["frechet_alexnet_clip"]["floor"]["mean"]


@pytest.mark.parametrize(
  "args, sentence",
  [
    (("sample",), "Which network?"),
    (("sample", "--network=nowhere:model:ema"), "Train that run first"),
    (("sweep", "--config=configs/doom/sweep.py"), "--workdir"),
    (("sweep", "--config=configs/doom/sweep.py", "--config.vidoes=3"), "config.videos"),
    (("pipeline", "--config=configs/doom/demo.py", "--workdir=x", "--stages=y"), "no stage 'y'"),
    (("codec", "--data=nowhere", "--out=x.npz"), "nowhere"),
  ],
)
def test_bad_input_gets_one_sentence(args, sentence):
  said = run(*args, ok=False)
  assert sentence in said
  assert "Traceback" not in said
