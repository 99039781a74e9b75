"""Behind a cache, chunk by chunk, a network is what it is in the packed, teacher-forced forward."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from vidstep.causal.cached import CachedNetwork
from vidstep.causal.kv_cache import CachePolicy
from vidstep.masks import TeacherForcing, Window
from vidstep.models import Cond, VideoDiT, velocity_fn

SEEN, FRAMES, CHUNK = 2, 7, (1, 2)  # context, then chunks of 1, 2, 2, 2
STARTS = (0, 1, 3, 5)
B = 2


@pytest.fixture(scope="module", autouse=True)
def compiled_in_a_hurry():
  """To optimize these programs would take longer than to run them."""
  jax.config.update("jax_disable_most_optimizations", True)
  yield
  jax.config.update("jax_disable_most_optimizations", False)


def randomised(shapes, seed=0):
  """Every parameter drawn anew, none small: a term that is lost must show."""
  leaves, tree = jax.tree.flatten(shapes)
  rng = np.random.default_rng(seed)

  def draw(a):
    scale = 0.3 if a.ndim == 1 else a.shape[-2] ** -0.5
    return jnp.asarray(rng.standard_normal(a.shape) * scale + (a.ndim == 1), a.dtype)

  return jax.tree.unflatten(tree, [draw(a) for a in leaves])


@functools.cache
def net(**fields):
  """A tiny network with text, actions and a second time, and random parameters."""
  fields = {"second_time": True, "text_dim": 3, "action_dim": 2, "attention": "xla"} | fields
  model = VideoDiT(dim=24, heads=2, depth=2, ffn_dim=32, in_channels=2, out_channels=2, **fields)
  x = jnp.zeros((1, 1, 4, 4, 2))
  shapes = jax.eval_shape(lambda: model.init(jax.random.key(0), x, jnp.zeros(1))["params"])
  return model, randomised(shapes)


def example():
  rng = np.random.default_rng(1)
  draw = lambda *shape: np.float32(rng.normal(size=(B, *shape)))
  cond = Cond(
    text=draw(3, 3),
    text_mask=np.array([[1, 1, 1], [1, 0, 1]], bool),
    actions=draw(SEEN + FRAMES, 2),
    context=draw(SEEN, 4, 4, 2),
    clean=draw(FRAMES, 4, 4, 2),
  )
  t = np.float32([[0.3] + [0.4] * 2 + [0.9] * 2 + [0.7] * 2, [0.8] + [0.6] * 2 + [0.2] * 4])
  return draw(FRAMES, 4, 4, 2), t, cond


def cut(cond, start, stop):
  return Cond(actions=cond.actions[:, start:stop])


def cached(network, params, x, t, cond):
  """Velocity of every chunk behind a cache of the clean ones before it."""
  cache = network.start(params, x, cond)
  cache = network.append(params, cond.context, cut(cond, 0, SEEN), cache)
  out = []
  for start, stop in zip(STARTS, (*STARTS[1:], FRAMES), strict=True):
    part, now = cut(cond, SEEN + start, SEEN + stop), slice(start, stop)
    out.append(network.read(params, x[:, now], t[:, now], part, cache, s=t[:, now] / 2))
    cache = network.append(params, cond.clean[:, now], part, cache)
  return jnp.concatenate(out, 1)


RULES = {
  "everything": (CachePolicy(9), None),
  "window by frame": (CachePolicy(4, sink=1), Window(5, sink=1)),
  "window by chunk": (CachePolicy(2), Window(2, by="chunk")),
  "relative": (CachePolicy(3, sink=2, positions="relative"), Window(4, sink=2)),
  "capped": (CachePolicy(3, sink=2, positions="capped", cap=4), Window(4, sink=2)),
}


@pytest.mark.parametrize("name", RULES)
def test_behind_a_cache_it_is_the_packed_forward(name):
  policy, window = RULES[name]
  model, params = net(scan=name == "relative")
  mask = TeacherForcing() if window is None else TeacherForcing() & window
  network = CachedNetwork(model, policy, mask)
  velocity = velocity_fn(model, chunk=CHUNK, mask=window, positions=policy.rope)
  x, t, cond = example()
  want = jax.jit(lambda *a: velocity(*a, s=t / 2))(params, x, t, cond)
  got = jax.jit(functools.partial(cached, network))(params, x, t, cond)
  np.testing.assert_allclose(got, want, atol=1e-5)
