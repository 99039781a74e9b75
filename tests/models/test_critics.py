"""The head of a critic against NumPy; the features that it is given against the network's own."""

import importlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from mutation import assert_caught, mutant
from random_params import randomised

from vidstep.models.cond import Cond
from vidstep.models.critics import Critic, critic_fn, features_fn

SOURCE = importlib.import_module("vidstep.models.critics")
T = np.float32([0.3, 0.8])
silu = lambda x: x / (1 + np.exp(-x))


def numpy_head(params, features, pooled):
  """Float64, one video at a time."""
  linear = lambda name, x: x @ np.float64(params[name]["kernel"]) + np.float64(params[name]["bias"])
  out = []
  for video in range(len(features[0])):
    gathered = []
    for i, feature in enumerate(features):
      h = np.float64(feature[video]).reshape(-1, feature.shape[-1])
      h = (h - h.mean(1, keepdims=True)) / np.sqrt(h.var(1, keepdims=True) + 1e-6)
      h = silu(linear(f"embed_{i}", h))
      if pooled:
        share = np.exp(linear(f"query_{i}", h))
        gathered.append((share / share.sum() * h).sum(0))
      else:
        gathered.append(linear(f"logit_{i}", silu(linear(f"hidden_{i}", h)))[:, 0])
    flat = np.concatenate(gathered)
    out.append(linear("logit", silu(linear("hidden", flat)))[0] if pooled else flat)
  return np.array(out)


def check_head(source, normal):
  features = [normal(2, 3, 2, 2, 6), normal(2, 3, 2, 2, 4)]
  for pooled, shape in ((True, (2,)), (False, (2, 24))):
    critic = source.Critic(dim=8, pooled=pooled)
    fresh = critic.init(jax.random.key(0), features)["params"]
    logits = source.critic_fn(critic)(fresh, features)
    assert logits.shape == shape and logits.dtype == jnp.float32 and not np.any(logits)
    params = randomised(fresh)
    got = source.critic_fn(critic)(params, features)
    np.testing.assert_allclose(got, numpy_head(params, features, pooled), rtol=1e-4, atol=1e-5)


def test_the_head_is_what_numpy_says_and_starts_undecided(normal):
  check_head(SOURCE, normal)


@pytest.mark.parametrize(
  ("old", "new"),
  [
    ("axis=1)\n        gathered", "axis=2)\n        gathered"),
    ('nn.silu(linear(self.dim, f"embed_{i}")(h))', 'linear(self.dim, f"embed_{i}")(h)'),
    ("h = layer_norm(feature.reshape", "h = (lambda a, b: a)(feature.reshape"),
    ("nn.initializers.zeros", "nn.initializers.ones"),
  ],
)
def test_a_wrong_head_fails_the_proof(old, new, normal):
  assert_caught(check_head, mutant(SOURCE, old, new), normal)


def test_a_head_in_bfloat16_answers_in_float32(normal):
  features = [normal(2, 1, 2, 2, 4)]
  critic = Critic(dim=8, dtype=jnp.bfloat16)
  params = randomised(critic.init(jax.random.key(0), features)["params"])
  logits = critic_fn(critic)(params, features)
  assert logits.dtype == jnp.float32
  np.testing.assert_allclose(logits, numpy_head(params, features, True), rtol=0.1, atol=0.1)


def check_features(source, net, normal):
  """Outputs of the blocks, for the frames of x only, with the network's parameters as they are."""
  model, params, _ = net(action_dim=2)
  x, context, actions = normal(2, 3, 4, 4, 2), normal(2, 2, 4, 4, 2), normal(2, 5, 2)
  cond = Cond(actions=actions, context=context)
  times = np.repeat(T[:, None], 5, 1) * np.float32([0, 0, 1, 1, 1])
  whole = model.clone(features=(0, 1)).apply(
    {"params": params}, np.concatenate([context, x], 1), times, cond=Cond(actions=actions)
  )
  for blocks in ((), (1,)):
    got = source.features_fn(model, blocks)(params, x, T, cond)
    want = [whole.features[i][:, 2:] for i in blocks or (0, 1)]
    assert [a.shape for a in got] == [(2, 3, 2, 2, model.dim)] * len(want)
    for a, b in zip(got, want, strict=True):
      np.testing.assert_allclose(a, b, atol=1e-5)


def test_features_are_those_of_the_noisy_frames(net, normal):
  check_features(SOURCE, net, normal)


@pytest.mark.parametrize(
  ("old", "new"),
  [
    ("a[:, -(x.shape[1] // model.patch[0]) :]", "a[:, : x.shape[1]]"),
    ("tuple(blocks) or tuple(range(model.depth))", "tuple(range(model.depth))"),
    ("run(params, x, t, cond)", "run(params, x, 1 - t, cond)"),
  ],
)
def test_wrong_features_fail_the_proof(old, new, net, normal):
  assert_caught(check_features, mutant(SOURCE, old, new), net, normal)


def test_what_cannot_be_judged_is_refused(net):
  model, _, _ = net()
  with pytest.raises(ValueError, match=r"Features of blocks \[2\]: the network has blocks 0 to 1"):
    features_fn(model, (0, 2))
  with pytest.raises(ValueError, match="A critic needs features"):
    Critic().init(jax.random.key(0), [])
