"""A rollout is a plain loop over chunks, to rounding; its causality is exact."""

import importlib
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from mutation import assert_caught, mutant

from vidstep import samplers
from vidstep.losses import Batch
from vidstep.masks import CausalChunks
from vidstep.models import Cond, VideoDiT, velocity_fn
from vidstep.models.layout import plain

SOURCE = importlib.import_module("vidstep.causal.rollout")
SEEN, FRAMES, CHUNK = 2, 4, (1, 2)
CHUNKS = np.int32([0, 0, 1, 2, 2, 3])  # of all frames: context, one frame, two, the rest
OF = CHUNKS[SEEN:] - 1
TIMES, FIRST = (1.0, 0.6), (1.0, 0.8, 0.4)
KEY = jax.random.key(5)
noise = lambda s, shape: jax.random.normal(jax.random.fold_in(KEY, s), shape)


@pytest.fixture(scope="module", autouse=True)
def compiled_in_a_hurry():
  """To optimize these programs would take longer than to run them."""
  jax.config.update("jax_disable_most_optimizations", True)
  yield
  jax.config.update("jax_disable_most_optimizations", False)


# ------------------------------------------------------------------------------------------------
# A linear student against NumPy
# ------------------------------------------------------------------------------------------------

ALL = (1.0, 0.8, 0.6, 0.4)
OWN, PAST = np.float32([OF[:, None] == OF[None], OF[:, None] > OF[None]])


def linear(params, x, t, cond):
  """`f = W(t) x + N(t) clean + P(t) action`, x of the own chunk, clean of earlier ones."""
  at = (jnp.abs(t[..., None] - jnp.float32(ALL)[None, None]) < 1e-3).astype(jnp.float32)
  flat = lambda a: a.reshape(*a.shape[:2], -1)
  f = jnp.einsum("bfk,kfg,bgd->bfd", at, params["W"] * OWN[None], flat(x))
  f += jnp.einsum("bfk,kfg,bgd->bfd", at, params["N"] * PAST[None], flat(cond.clean))
  f += jnp.einsum("bfk,kf,bfd->bfd", at, params["P"], cond.actions[:, SEEN:])
  return (x - f.reshape(x.shape)) / t.reshape(*t.shape, 1, 1, 1)


def setting():
  rng = np.random.default_rng(0)
  draw = lambda *shape: np.float32(rng.normal(size=shape))
  params = {"W": draw(4, FRAMES, FRAMES), "N": draw(4, FRAMES, FRAMES), "P": draw(4, FRAMES)}
  cond = Cond(actions=draw(3, SEEN + FRAMES, 2), clean=draw(3, FRAMES, 1, 1, 2))
  return params, Batch(draw(3, FRAMES, 1, 1, 2), cond), draw(3, FRAMES, 2)


def numpy_loop(params, actions, depth):
  """Chunk after chunk, step after step, float64; and what the last steps were given."""
  video, last = np.zeros((3, FRAMES, 2)), np.zeros((3, FRAMES, 2))
  when = np.zeros(FRAMES, int)
  for i in range(OF[-1] + 1):
    times = (FIRST if i == 0 else TIMES)[:depth]
    now = np.flatnonzero(i == OF)
    for s, t in enumerate(times):
      k = ALL.index(t)
      x = np.asarray(noise(s, (3, FRAMES, 1, 1, 2)), np.float64)[:, now, 0, 0]
      x = x if s == 0 else (1 - t) * f + t * x  # noqa: F821
      f = np.einsum("fg,bgd->bfd", params["W"][k][np.ix_(now, now)], x)
      f += np.einsum("fg,bgd->bfd", params["N"][k][now][:, : now[0]], video[:, : now[0]])
      f += params["P"][k][now][None, :, None] * actions[:, SEEN + now]
    video[:, now], last[:, now], when[now] = f, x, k
  return video, last, when


def check_values(source, depth):
  """The video, and the gradient of the last step of every chunk with its past held fixed."""
  params, batch, weights = setting()
  generate = source.self_rollout(linear, chunk=CHUNK)

  def scalar(params):
    x0 = generate(params, batch, KEY, times=TIMES, first_times=FIRST, depth=jnp.int32(depth))
    return jnp.sum(x0 * weights[:, :, None, None]), x0

  grads, got = jax.jit(jax.grad(scalar, has_aux=True))(params)
  video, last, when = numpy_loop(params, batch.cond.actions, depth)
  np.testing.assert_allclose(np.asarray(got)[:, :, 0, 0], video, rtol=1e-4, atol=1e-5)

  want = {name: np.zeros_like(p, np.float64) for name, p in params.items()}
  for f in range(FRAMES):
    at = want["W"][when[f]], want["N"][when[f]], want["P"][when[f]]
    at[0][f] = OWN[f] * np.einsum("bd,bgd->g", weights[:, f], last)
    at[1][f] = PAST[f] * np.einsum("bd,bgd->g", weights[:, f], video)
    at[2][f] = np.sum(weights[:, f] * batch.cond.actions[:, SEEN + f])
  for name in want:
    np.testing.assert_allclose(grads[name], want[name], rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("depth", [1, 2, 3])
def test_it_is_a_plain_loop_and_trains_each_last_step_alone(depth):
  check_values(SOURCE, depth)


@pytest.mark.parametrize(
  ("old", "new"),
  [
    ("[first_times or times]", "[times]"),
    ("chunk_index(batch.x0.shape[1], chunk)", "chunk_index(batch.x0.shape[1], (1, 3))"),
    ("interpolate(f, eps, grid[i, s])", "interpolate(f, eps, grid[i, 0])"),
    ("interpolate(f, eps, grid[i, s])", "interpolate(empty, eps, grid[i, s])"),
    ("fold_in(key, s)", "fold_in(key, 0)"),
    ("steps[:, None] - 1", "0 * steps[:, None]"),
    ("grid[i, s], clean)", "grid[i, s], batch.cond.clean)"),  # the data instead of its own past
    ("last[None], clean)", "last[None], 0 * clean)"),
    ("_put(noisy, x, index == i)", "_put(noisy, x, index >= 0)"),
  ],
)
def test_another_rollout_fails_the_proof(old, new):
  assert_caught(check_values, mutant(SOURCE, old, new), 3)


def test_gradients_through_the_past_would_be_others():
  """The same loop in JAX: equal with its past detached, and not equal without."""
  params, batch, weights = setting()

  def loop(params, detach):
    video = jnp.zeros((3, FRAMES, 1, 1, 2))
    x = noise(0, video.shape)
    for i in range(OF[-1] + 1):
      cond = batch.cond.replace(clean=detach(video))
      f = x - linear(params, x, jnp.ones((3, FRAMES)), cond)
      video = jnp.where((i == OF)[None, :, None, None, None], f, video)
    return jnp.sum(video * weights[:, :, None, None])

  def rolled(params):
    generate = SOURCE.self_rollout(linear, chunk=CHUNK)
    x0 = generate(params, batch, KEY, times=(1.0,), first_times=(), depth=1)
    return jnp.sum(x0 * weights[:, :, None, None])

  got = jax.grad(rolled)(params)
  gap = lambda detach: max(
    float(jnp.abs(a - b).max())
    for a, b in zip(*map(jax.tree.leaves, (got, jax.grad(loop)(params, detach))), strict=True)
  )
  assert gap(jax.lax.stop_gradient) < 1e-4 < 0.1 < gap(lambda video: video)


def test_only_the_forwards_that_are_needed_are_executed():
  calls = []

  def counted(params, x, t, cond):
    jax.debug.callback(lambda t: calls.append(float(t)), t[0, -1])
    return params * x

  generate = SOURCE.self_rollout(counted, chunk=CHUNK)
  _, batch, _ = setting()
  run = jax.jit(
    lambda n: generate(jnp.float32(1), batch, KEY, times=TIMES, first_times=FIRST, depth=n)
  )
  for depth, steps in ((1, 1 + 1 + 1), (2, 2 + 2 + 2), (3, 3 + 2 + 2)):
    calls.clear()
    jax.block_until_ready(run(depth))
    jax.effects_barrier()
    assert len(calls) == steps + 1


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


def inputs(b=2):
  rng = np.random.default_rng(1)
  draw = lambda *shape: np.float32(rng.normal(size=(1, *shape)).repeat(b, 0))
  cond = Cond(actions=draw(SEEN + FRAMES, 2), context=draw(SEEN, 4, 4, 2))
  return draw(FRAMES, 4, 4, 2), cond


def euler(model):
  """draw(params, noise, cond): three Euler steps a chunk."""
  velocity = velocity_fn(model, chunk=CHUNK)
  times = samplers.timesteps(3, shift=2.0)

  @jax.jit
  def draw(params, x, cond):
    return SOURCE.rollout(
      lambda x, t, cond: velocity(params, x, t, cond),
      lambda field, x: samplers.sample(field, x, times),
      x,
      cond,
      chunk=CHUNK,
    )

  return draw


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
      clock = np.zeros((2, until), np.float32)
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


def test_self_rollout_of_a_network_is_the_sampler_that_renoises(net):
  """The packed replay gives what the loop gave, and its gradient reaches every parameter."""
  model, params = net
  x, cond = inputs()
  velocity = velocity_fn(model, chunk=CHUNK)
  generate = SOURCE.self_rollout(velocity, chunk=CHUNK)
  batch = Batch(x, cond.replace(clean=1e6 * x))  # data in the condition is not looked at

  @jax.jit
  def both(params):
    def scalar(params):
      x0 = generate(params, batch, KEY, times=TIMES, first_times=(), depth=2)
      return jnp.mean(x0**2), x0

    def denoise(field, x):
      f = jnp.zeros_like(x)
      for s, t in enumerate(TIMES):
        x = (1 - t) * f + t * noise(s, x.shape)
        f = x - t * field(x, jnp.full(2, t, jnp.float32))
      return f

    at = lambda x, t, cond: velocity(params, x, t, cond)
    rolled = SOURCE.rollout(at, denoise, x, cond, chunk=CHUNK)
    return jax.grad(scalar, has_aux=True)(params), rolled

  (grads, got), want = both(params)
  np.testing.assert_allclose(got, want, atol=1e-4)
  assert all(float(jnp.abs(g).max()) > 0 for g in jax.tree.leaves(grads))
