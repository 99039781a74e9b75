"""`python -m experiments.play` with a network that was really trained, and how it finds one."""

import asyncio
import contextlib
import io
import json
import os
import pathlib
import signal
import subprocess
import sys
import time
import types

import numpy as np
import pytest
from commands import FAST, run_all
from PIL import Image
from play_world import page

from experiments.play_server import finding
from experiments.play_server.opening import Begins, SameStart, controls_of
from vidstep.data.controls import Control

ROOT = pathlib.Path(__file__).parents[2]
DATA = "synthetic:clips=24,frames=8,size=16"


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
  """A causal network after two steps, in the place where a pipeline leaves its student."""
  workdir = tmp_path_factory.mktemp("world")
  changes = ["data.path=" + DATA, "data.frames=8", "train.steps=2", "data.batch_size=4"]
  changes += ["eval.steps=2", "eval.solver=consistency", "eval.times=0.5,", "eval.videos=2"]
  command = ["train", "--config=configs/synthetic_causal.py:tf,tiny"]
  command += [f"--workdir={workdir / 'tf'}", *(f"--config.{change}" for change in changes)]
  ((status, _, err),) = run_all([command])
  assert status == 0, err[-2000:]
  return workdir


@contextlib.contextmanager
def playing(*given):
  """The server in a process of its own: yields its first lines and the process."""
  process = subprocess.Popen(
    [sys.executable, "-m", "experiments.play", "--port=0", *given],
    cwd=ROOT, env=os.environ | FAST, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
  )  # fmt: skip
  try:
    said = []
    for line in process.stdout:
      said.append(line)
      if line.startswith("Play at"):
        break
    yield "".join(said), process
  finally:
    process.kill()
    process.communicate(timeout=20)


def test_a_trained_network_is_played_saved_and_ends_on_a_signal(trained):
  async def play_it(url):
    async with page(types.SimpleNamespace(url=url), playing=False) as one:
      await one.until(lambda p: p.told)
      world = one.told[0]["world"]
      assert world["keys"] == {"up": "Up", "down": "Down", "left": "Left", "right": "Right"}
      assert world["steps"] == [2, 2] and world["size"] == [16, 16] and not world["reads_text"]
      assert world["game"] is False
      await one.until(lambda p: p.pictures, timeout=120)
      await one.say("keys", down=["left"], id=5)
      await one.until(lambda p: p.pictures[-1].input_id == 5)
      last = one.pictures[-1]
      assert Image.open(io.BytesIO(last.jpeg)).size == (16, 16)
      assert 0 < last.latency < 60_000 and 0 < last.photon < 60_000
      assert (await one.ask("set", steps=1))["worlds"]["a"]["steps"] == 1
      assert (await one.ask("set", steps=3))["type"] == "error"
      assert list((await one.ask("fork"))["worlds"]) == ["a", "b"]
      await one.watch("b", count=2)
      assert (await one.ask("save"))["saves"] == ["world-0001"]
      assert (await one.ask("restore", name="world-0001"))["type"] == "state"
      await one.watch(count=2)
      assert "trained without text" in (await one.ask("prompt", text="x"))["message"]
      assert "no game" in (await one.ask("game", on=True))["message"]
      assert (await one.ask("reset", seed=3))["worlds"]["a"]["seed"] == 3
      await one.watch(count=2)

  with playing(f"--network={trained}/tf:model:ema") as (said, process):
    url = said.split("Play at ")[1].split()[0]
    asyncio.run(play_it(url))
    begin = time.monotonic()
    process.send_signal(signal.SIGTERM)
    assert process.wait(20) == 0, process.stdout.read()[-2000:]
    assert time.monotonic() - begin < 20
  assert (trained / "tf" / "play" / "world-0001.stream").exists()


def test_bad_input_ends_in_one_sentence():
  refused = (
    ([], "Which world?"),
    (["--workdir=nowhere"], "no trained student in nowhere/sf"),
    (["--network=nowhere:model"], "nowhere"),
    (["--workdir=nowhere", "--port=70000"], "port"),
  )
  results = run_all([("play", *given) for given, _ in refused])
  for (given, sentence), (status, _, said) in zip(refused, results, strict=True):
    assert status and sentence in said, given
    assert "Traceback" not in said


def test_a_finished_student_is_found_and_a_missing_one_is_trained(tmp_path, monkeypatch):
  made = []
  monkeypatch.setattr(finding, "make", lambda config, workdir: made.append((config, str(workdir))))
  assert finding.find("x:model", None) == "x:model"
  assert finding.find(None, tmp_path, "c.py") == f"{tmp_path}/sf:student:ema"
  assert made == [("c.py", str(tmp_path))]
  (tmp_path / "sf" / "checkpoints" / "40").mkdir(parents=True)
  (tmp_path / "sf" / "config.json").write_text(json.dumps({"train": {"steps": 60}}))
  finding.find(None, tmp_path, "c.py")  # it was interrupted
  assert len(made) == 2
  (tmp_path / "sf" / "checkpoints" / "60").mkdir()
  assert finding.find(None, tmp_path, "c.py") == f"{tmp_path}/sf:student:ema"
  assert len(made) == 2


def test_a_world_that_is_missing_is_announced_and_made_by_the_pipeline(tmp_path, capfd):
  config = tmp_path / "pipe.py"
  config.write_text(
    "from configs import common\n"
    "def get_config(arg=None):\n"
    "  config = common.pipeline()\n"
    '  config.stages = ({"name": "sf", "title": "nothing", "minutes": 1, "run": "this"},)\n'
    "  return config\n"
  )
  finding.make(str(config), str(tmp_path / "world"))
  said = capfd.readouterr().out
  assert "There is no world in" in said and "20 minutes" in said
  assert "sf" in json.loads((tmp_path / "world" / "pipeline.json").read_text())
  with pytest.raises(ValueError, match="was not trained"):
    finding.make(str(tmp_path / "none.py"), str(tmp_path / "world"))


def test_controls_come_from_the_data():
  info = {"source": "vizdoom", "buttons": ["TURN_LEFT", "LOOK_UP_DOWN_DELTA"]}
  assert controls_of(info) == (
    Control("button", ("TURN_LEFT",)),
    Control("axis", ("LOOK_UP_DOWN_DELTA",), -10.0, 10.0),
  )


def test_the_true_game_begins_where_the_model_does():
  class Game:
    def reset(self, seed):
      self.log = [seed]
      return self.log

    def step(self, action):
      self.log.append(float(action[0]))
      return list(self.log)

    def close(self):
      self.log.append("closed")

  begins = Begins("nowhere", 3)
  actions = np.float32([[0], [1], [-1]])
  clip = {"video": np.zeros((3, 4, 4, 3), np.uint8), "actions": actions, "seed": 99}
  begins.__dict__["_clips"] = {"maze": [clip, clip | {"seed": 7}]}
  game = SameStart(Game(), "maze", begins)
  assert game.reset(0) == [99, 1.0, -1.0]  # the null action leads into the first frame
  assert game.reset(1) == [7, 1.0, -1.0]
  given = begins.arguments("maze", 5)
  np.testing.assert_array_equal(given["context_actions"], actions)
  assert given["context"].shape == (3, 4, 4, 3)
