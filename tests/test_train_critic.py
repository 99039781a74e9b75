"""experiments.train with a critic: its head is built, trained, checkpointed and restored."""

import jax
import numpy as np
import pytest
from mutation import assert_caught, mutant
from random_params import randomised

from configs import synthetic
from configs.common import net
from experiments import networks, setup, train
from vidstep.masks import Window
from vidstep.models.dit import VideoDiT
from vidstep.training.checkpoint import load_network
from vidstep.training.log import read_metrics
from vidstep.training.step import make_step


def tiny(**train):
  config = synthetic.get_config("tiny")
  config.data.path = "synthetic:clips=16,frames=4,size=16"
  config.train.update(train)
  return config


pytestmark = pytest.mark.usefixtures("unoptimized", "one_device")


@pytest.fixture(scope="module")
def teacher(tmp_path_factory):
  workdir = tmp_path_factory.mktemp("teacher")
  train.train(tiny(steps=1, save_every=1), workdir)
  return workdir


def adversarial(teacher, name="dmd2_gan", **objective):
  config = tiny(steps=2, save_every=2)
  config.objective = {"name": name, "times": (1.0, 0.6), **objective}
  config.critic.update(dim=8)
  config.nets = {}
  roles = ("teacher", "student") if name == "ladd" else ("teacher", "student", "fake")
  for role in roles:
    config.nets[role] = net(f"{teacher}:model:ema")
  config.nets.critic = net(optim={"lr": 1e-3})
  return config


def test_a_run_with_a_critic_trains_and_is_restored(teacher, tmp_path, capsys):
  workdir = tmp_path / "student"
  config = adversarial(teacher, ratio=2, r1=1.0)
  state = train.train(config, workdir)
  said = capsys.readouterr().out
  assert "compiling step (fake, critic)" in said and "compiling step (student)" in said
  first, second = read_metrics(workdir)
  assert {"critic/loss", "critic/r1", "fake/loss"} < set(first) and "student/loss" in second
  assert all(np.isfinite(value) for value in (first | second).values())
  _, head = load_network(f"{workdir}:critic:ema")
  assert head["embed_0"]["kernel"].shape == (32, 8) and np.any(head["logit"]["kernel"])

  again = train.train(config, workdir)  # restores all roles, the head among them
  assert "already trained to step 2" in capsys.readouterr().out
  jax.tree.map(
    np.testing.assert_array_equal, again.nets["critic"].params, state.nets["critic"].params
  )


@pytest.mark.parametrize(
  "name", sorted({"dmd2_gan", "f_distill", "ladd"} & set(setup.losses.OBJECTIVES))
)
def test_every_adversarial_objective_finds_its_networks(teacher, name):
  config = adversarial(teacher, name)
  config.critic.pooled = name != "ladd"
  run = setup.build(config)
  shapes = jax.eval_shape(lambda key: run.init(key, {}), jax.random.key(0))
  assert "logit" in str(jax.tree.structure(shapes.nets["critic"].params))
  frozen = {"teacher": jax.eval_shape(run.fresh["student"], jax.random.key(0))}
  for roles in (run.objective.due(0), ("student",)):
    step = make_step(run.objective, run.optimizers, run.emas, roles)
    state, metrics = jax.eval_shape(step, shapes, frozen, run.example)
    assert jax.tree.structure(state) == jax.tree.structure(shapes)
    assert {f"{role}/loss" for role in roles} <= set(metrics)


def check_window(networks):
  """Features of a network that attends to a window know nothing of frames outside of it."""
  fields = {"dim": 16, "heads": 1, "depth": 1, "patch": (1, 2, 2), "ffn_dim": 8}
  model = VideoDiT(**fields, in_channels=1, out_channels=1, attention="xla")
  x = np.random.default_rng(0).standard_normal((2, 1, 4, 2, 2, 1)).astype(np.float32)
  x[1, :, 1:] = x[0, :, 1:]  # videos that differ in frame 0
  t = np.float32([0.5])
  params = randomised(jax.eval_shape(model.init, jax.random.key(0), x[0], t)["params"])
  config = {"objective": {"name": "dmd2_gan"}, "critic": {"blocks": ()}}
  causal = {"fake": networks.Causal(model, chunk=1, mask=Window(2))}
  host, features = networks.critic_features(config, causal)
  assert host == "fake"
  for see in (lambda v: features(params, v, t)[0], lambda v: causal[host].velocity(params, v, t)):
    differ = np.abs(see(x[0]) - see(x[1])).reshape(4, -1).max(1)
    assert (differ[:2] > 1e-3).all() and not differ[2:].any()


def test_features_are_taken_under_the_mask_of_the_velocity():
  check_window(networks)
  unmasked = mutant(networks, "chunk=self.chunk, mask=self.mask)", "chunk=self.chunk)")
  assert_caught(check_window, unmasked)


def test_a_critic_is_not_sized_as_a_network(teacher):
  config = adversarial(teacher)
  config.nets.critic.model.dim = 64
  with pytest.raises(ValueError, match=r"give --config\.critic\.dim"):
    setup.build(config)
  config = adversarial(teacher)
  config.critic.blocks = (3,)
  with pytest.raises(ValueError, match=r"the network has blocks 0 to 0"):
    setup.build(config)
