"""The pipeline of the Doom world: its commands exist, its variants differ, its tiny size runs."""

import importlib.util
import pathlib
import subprocess
import sys

import numpy as np
import pytest

from configs.doom import causal_rcm, world
from experiments import generate, pipeline, train
from experiments.flags import load_config
from vidstep.models import text

ROOT = pathlib.Path(__file__).parents[1]


def words(stage, workdir):
  """Module and flags {name: value} of a stage's command."""
  _, module, *rest = pipeline.command(stage["run"], str(workdir))
  return module, dict(word.removeprefix("--").partition("=")[::2] for word in rest)


@pytest.mark.parametrize("arg", ["cpu", "gpu,1step", "c3,4step", *causal_rcm.RECIPES])
def test_every_stage_starts_from_one_that_came_before(arg):
  stages, done = causal_rcm.get_config(arg).stages, set()
  for stage in stages:
    module, given = words(stage, "runs/w")
    assert importlib.util.find_spec(module)
    if module == "experiments.train":
      config = load_config(given.pop("config"))
      for key, value in given.items():
        if key.endswith(".init"):
          assert value.split("/")[2].partition(":")[0] in done
          assert key.split(".")[2] in config.nets
    done.add(pipeline.command(stage["run"], "runs/w")[-1].rpartition("/")[2])
    done |= {given[k].rpartition("/")[2] for k in ("workdir", "out") if k in given}
  assert [stage["name"] for stage in stages][:2] == ["data", "codec"]


def test_variants_change_what_they_say():
  get = world.get_config
  assert get("sf,1step").objective.times == (1.0,) and len(get("sf,4step").objective.times) == 4
  assert (get("tf").causal.chunk, get("tf,c3").causal.chunk) == (1, 3)
  assert (get("tf").causal.forcing, get("df").causal.forcing) == ("teacher", "diffusion")
  assert get("scm,smooth").model.time_scale == 1.0 and get("scm").objective.name == "scm"
  assert get("sf,first4,noisy").objective.first_times == world.CAUSAL_RCM
  assert get("sf,first4,noisy").causal.context == "last_step"
  assert (get("long,window").causal.window, get("tf").causal.window) == (7, None)
  for arg in ("walk", "sf,2step,4step", "tf,huge"):
    with pytest.raises(ValueError, match=r"world\.py:.*write stage,option"):
      get(arg)


@pytest.mark.usefixtures("unoptimized")
@pytest.mark.timeout(900)
def test_the_tiny_pipeline_runs_from_the_recording_to_the_student(tmp_path, capsys):
  pytest.importorskip("vizdoom")
  if importlib.util.find_spec(text.PACKAGE) is None:
    pytest.skip(f"needs the MiniLM weights: {text.HINT}")
  for stage in causal_rcm.get_config("tiny").stages:
    module, given = words(stage, tmp_path)
    if module == "experiments.train":
      config = load_config(given["config"])
      for key, value in given.items():
        *nodes, leaf = key.split(".")[1:] or [None]
        if leaf:
          inner = config
          for node in nodes:
            inner = inner[node]
          inner[leaf] = value
      train.train(config, given["workdir"])
    elif module in ("experiments.record", "experiments.codec"):
      command = pipeline.command(stage["run"], str(tmp_path))
      subprocess.run([sys.executable, *command], check=True, cwd=ROOT, capture_output=True)
  student = generate.open_network(f"{tmp_path}/sf:student:ema")
  clips = generate.held_out(student.config, 2)
  video = generate.draw_videos(student, student.setting(steps=1), clips, seed=0)
  assert video.shape == (2, 3, 16, 16, 3) and video.dtype == np.uint8
  assert student.model.text_dim == 384 and student.chunk == 1
