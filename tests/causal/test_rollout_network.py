"""Rollouts of a network, behind its packed forward and its key-value cache; their memory."""

import functools
import importlib
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from vidstep import samplers
from vidstep.causal.cached import CachedNetwork
from vidstep.causal.kv_cache import CachePolicy
from vidstep.causal.packed import PackedNetwork
from vidstep.masks import CausalChunks, TeacherForcing, Window
from vidstep.models import Cond, VideoDiT, velocity_fn
from vidstep.models.layout import plain

pytestmark = pytest.mark.usefixtures("unoptimized")

SOURCE = importlib.import_module("vidstep.causal.rollout")
SEEN, FRAMES, CHUNK = 2, 4, (1, 2)
CHUNKS = np.int32([0, 0, 1, 2, 2, 3])  # of all frames: context, one frame, two, the rest
OF = CHUNKS[SEEN:] - 1
TIMES = (1.0, 0.6)
KEY = jax.random.key(5)
QUICK = {"xla_backend_optimization_level": 0}


# ------------------------------------------------------------------------------------------------
# A network
# ------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def net():
  """A tiny VideoDiT with all its parameters drawn, none of them zero."""
  model = VideoDiT(
    dim=24, heads=2, depth=2, ffn_dim=32, in_channels=2, out_channels=2, action_dim=2,
    attention="xla",
  )  # fmt: skip
  shapes = jax.eval_shape(
    lambda: model.init(jax.random.key(0), jnp.zeros((1, 1, 4, 4, 2)), jnp.zeros(1))["params"]
  )
  leaves, tree = jax.tree.flatten(shapes)
  rng = np.random.default_rng(0)
  draw = lambda a: rng.normal(size=a.shape) * (0.3 if a.ndim == 1 else a.shape[-2] ** -0.5)
  drawn = [jnp.float32(draw(a) + (a.ndim == 1)) for a in leaves]
  return model, jax.tree.unflatten(tree, drawn)


def inputs(b=13):
  rng = np.random.default_rng(1)
  draw = lambda *shape: np.float32(rng.normal(size=(1, *shape)).repeat(b, 0))
  cond = Cond(actions=draw(SEEN + FRAMES, 2), context=draw(SEEN, 4, 4, 2))
  return draw(FRAMES, 4, 4, 2), cond


@functools.cache
def euler(model):
  """draw(params, noise, cond): three Euler steps a chunk."""
  network = PackedNetwork(velocity_fn(model, chunk=CHUNK), CHUNK)
  how = {"chunk": CHUNK, "times": samplers.timesteps(3, shift=2.0)[:-1], "solver": "euler"}
  return jax.jit(lambda params, x, cond: SOURCE.rollout(network, params, x, cond, KEY, **how)[0])


def test_a_network_rolls_out_as_it_does_behind_a_growing_sequence(net):
  """No packing, no buffer: context and finished frames at time 0, the chunk at t, and a loop."""
  model, params = net
  x, cond = inputs()
  got = np.asarray(euler(model)(params, x, cond))
  apply = jax.jit(
    lambda x, t, actions, chunks: model.apply(
      {"params": params}, x, t, cond=Cond(actions=actions),
      layout=plain(len(chunks), chunks=np.array(chunks), mask=CausalChunks()),
    ).v,
    static_argnums=3,
  )  # fmt: skip
  video, times = cond.context, samplers.timesteps(3, shift=2.0)
  for chunk in (1, 2, 3):
    now = x[:, chunk - 1 == OF]
    until = video.shape[1] + now.shape[1]
    for t, below in itertools.pairwise(times):
      clock = np.zeros((len(x), until), np.float32)
      clock[:, video.shape[1] :] = t
      packed = np.concatenate([video, now], 1)
      v = apply(packed, clock, cond.actions[:, :until], tuple(CHUNKS[:until].tolist()))
      now = now - (t - below) * np.asarray(v)[:, video.shape[1] :]
    video = np.concatenate([video, now], 1)
  np.testing.assert_allclose(got, video[:, SEEN:], atol=1e-4)


def test_causality_is_exact_and_every_allowed_input_matters(net):
  """One sample a change, one call; what is not allowed changes no bit."""
  model, params = net
  changes = [(n, f) for n, k in (("x", 4), ("actions", 6), ("context", 2)) for f in range(k)]
  x, cond = inputs(len(changes) + 1)
  arrays = {"x": x, "actions": cond.actions, "context": cond.context}
  for i, (name, f) in enumerate(changes):
    arrays[name][i, f] += 0.5
  video = np.asarray(euler(model)(params, x, cond))
  changed = np.abs(video[:-1] - video[-1:]).max((2, 3, 4)) > 0
  for (name, f), got in zip(changes, changed, strict=True):
    frame = f + SEEN if name == "x" else f
    np.testing.assert_array_equal(got, CHUNKS[SEEN:] >= CHUNKS[frame], err_msg=f"{name} {f}")


# ------------------------------------------------------------------------------------------------
# The same network behind its key-value cache
# ------------------------------------------------------------------------------------------------

WINDOW = Window(2, 1)  # of each frame: itself, the one before, and the first of the video


@pytest.fixture(scope="module")
def cached():
  """One block with actions and text, drawn at random; context, chunks of 2 and a remainder."""
  model = VideoDiT(
    dim=24, heads=2, depth=2, ffn_dim=32, in_channels=2, out_channels=2, action_dim=2, text_dim=4,
    attention="xla", scan=True,
  )  # fmt: skip
  cond = Cond(actions=jnp.zeros((1, 1, 2)), text=jnp.zeros((1, 3, 4)))
  shapes = jax.eval_shape(
    lambda: model.init(jax.random.key(0), jnp.zeros((1, 1, 4, 4, 2)), jnp.zeros(1), cond=cond)
  )["params"]
  leaves, tree = jax.tree.flatten(shapes)
  rng = np.random.default_rng(0)
  draw = lambda *s: np.float32(rng.normal(size=s))
  params = [jnp.asarray(0.3 * draw(*a.shape) + (a.ndim == 1)) for a in leaves]
  mask = np.array([[True, True, False], [True, True, True]])
  cond = Cond(
    text=draw(2, 3, 4), text_mask=mask, actions=draw(2, 7, 2), context=draw(2, 2, 4, 4, 2)
  )
  return model, jax.tree.unflatten(tree, params), draw(2, 5, 4, 4, 2), cond


def test_a_cache_rolls_out_what_the_packed_forward_does(cached):
  """Actions, text, context, a remainder chunk, a sink and a window; four reads of two steps."""
  model, params, x, cond = cached
  forced = PackedNetwork(velocity_fn(model, chunk=2, mask=WINDOW), 2)
  kept = CachedNetwork(model, CachePolicy(window=7, sink=1), TeacherForcing() & WINDOW)
  ring = CachedNetwork(model, CachePolicy(window=2, sink=1), TeacherForcing() & WINDOW)

  @functools.partial(jax.jit, static_argnums=0)
  def draw(network, x, cond):
    return SOURCE.rollout(network, params, x, cond, KEY, chunk=2, times=TIMES)[0]

  want = draw(forced, x, cond)
  np.testing.assert_allclose(draw(kept, x, cond), want, rtol=1e-4, atol=1e-4)
  np.testing.assert_allclose(draw(ring, x, cond), want, rtol=1e-4, atol=1e-4)
  other = cond.replace(text=cond.text + 1.0)
  assert float(jnp.abs(draw(kept, x, other) - want).max()) > 1e-2
  later = cond.replace(actions=cond.actions.copy())
  later.actions[:, 4:] += 1.0  # into frames of the second chunk and on: not a bit of the first
  moved = draw(kept, x, later)
  np.testing.assert_array_equal(moved[:, :2], draw(kept, x, cond)[:, :2])
  assert float(jnp.abs(moved[:, 2:] - want[:, 2:]).max()) > 1e-2


def test_gradients_behind_a_cache_are_those_of_a_plain_loop(cached):
  """Each chunk behind a cache built for it from fixed weights; its text, which is read, is not."""
  model, params, x, cond = cached
  x, cond = x[:, :3], cond.replace(actions=cond.actions[:, :5])
  network = CachedNetwork(model, CachePolicy(window=5, sink=1), TeacherForcing() & WINDOW)
  weights = np.float32(np.random.default_rng(1).normal(size=x.shape))
  frames = lambda a, b: Cond(actions=cond.actions[:, a:b])

  def plain(params):
    fixed, total = jax.lax.stop_gradient(params), 0.0
    cache, like = network.start(fixed, x, cond), network.start(params, x, cond)
    cache = network.append(fixed, cond.context, frames(0, 2), cache)
    for a, b in ((0, 2), (2, 3)):
      own, one = frames(2 + a, 2 + b), jnp.ones(2)
      told = jax.lax.stop_gradient(cache).replace(text=like.text)
      x0 = x[:, a:b] - network.read(params, x[:, a:b], one, own, told)
      total += jnp.sum(x0 * weights[:, a:b])
      cache = network.append(fixed, jax.lax.stop_gradient(x0), own, cache)
    return total

  def rolled(params):
    how = {"chunk": 2, "times": (1.0,), "gradient": "last_step"}
    return jnp.sum(SOURCE.rollout(network, params, x, cond, KEY, **how)[0] * weights)

  got, want = (
    jax.jit(jax.grad(run)).lower(params).compile(QUICK)(params) for run in (rolled, plain)
  )
  for (path, a), b in zip(jax.tree.leaves_with_path(got), jax.tree.leaves(want), strict=True):
    size = float(jnp.abs(b).max())
    assert size > 0, path
    np.testing.assert_allclose(a, b, rtol=1e-3, atol=1e-3 * size, err_msg=str(path))


def test_a_cache_too_short_to_be_read_again_is_refused(cached):
  model, params, x, cond = cached
  network = CachedNetwork(model, CachePolicy(window=5))
  how = {"chunk": 2, "times": (1.0,), "gradient": "last_step"}
  with pytest.raises(ValueError, match=r"keeps 5 frames, .* CachePolicy\(window=7\)"):
    jax.eval_shape(lambda params: SOURCE.rollout(network, params, x, cond, KEY, **how), params)


def test_gradients_of_the_last_steps_need_the_activations_of_one_chunk():
  """Temporary memory over frames, as compiled: keys and scores grow, activations do not.

  At this size 4.5, 6.6, 11.0 MiB for 4, 8, 16 frames with unrolled blocks (through everything 26,
  40, 81). One packed forward over the finished video has the same gradient, and 28, 96, 355.
  """
  model = VideoDiT(
    dim=64, heads=2, depth=4, in_channels=4, out_channels=4, action_dim=2, patch=(1, 2, 2),
    attention="xla", scan=True,
  )  # fmt: skip
  params = jax.eval_shape(
    lambda: model.init(jax.random.key(0), jnp.zeros((1, 1, 16, 16, 4)), jnp.zeros(1))["params"]
  )

  def rolled(params, x, actions):
    network = CachedNetwork(model, CachePolicy(window=x.shape[1]))
    how = {"chunk": 1, "times": (1.0,), "gradient": "last_step"}
    return SOURCE.rollout(network, params, x, Cond(actions=actions), KEY, **how)[0]

  def packed(params, x, actions):
    return velocity_fn(model, chunk=1)(params, x, x[:, :, 0, 0, 0], Cond(actions=actions, clean=x))

  def mebibytes(run, frames):
    shape = lambda *s: jax.ShapeDtypeStruct(s, jnp.float32)
    lowered = jax.jit(jax.grad(lambda *args: jnp.sum(run(*args)))).lower(
      params, shape(1, frames, 16, 16, 4), shape(1, frames, 2)
    )
    return lowered.compile(QUICK).memory_analysis().temp_size_in_bytes / 2**20

  growth = {run: (mebibytes(run, 16) - mebibytes(run, 8)) / 8 for run in (rolled, packed)}
  cache = 2 * 4 * 64 * 64 * 4 / 2**20  # keys and values of a frame: 4 blocks, 64 tokens, 64 wide
  assert growth[rolled] < 8 * cache
  assert growth[packed] > 10 * growth[rolled]
