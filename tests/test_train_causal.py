"""Causal stages train from their configs, one from the other's checkpoint, and sample."""

import dataclasses
import shutil

import jax
import numpy as np
import pytest
from jax.experimental.compilation_cache import compilation_cache

from configs import synthetic, synthetic_causal
from experiments import flags as shared
from experiments import generate, networks, setup, train
from vidstep.training.log import read_metrics

DATA = "synthetic:clips=16,frames=4,size=16"


@pytest.fixture(scope="module", autouse=True)
def compiled_once(unoptimized, one_device, tmp_path_factory):
  """Runs of this module share what they compile."""
  shared.use_compilation_cache(tmp_path_factory.mktemp("cache"))
  compilation_cache.reset_cache()
  yield
  jax.config.update("jax_compilation_cache_dir", None)
  compilation_cache.reset_cache()


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
  """runs(stage) -> workdir of a finished tiny run, trained when first asked for."""
  root = tmp_path_factory.mktemp("runs")
  done = {}

  def run(stage):
    """Or its config, as "<stage> config" once it is done."""
    if stage in done:
      return done[stage]
    whole = stage == "whole"
    config = synthetic.get_config("tiny") if whole else stage_config(stage)
    config.data.path = DATA
    config.train.update(steps=6, save_every=2 if stage == "long" else 6)
    for net in config.nets.values():
      if net.init:
        earlier = net.init.split(":")[0].removeprefix("runs/")
        earlier = run("whole" if earlier == "synthetic" else earlier.removeprefix("causal/"))
        net.init = f"{earlier}:{net.init.partition(':')[2]}"
    done[stage] = root / stage
    train.train(config, done[stage])
    done[f"{stage} config"] = config
    return done[stage]

  return run


def stage_config(stage):
  config = synthetic_causal.get_config(f"{stage},tiny")
  config.data.path = DATA
  config.train.update(steps=6, save_every=6)
  return config


@pytest.mark.parametrize(
  ("stage", "metrics"),
  [
    ("tf", {"model/loss"}),
    ("dcm", {"student/loss"}),
    ("self", {"student/gap", "fake/loss"}),
    ("long", {"student/gap", "student/frames", "fake/loss"}),
  ],
)
def test_a_stage_trains_from_the_one_before_it(runs, stage, metrics):
  rows = read_metrics(runs(stage))
  assert len(rows) == 6
  seen = {key: value for row in rows for key, value in row.items()}
  assert metrics <= set(seen) and all(np.isfinite(value) for value in seen.values())


def test_long_tuning_resumes_in_the_middle_of_its_videos(runs, tmp_path, capsys):
  """Cache and last frames are in the checkpoint: the same numbers as without a break."""
  whole, workdir = read_metrics(runs("long")), tmp_path / "long"
  shutil.copytree(runs("long"), workdir)
  shutil.rmtree(workdir / "checkpoints" / "6")  # as if stopped after the fourth
  train.train(runs("long config"), workdir)
  assert "at step 4" in capsys.readouterr().out
  for before, after in zip(whole, read_metrics(workdir), strict=True):
    numbers = {key for key in before if "/" in key and not key.startswith("time")}
    assert {k: before[k] for k in numbers} == {k: after[k] for k in numbers}


def test_only_the_student_is_causal_and_only_teacher_forcing_has_clean_frames(runs):
  config = stage_config("self")
  for name, workdir in (("teacher", "whole"), ("fake", "whole"), ("student", "dcm")):
    role = "student" if name == "student" else "model"
    config.nets[name].init = f"{runs(workdir)}:{role}"
  chunk = lambda role, **kw: networks.chunk_of(config.to_dict(), role, **kw)
  assert chunk("student") == 1 and chunk("fake") is None
  assert chunk("teacher", of=f"{runs('whole')}:model") is None
  assert chunk("teacher", of=f"{runs('tf')}:model") == 1
  config.causal.update(first=2)
  config.nets.fake.causal = True
  config.nets.student.causal = False
  assert chunk("fake") == (2, 1) and chunk("student") is None
  assert setup.build(config).example.cond.clean is None
  forced = setup.build(stage_config("tf")).example
  assert forced.cond.clean.shape == forced.x0.shape


def test_a_causal_network_is_sampled_chunk_by_chunk(runs):
  """Later actions change nothing earlier in the decoded pixels; the whole-clip network's do."""

  def first_frames_change(workdir, role):
    network = generate.open_network(f"{workdir}:{role}:ema")
    rng = np.random.default_rng(0)  # hardly trained: an action would not show in a pixel
    shaken = jax.tree.map(lambda p: p + np.float32(0.1 * rng.normal(size=p.shape)), network.params)
    network = dataclasses.replace(network, params=shaken)
    clips = generate.held_out(network.config, 4)
    other = clips | {"actions": clips["actions"].copy()}
    other["actions"][:, -1] *= -1
    setting = network.setting(steps=1)
    draw = lambda clips: generate.draw_videos(network, setting, clips, seed=0, batch_size=4)
    change = np.abs(draw(clips).astype(int) - draw(other).astype(int)).max((0, 2, 3, 4))
    return change.tolist()

  *before, last = first_frames_change(runs("self"), "student")
  assert before == [0, 0] and last > 0
  assert first_frames_change(runs("whole"), "model")[0] > 0


def test_diffusion_forcing_trains_in_chunks_behind_a_first_one_of_their_own(tmp_path):
  config = stage_config("df")
  config.train.update(steps=2)
  config.causal.update(chunk=2, first=1)
  train.train(config, tmp_path)
  assert len(read_metrics(tmp_path)) == 2
  with pytest.raises(ValueError, match=r"causal\.chunk: 2 -> 1"):
    train.train(stage_config("df"), tmp_path)


@pytest.mark.parametrize(
  "stage", [s for s in synthetic_causal.STAGES if s not in ("tf", "df", "dcm", "self", "long")]
)
def test_the_other_stages_are_built(runs, stage):
  config = stage_config(stage)
  roles = 1 if stage in synthetic_causal.BEHIND_DATA else 2
  for name, net in config.nets.items():
    whole = (roles == 2 or stage == "ode") and name != "student"
    net.init = f"{runs('whole' if whole else 'tf')}:model"
  built = setup.build(config)
  assert len(built.objective.roles) == roles
  if stage in synthetic_causal.FEW:  # sampled as it is trained
    times, context = synthetic_causal.FEW[stage]
    student = dict(config=built.config, model=built.models["student"], params=None, codec=None)
    student = generate.Network(reference=f"{runs('tf')}:student", **student)
    setting, chunks = student.setting(), 3  # frame by frame, behind one frame of context
    reads = 4 + (chunks - 1) * len(times)
    assert setting.grid().tolist() == pytest.approx([*times, 0.0])
    assert student.nfe(setting) == reads + 1 + (0 if context else chunks)


@pytest.mark.parametrize(
  ("changes", "sentence"),
  [
    ({"causal.forcing": "noise"}, 'choose "teacher" or "diffusion"'),
    ({"causal.chunk": None}, r"give --config\.causal\.chunk"),
    ({"nets.model.causal": True, "causal.chunk": None, "causal.forcing": None}, "needs chunks"),
    ({"causal.chunk": 0}, "at least one frame"),
  ],
)
def test_a_causal_config_that_cannot_be_is_one_sentence(changes, sentence, tmp_path):
  config = stage_config("tf")
  with config.unlocked():
    config.update_from_flattened_dict(changes)
  with pytest.raises(ValueError, match=sentence):
    train.train(config, tmp_path)
