"""experiments.train as several processes: one's numbers, saved once, killed, stopped, resumed."""

import json
import os
import shutil
import signal
import textwrap

import numpy as np
import pytest
from together import Together

from experiments import flags, train
from vidstep.parallel import processes
from vidstep.training.log import MetricsLog, read_metrics

STEPS = 24
MESH = {"data": 1, "fsdp": 1, "tensor": 2, "rules": "tensor"}

CONFIG = """
  from configs import synthetic

  def get_config(arg=None):
    config = synthetic.get_config("tiny")
    config.data.path = "synthetic:clips=16,frames=4,size=16"
    config.objective = {"name": "flow_matching"}
    config.train.update(steps=24, save_every=12)
    return config
"""

STUDENT = """
  from configs import synthetic
  from configs.common import net

  def get_config(arg=None):
    config = synthetic.get_config("tiny")
    config.data.path = "synthetic:clips=16,frames=4,size=16"
    config.objective = {{"name": "dcm"}}
    config.nets = {{name: net("{teacher}:model:ema@12") for name in ("teacher", "student")}}
    config.optim.warmup = 0
    config.train.update(steps=2, save_every=2, sample_every=2)
    config.eval.steps = 1
    return config
"""

TRAIN = """
import runpy, sys
runpy.run_module("experiments.train", run_name="__main__")
"""

# Sends itself a signal after step 14, when the checkpoint of step 12 is whole.
SIGNALLED = """
import os, pathlib, signal, sys, time
from vidstep.parallel import processes
workdir = next(pathlib.Path(w.partition("=")[2]) for w in sys.argv if w.startswith("--workdir"))

def reached(self, step, reached=processes.Preemption.reached):
  if INDEX == 1 and step == 14:
    give_up = time.monotonic() + 60
    while not (workdir / "checkpoints" / "12").is_dir() and time.monotonic() < give_up:
      time.sleep(0.01)
    os.kill(os.getpid(), signal.{signal})
  if step > 14:
    time.sleep(0.4)  # the news needs a moment, and there are few steps
  return reached(self, step)

processes.Preemption.reached = reached
"""


# The second process alone finds step 24 damaged, and has a wrong number in its second batch.
BROKEN = """
import numpy as np
from vidstep.data import loader
from vidstep.training import checkpoint
drawn = []

def draw(self, draw=loader.Loader.__next__):
  drawn.append(draw(self))
  if INDEX == 1 and len(drawn) == 2:
    drawn[-1]["actions"][0, 1] = np.nan
  return drawn[-1]

def read(folder, name, like, read=checkpoint._restore_part):
  if INDEX == 1 and folder.name == "24" and name == "model.ema":
    raise checkpoint._Damaged(f"checkpoint {folder} is truncated")
  return read(folder, name, like)

loader.Loader.__next__ = draw
checkpoint._restore_part = read
"""


def rows(workdir):
  """The metrics of all steps without the clock."""
  return [{k: v for k, v in row.items() if k != "seconds"} for row in read_metrics(workdir)]


def meta(workdir, step):
  """What a checkpoint says of itself, checksums of all its parts included."""
  return json.loads((workdir / "checkpoints" / str(step) / "meta" / "metadata").read_text())


def names(workdir):
  """Everything a run leaves, by name, down to the parts of checkpoints."""
  found = (p.relative_to(workdir) for p in workdir.rglob("*") if "events." not in p.name)
  return sorted(str(p) for p in found if len(p.parts) <= 3)


@pytest.fixture(scope="module")
def place(tmp_path_factory):
  """(folder, cache of compiled programs, config file) of this module."""
  folder = tmp_path_factory.mktemp("processes")
  config = folder / "config.py"
  config.write_text(textwrap.dedent(CONFIG))
  return folder, folder / "cache", config


@pytest.fixture(scope="module")
def one(place):
  """The run of one process with two devices."""
  folder, cache, config = place
  words = [f"--config={config}", f"--workdir={folder / 'one'}"]
  status, texts, _ = Together(folder, cache, TRAIN, words, count=1, devices=2).finish()
  assert status == [0], texts
  return folder / "one"


def test_killed_stopped_and_gone_on_alone_it_has_the_numbers_of_one_bit_for_bit(place, one):
  folder, cache, config = place
  workdir = folder / "two"
  words = [f"--config={config}", f"--workdir={workdir}"]
  code = SIGNALLED.format(signal="SIGKILL") + TRAIN
  status, texts, seconds = Together(folder, cache, code, words).finish()
  assert status == [1, -9], texts
  assert "process 0 of 2: another process has ended or is out of reach" in texts[0]
  assert "the same command goes on from the last checkpoint" in texts[0]
  assert seconds < 60
  # The same command; SIGTERM to one of the two saves in both.
  code = SIGNALLED.format(signal="SIGTERM") + TRAIN
  status, texts, _ = Together(folder, cache, code, [*words, "--preempted_status=75"]).finish()
  assert status == [75, 75], texts
  assert f"resuming {workdir} at step 12" in texts[0]
  last = max(int(p.name) for p in (workdir / "checkpoints").iterdir())
  assert 14 < last < STEPS and last == len(rows(workdir))
  assert f"SIGTERM: saved at step {last}" in texts[0]
  # What two have begun one ends.
  status, texts, _ = Together(folder, cache, TRAIN, words, count=1, devices=2).finish()
  assert status == [0], texts
  assert f"resuming {workdir} at step {last}" in texts[0]
  assert rows(workdir) == rows(one) and len(rows(one)) == STEPS
  assert meta(workdir, STEPS) == meta(one, STEPS)
  # But for the checkpoint before the last, which is of another step.
  before = {workdir: f"checkpoints/{last}", one: "checkpoints/12"}
  left = [[n for n in names(w) if not n.startswith(other)] for w, other in before.items()]
  assert left[0] == left[1]


def test_weights_cut_across_processes_beside_a_frozen_network_agree_to_rounding(
  place, one, unoptimized
):
  """Both processes hold parts of each matrix, so that both must load the same samples."""
  folder, cache, _ = place
  config = folder / "student.py"
  config.write_text(textwrap.dedent(STUDENT.format(teacher=one)))
  train.train(flags.load_config(str(config)), folder / "student_one")  # on eight devices
  mesh = [f"--config.mesh.{key}={value}" for key, value in MESH.items()]
  words = [f"--config={config}", f"--workdir={folder / 'student_two'}", *mesh]
  status, texts, _ = Together(folder, cache, TRAIN, words).finish()
  assert status == [0, 0], texts
  assert "step" not in texts[1]  # the second process has nothing to say
  straight, cut = rows(folder / "student_one"), rows(folder / "student_two")
  assert len(cut) == 2 and straight[0].keys() == cut[0].keys() and "probe/spread" in cut[0]
  for a, b in zip(straight, cut, strict=True):
    np.testing.assert_allclose([*a.values()], [*b.values()], rtol=1e-3, atol=1e-6)
  assert names(folder / "student_one") == names(folder / "student_two")


def test_damage_and_nan_in_one_of_two_are_the_affair_of_both(place, one):
  folder, cache, config = place
  workdir = folder / "broken"
  shutil.copytree(one, workdir)
  words = [f"--config={config}", f"--workdir={workdir}"]
  status, texts, _ = Together(folder, cache, BROKEN + TRAIN, words).finish()
  assert status == [1, 1], texts
  assert f"resuming {workdir} at step 12" in texts[0]
  assert [p.name for p in (workdir / "checkpoints_refused").iterdir()] == ["24"]
  dump = workdir / "nonfinite"
  assert all("Step 14 is not finite" in text and f"are in {dump}" in text for text in texts)
  assert [p.name for p in (dump / "checkpoints").iterdir()] == ["13"]
  batch = np.load(dump / "batch.npz")
  actions, videos = batch["cond.actions"], batch["x0"]
  assert actions.shape[0] == 8  # the batch of both
  assert np.isnan(actions).any((1, 2)).tolist() == [False] * 4 + [True] + [False] * 3
  assert len(np.unique(videos.reshape(8, -1), axis=0)) == 8  # each has loaded its share
  assert rows(workdir)[:13] == rows(one)[:13] and len(rows(workdir)) == 14


def test_a_process_that_was_started_otherwise_is_named(place, monkeypatch):
  """By what the second of two would say; see test_processes for what both hear."""
  other = lambda text: [text, text.replace('"config.optim.lr": 0.001', '"config.optim.lr": 0.5')]
  monkeypatch.setattr(processes, "gather", other)
  monkeypatch.setattr(processes, "check_devices", lambda: None)
  monkeypatch.setattr(train.jax, "process_count", lambda: 2)
  sentence = "Process 1 differs from process 0: config.optim.lr is 0.5 there and 0.001 in process 0"
  with pytest.raises(ValueError, match=sentence):
    train.train(flags.load_config(str(place[2])), place[0] / "differs")
  assert not (place[0] / "differs").exists()


def test_sigterm_to_a_single_process_saves_after_the_step(place, unoptimized, monkeypatch):
  workdir = place[0] / "alone"
  before = signal.getsignal(signal.SIGTERM)

  def write(self, step, values, write=MetricsLog.write):
    write(self, step, values)
    if step == 2:
      os.kill(os.getpid(), signal.SIGTERM)

  monkeypatch.setattr(MetricsLog, "write", write)
  state = train.train(flags.load_config(str(place[2])), workdir)
  assert int(state.step) == 2
  assert signal.getsignal(signal.SIGTERM) is before
  assert [p.name for p in (workdir / "checkpoints").iterdir()] == ["2"]
