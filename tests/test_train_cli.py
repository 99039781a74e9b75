"""experiments.train: resumes bit by bit after kill -9, on other meshes, and says what is wrong."""

import json
import os
import pathlib
import shutil
import signal
import subprocess
import sys
import textwrap

import jax
import numpy as np
import pytest
from commands import FAST
from jax.experimental.compilation_cache import compilation_cache

from configs import common, synthetic
from experiments import batches, objectives, setup, train
from experiments import flags as shared
from vidstep.models.codec import load_codec
from vidstep.models.dit import VideoDiT
from vidstep.training.checkpoint import load_network
from vidstep.training.log import read_metrics

ROOT = pathlib.Path(__file__).parents[1]


def tiny(**train):
  config = synthetic.get_config("tiny")
  config.data.path = "synthetic:clips=16,frames=4,size=16"
  config.objective = {"name": "flow_matching"}
  config.train.update(train)
  return config


@pytest.fixture(scope="module", autouse=True)
def compiled_once(unoptimized, tmp_path_factory):
  """Runs of this module share what they compile."""
  shared.use_compilation_cache(tmp_path_factory.mktemp("cache"))
  compilation_cache.reset_cache()
  yield
  jax.config.update("jax_compilation_cache_dir", None)
  compilation_cache.reset_cache()


@pytest.fixture(scope="module")
def teacher(tmp_path_factory):
  """A finished run of 8 steps on a mesh of 8 x 1, with everything switched on."""
  workdir = tmp_path_factory.mktemp("teacher")
  config = tiny(sample_every=8)
  config.eval.steps = 1
  train.train(config, workdir, profile="3:4")
  return workdir


def test_a_run_leaves_what_its_help_promises(teacher, capsys):
  assert [m["step"] for m in read_metrics(teacher)] == list(range(1, 9))
  assert {"model/loss", "model/grad_norm", "model/lr", "seconds"} < set(read_metrics(teacher)[0])
  config = json.loads((teacher / "config.json").read_text())
  assert config["model"]["action_dim"] == 4 and config["model"]["in_channels"] == 3
  assert list((teacher / "samples").glob("*.png")) and list((teacher / "events").iterdir())
  assert list((teacher / "profile").rglob("*.xplane.pb"))
  stored, params = load_network(f"{teacher}:model:ema")
  assert stored == config and params["patch_embed"]["kernel"].shape[-1] == 32
  train.train(tiny(), teacher)
  assert "already trained to step 8" in capsys.readouterr().out


def test_resuming_on_another_mesh_agrees_to_rounding(teacher, tmp_path):
  workdir = tmp_path / "moved"
  shutil.copytree(teacher, workdir)
  shutil.rmtree(workdir / "checkpoints" / "8")
  config = tiny()
  config.mesh.update(data=2, fsdp=4)
  state = train.train(config, workdir)
  assert state.nets["model"].params["patch_embed"]["kernel"].sharding.spec[-1] == "fsdp"
  straight, moved = (load_network(f"{w}:model")[1] for w in (teacher, workdir))
  close = lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5)
  jax.tree.map(close, straight, moved)
  before, after = (read_metrics(w) for w in (teacher, workdir))
  assert [m["step"] for m in after] == list(range(1, 9))
  assert before[:4] == after[:4]  # not written again
  close([m["model/loss"] for m in before], [m["model/loss"] for m in after])


@pytest.mark.parametrize("lost", [False, True])
def test_a_resumed_run_needs_its_place_in_the_data(teacher, tmp_path, lost):
  workdir = tmp_path / "resumed"
  shutil.copytree(teacher, workdir)
  shutil.rmtree(workdir / "checkpoints" / "8")
  if lost:  # the mutation: resuming from where the data began
    meta = workdir / "checkpoints" / "4" / "meta" / "metadata"
    stored = json.loads(meta.read_text())
    stored["loader"] = batches.make_loader(stored["config"]).state()
    meta.write_text(json.dumps(stored))
  train.train(tiny(), workdir)
  losses = [[m["model/loss"] for m in read_metrics(w)] for w in (teacher, workdir)]
  assert (losses[0] == losses[1]) != lost


STUDENT = """
  from configs import synthetic
  from configs.common import net

  def get_config(arg=None):
    config = synthetic.get_config("tiny")
    config.data.path = "synthetic:clips=16,frames=4,size=16"
    config.objective = {{"name": "dmd2", "times": (1.0, 0.6), "ratio": 2}}
    config.nets = {{}}
    for name in ("teacher", "student", "fake"):
      config.nets[name] = net("{teacher}:model:ema")
    return config
"""

# Kills itself as `kill -9` would, at step 7, once the checkpoint of step 4 is whole.
KILLED = """
  import os, pathlib, runpy, signal, sys, time
  from vidstep.training import log
  workdir, config = map(pathlib.Path, sys.argv[1:])

  def write(self, step, values, write=log.MetricsLog.write):
    write(self, step, values)
    give_up = time.monotonic() + 60
    while step == 7 and not (workdir / "checkpoints" / "4").is_dir():
      assert time.monotonic() < give_up, "checkpoint 4 is never finished"
      time.sleep(0.01)
    if step == 7:
      os.kill(os.getpid(), signal.SIGKILL)

  log.MetricsLog.write = write
  sys.argv[1:] = [f"--workdir={workdir}", f"--config={config}"]
  runpy.run_module("experiments.train", run_name="__main__")
"""


def python(cache, *words):
  """Runs Python on one device."""
  env = os.environ | FAST | {"JAX_COMPILATION_CACHE_DIR": str(cache)}
  return subprocess.run(
    [sys.executable, *map(str, words)],
    cwd=ROOT, env=env, capture_output=True, text=True, check=False, timeout=240,
  )  # fmt: skip


def test_two_roles_resume_bit_by_bit_after_kill_9(teacher, tmp_path):
  config, cache = tmp_path / "student.py", tmp_path / "cache"
  config.write_text(textwrap.dedent(STUDENT.format(teacher=teacher)))
  whole, broken = tmp_path / "whole", tmp_path / "broken"
  train = lambda w: python(cache, "-m", "experiments.train", f"--workdir={w}", f"--config={config}")
  done = train(whole)
  assert done.returncode == 0, done.stderr
  assert "compiling step (fake)" in done.stdout and "compiling step (student)" in done.stdout
  done = python(cache, "-c", textwrap.dedent(KILLED), broken, config)
  assert done.returncode == -signal.SIGKILL, done.stderr
  assert [m["step"] for m in read_metrics(broken)] == list(range(1, 8))
  done = train(broken)
  assert done.returncode == 0, done.stderr
  assert f"resuming {broken} at step 4" in done.stdout
  metas = [json.loads((w / "checkpoints/8/meta/metadata").read_text()) for w in (whole, broken)]
  # The checksums cover weights, averages, optimizers, step, counts, aux and key of both roles.
  assert metas[0] == metas[1] and set(metas[0]["roles"]) == {"student", "fake"}
  assert metas[0]["references"] == {"teacher": f"{teacher}:model:ema@8"}
  rows = [[{k: v for k, v in m.items() if k != "seconds"} for m in read_metrics(w)]
          for w in (whole, broken)]  # fmt: skip
  assert rows[0] == rows[1] and len(rows[0]) == 8
  # No copy of the teacher: its parameters are in no part of the checkpoint.
  assert not list((whole / "checkpoints" / "8").glob("teacher*"))


def test_a_step_that_is_not_finite_stops_the_run_with_a_dump(teacher, tmp_path, monkeypatch):
  workdir = tmp_path / "broken"
  shutil.copytree(teacher, workdir)
  shutil.rmtree(workdir / "checkpoints" / "8")
  drawn = []

  def poisoned(self, draw=batches.Loader.__next__):
    drawn.append(draw(self))
    if len(drawn) == 2:  # after the batch of step 5
      drawn[-1]["actions"][0, 1] = np.nan
    return drawn[-1]

  monkeypatch.setattr(batches.Loader, "__next__", poisoned)
  with pytest.raises(ValueError, match=r"Step 6 is not finite \(.*model/loss.*\): stopped"):
    train.train(tiny(), workdir)
  dump = workdir / "nonfinite"
  assert [p.name for p in (dump / "checkpoints").iterdir()] == ["5"]  # the state before it
  assert json.loads((dump / "metrics.json").read_text())["step"] == 6
  batch = np.load(dump / "batch.npz")
  assert batch["x0"].shape == (8, 3, 16, 16, 3) and np.isnan(batch["cond.actions"][0, 1]).all()
  assert read_metrics(workdir)[-1]["model/loss"] == "nan"
  load_network(f"{dump}:model")


# ------------------------------------------------------------------------------------------------
# One sentence each
# ------------------------------------------------------------------------------------------------


def test_the_command_line_ends_in_one_sentence_without_a_traceback(tmp_path):
  words = ("--config=configs/synthetic.py:tiny", "--workdir=x", "--config.optim.learning_rat=1")
  done = python(tmp_path, "-m", "experiments.train", *words)
  assert done.returncode == 1 and done.stderr.splitlines()[-1].startswith("error: Unknown config")
  assert "Traceback" not in done.stderr


@pytest.fixture
def cli(monkeypatch):
  monkeypatch.setattr(shared, "_schema", common.base)
  return lambda *words: shared._check_config_flags(["train", *words])


@pytest.mark.parametrize(
  ("words", "error", "sentence"),
  [
    (["--config.optim.lrr=1"], ValueError, r"did you mean config\.optim\.lr\?"),
    (["--config.modle.dim", "8"], ValueError, r"did you mean config\.model\.dim\?"),
    (["--config.lr=1"], ValueError, r"did you mean config\.optim\.lr\?"),
    (["--config.zzz=1"], ValueError, "configs/common.py lists them all"),
    (["--config=configs/none.py"], FileNotFoundError, "no config file 'configs/none.py'"),
    (["--config=configs/synthetic.py:huge"], ValueError, 'knows the argument "tiny"'),
  ],
)
def test_a_typo_on_the_command_line_is_answered_with_the_nearest_key(cli, words, error, sentence):
  with pytest.raises(error, match=sentence):
    cli("--config=configs/synthetic.py:tiny", *words)


def test_flags_of_the_config_are_accepted_in_any_spelling(cli):
  cli("--config=configs/synthetic.py", "--config.optim.lr=1e-4", "--config.data.path", "x")
  cli("--config", "configs/synthetic.py:tiny", "--config.nets.model.optim.lr=1")
  with pytest.raises(ValueError, match=r"needs --config=path\.py before it"):
    cli("--config.optim.lr=1")


def test_a_typo_in_a_config_file_is_answered_with_the_nearest_key(cli, tmp_path):
  file = tmp_path / "wrong.py"
  head = "from configs.common import base, net\ndef get_config():\n  c = base()\n"
  for line, sentence in [
    ("c.optim.weight_deacy = 1", r"did you mean config\.optim\.weight_decay\?"),
    ("c.nets.model = net()\n  c.nets.model.modle = 1", r"did you mean config\.nets\.model\.model"),
    ("c.nets.model = net(optim={'lrr': 1})", "lrr"),
  ]:
    file.write_text(head + f"  {line}\n  return c\n")
    with pytest.raises((ValueError, KeyError), match=sentence):
      cli(f"--config={file}")
  file.write_text("x = 1\n")
  with pytest.raises(ValueError, match="defines no get_config"):
    cli(f"--config={file}")


def changed(**changes):
  config = tiny()
  with config.unlocked():
    config.update_from_flattened_dict({k.replace("__", "."): v for k, v in changes.items()})
  return config


@pytest.mark.parametrize(
  ("changes", "sentence"),
  [
    ({"mesh__data": 3}, r"does not fit 8 device\(s\)"),
    ({"data__batch_size": 12}, "batch_size=12 is not divided by 8"),
    ({"data__context": 4}, "leaves nothing to generate"),
    ({"data__path": None}, "--config.data.path"),
    ({"objective__name": "flowmatching"}, "there are .*flow_matching"),
    ({"objective__drp": 0.1}, r"did you mean config\.objective\.drop\?"),
    ({"objective__time": "normal"}, "such as .*uniform:5"),
    ({"objective__time": "uniform:1,2,3"}, "such as .*uniform:5"),
    ({"objective__weight": "hat"}, 'with a name is "bell"'),
    ({"objective__name": "dcm"}, "nets.model is no network of this objective"),
    ({"model__dtype": "float16"}, "choose one of"),
    ({"optim__ema": "0.9"}, 'write "constant:0.999"'),
    ({"nets__model__init": "nowhere:model"}, "no checkpoint in .*nowhere"),
  ],
)
def test_a_config_that_cannot_be_is_one_sentence(changes, sentence, tmp_path):
  with pytest.raises((ValueError, FileNotFoundError), match=sentence):
    train.train(changed(**changes), tmp_path)


def test_flags_that_are_missing_or_wrong_are_one_sentence(tmp_path):
  with pytest.raises(ValueError, match="Give --workdir"):
    train.train(tiny(), None)
  for text in ("10", "20:10", "a:b"):
    with pytest.raises(ValueError, match="such as --profile=10:20"):
      train.parse_profile(text)


def test_a_frozen_network_must_be_named():
  config = changed(objective__name="dcm")
  del config.nets["model"]
  with pytest.raises(ValueError, match=r"give --config\.nets\.teacher\.init=workdir:role:ema"):
    setup.build(config)


def test_another_architecture_is_refused_for_init_and_for_resuming(teacher):
  config = changed(model__dim=64, nets__model__init=f"{teacher}:model:ema")
  with pytest.raises(ValueError, match=r"another architecture: model.ema has action_embed/"):
    setup.load_initial(setup.build(config))
  with pytest.raises(ValueError, match=r"another model or objective: model.dim: 32 -> 64"):
    train.train(config, teacher)


def test_strings_of_an_objective_become_what_it_takes():
  objective = {"name": "flow_matching", "time": "lognormal:-0.5,1.2", "weight": "bell"}
  assert objectives.make_objective(objective, {}).roles == ("model",)
  from vidstep import paths

  parse = lambda text: objectives.parse_option("time", text, paths.Uniform())
  assert parse("uniform") == paths.Uniform() and parse("uniform:5") == paths.Uniform(5.0)
  assert parse("lognormal:-0.5,1.2") == paths.LogNormal(-0.5, 1.2)


def test_the_defaults_of_a_config_are_the_fields_of_the_network():
  fields = {f for f in VideoDiT.__dataclass_fields__ if f not in ("parent", "name")}
  assert set(common.model()) == fields


def test_batches_are_cut_into_context_and_what_follows_it():
  video = np.arange(2 * 4 * 4 * 4 * 3, dtype=np.uint8).reshape(2, 4, 4, 4, 3)
  clips = {"video": video, "actions": np.ones((2, 4, 5), np.float32)}
  batch = batches.make_prepare(load_codec("pixel"), 1, actions=True)(clips)
  expected = video.astype(np.float64) / 127.5 - 1
  np.testing.assert_allclose(batch.cond.context, expected[:, :1], atol=1e-6)
  np.testing.assert_allclose(batch.x0, expected[:, 1:], atol=1e-6)
  assert batch.cond.actions.shape == (2, 4, 5)  # of all frames, the context included
  bare = batches.make_prepare(load_codec("pixel"), 0, actions=False)(clips)
  assert bare.cond.context is None and bare.cond.actions is None and bare.x0.shape == video.shape
