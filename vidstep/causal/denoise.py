"""One chunk behind a cache: the steps of a solver, and what they leave for later chunks."""

from typing import NamedTuple

import jax
import jax.numpy as jnp

from vidstep import paths, samplers
from vidstep.losses import parts
from vidstep.solvers import TWO_TIMES

# Solvers of one network call a step: their times and the number of steps may be traced.
SINGLE = ("consistency", "euler", "flow_map")
AGAIN = 1 << 16  # number of the draw that noises finished frames again; those of steps are 0, 1, ..


class Last(NamedTuple):
  """The last step of a chunk: its input x, its time t [B], and what came out."""

  x: jax.Array
  t: jax.Array
  x0: jax.Array


def denoise(
  network, params, noise, cond, cache, key, *, times, steps, solver, context,
  until=None, differentiable=False,
):  # fmt: skip
  """Denoises a chunk and appends it; see `vidstep.causal.rollout`, whose arguments these are.

  Args:
    network, params, noise, cond, cache, key, times, steps, solver, context: as in `next_chunk`.
    until: time to which the context is noised again where the last step was not made there.
    differentiable: whether gradients pass: loops of a traced length are then scans over all times.

  Returns:
    (`Last`, cache).
  """
  if solver not in SINGLE:
    field = lambda x, t, **s: network.read(params, x, t, cond, cache, **s)
    x0 = samplers.sample(field, noise, (*times, 0.0), solver=solver, key=key)
    return Last(x0, jnp.zeros(len(x0)), x0), network.append(params, x0, cond, cache)

  most = times.shape[-1]
  ends = lambda s: {"s": s} if solver in TWO_TIMES else {}
  clock = lambda i: jnp.broadcast_to(_pick(times, i), noise.shape[:1])

  def step(i, state):
    x, _ = state
    more = jnp.asarray(i + 1 < steps)
    t, below = clock(i), jnp.where(more, clock(i + 1), 0)
    x0 = jump(network.read(params, x, t, cond, cache, **ends(below)), x, t)
    if solver == "consistency":
      lower = paths.interpolate(x0, _noise(fold(key, i), x), below)
    else:
      lower = x0 + paths.expand(below / t, x) * (x - x0)
    return _where(more, lower, x), x0

  walk = lambda count: _repeat(step, count, (noise, noise), most, differentiable)
  t = clock(steps - 1)
  if context == "clean":
    x, x0 = walk(steps)
    return Last(x, t, x0), network.append(params, x0, cond, cache)

  x, _ = walk(steps - 1)
  zero = ends(jnp.zeros_like(t))
  together = lambda cache: network.read_append(params, x, t, cond, cache, **zero)
  if until is None:
    v, cache = together(cache)
    return Last(x, t, jump(v, x, t)), cache
  until = jnp.broadcast_to(until, t.shape)

  def noised_again(cache):
    v = network.read(params, x, t, cond, cache, **zero)
    noisy = paths.interpolate(jump(v, x, t), _noise(fold(key, AGAIN), x), until)
    return v, network.append(params, noisy, cond, cache, t=until)

  v, cache = jax.lax.cond(jnp.all(t == until), together, noised_again, cache)
  return Last(x, t, jump(v, x, t)), cache


def _repeat(step, count, state, most, differentiable):
  """state after step(0), .., step(count - 1), for each row its own count if count is [B]."""
  if isinstance(count, int) and count <= 1:
    return step(0, state) if count else state

  def one(i, state):
    new = step(i, state)
    if jnp.ndim(count) == 0:
      return new
    return jax.tree.map(lambda a, b: _where(i < count, a, b), new, state)

  last = jnp.max(count)
  if not differentiable:
    return jax.lax.fori_loop(0, count if isinstance(count, int) else last, one, state)
  maybe = lambda state, i: (jax.lax.cond(i < last, one, lambda i, state: state, i, state), None)
  return jax.lax.scan(maybe, state, jnp.arange(most, dtype=jnp.int32))[0]


def jump(v, x, t):
  """x0 = x - t v, float32 or wider."""
  return paths.x0_from_v(x, parts.wide(v), t)


def _pick(times, i):
  """Entry i of times [N] or [B, N], the last one beyond it; i a scalar, or [B]."""
  i = jnp.clip(jnp.asarray(i, jnp.int32), 0, times.shape[-1] - 1)
  if i.ndim == 0:
    return times[..., i]
  rows = jnp.broadcast_to(times, (*i.shape, times.shape[-1]))
  return jnp.take_along_axis(rows, i[:, None], axis=1)[:, 0]


def _where(mask, a, b):
  """jnp.where with mask a scalar or [B]."""
  return jnp.where(mask.reshape(mask.shape + (1,) * (a.ndim - mask.ndim)), a, b)


def fold(key, i):
  """The key of draw i; of each of [B] keys."""
  one = lambda key: jax.random.fold_in(key, i)
  return jax.vmap(one)(key) if key.ndim else one(key)


def _noise(key, x):
  """Noise like x: from one key, or from each row's own."""
  if key.ndim == 0:
    return parts.noise_like(key, x)
  return jax.vmap(parts.noise_like)(key, x)
