"""Pieces that objectives share: precision, times a frame, guidance, means and time bins."""

import dataclasses

import jax
import jax.numpy as jnp

from vidstep import samplers
from vidstep.masks import chunk_index
from vidstep.paths import Uniform, wider

BINS = 4
UNIFORM = Uniform()


def wide(x):
  """x in float32, or wider if it already is: losses never compute in the network's bfloat16."""
  return x.astype(wider(x.dtype, jnp.float32))


def draw_times(time, key, x0, chunk=None):
  """Times for a batch of videos x0 [B, F, ...].

  Args:
    time: sampler with `.sample(key, shape)` (`vidstep.paths`).
    key: PRNG key.
    x0: the videos.
    chunk: None for one time a video; k for an independent time for each k frames (diffusion
      forcing, Chen et al. 2024; the last chunk may be shorter), (first, k) if the first chunk has
      another length.

  Returns:
    float32 [B], or [B, F] where chunk is given.

  Raises:
    ValueError: if chunk is not positive.
  """
  batch, frames = x0.shape[:2]
  if chunk is None:
    return time.sample(key, (batch,))
  index = chunk_index(frames, chunk)
  return time.sample(key, (batch, index[-1] + 1))[:, index]


def mean_like(error, t):
  """Mean of error [B, F, ...] over all axes that t [B] or [B, F] does not have; shape of t."""
  return jnp.mean(error, axis=tuple(range(t.ndim, error.ndim)))


def apply_guidance(velocity, guidance, unconditional):
  """`v_u + w (v_c - v_u)` as a velocity of the same signature; w = 1 costs one forward, not two.

  Raises:
    ValueError: if w is not 1 and there is no `unconditional(cond)`.
  """
  if guidance == 1:
    return velocity
  if unconditional is None:
    raise ValueError(
      f"guidance={guidance} needs unconditional=..., a function cond -> cond without the condition "
      "(vidstep.models.null_cond), or guidance=1."
    )

  def guided(params, x, t, cond):
    empty = unconditional(cond)
    return samplers.guided(
      lambda x, t: velocity(params, x, t, cond),
      lambda x, t: velocity(params, x, t, empty),
      guidance,
    )(x, t)

  return guided


def by_time(name, value, t, time):
  """Mean of `value` in each quarter of [0, 1], as scalars `name_t0` (clean) .. `name_t3` (noise).

  Each is an unbiased estimate, `mean(value 1[t in bin]) / P(t in bin)`, and not a mean over the
  samples that happen to be there: it is never NaN, and averaging it over steps, microbatches or
  devices is exact. Bins that `time` never reaches read 0.

  Args:
    name: prefix.
    value: array of the shape of t.
    t: times.
    time: the sampler of t, for its `.cdf`.
  """
  edges = jnp.linspace(0.0, 1.0, BINS + 1, dtype=jnp.float32)
  mass = jnp.diff(time.cdf(edges))
  index = jnp.minimum((t * BINS).astype(jnp.int32), BINS - 1)
  value = jax.lax.stop_gradient(value)
  return {
    f"{name}_t{k}": jnp.mean(jnp.where(index == k, value, 0)) / jnp.maximum(mass[k], 1e-6)
    for k in range(BINS)
  }


def drop_condition(cond, unconditional, probability, key, batch):
  """Replaces each sample's condition by the unconditional one with the given probability.

  Raises:
    ValueError: if `unconditional` changes the structure of cond.
  """
  empty = unconditional(cond)
  if jax.tree.structure(empty) != jax.tree.structure(cond):
    raise ValueError(
      "Condition dropout mixes cond and unconditional(cond) per sample, so both must have the same "
      f"fields; got {jax.tree.structure(cond)} and {jax.tree.structure(empty)}. "
      "With text, pass an explicit text_mask."
    )
  dropped = jax.random.bernoulli(key, probability, (batch,))
  mix = lambda c, e: jnp.where(dropped.reshape((batch,) + (1,) * (c.ndim - 1)), e, c)
  return jax.tree.map(mix, cond, empty)


def noise_like(key, x):
  """Standard normal noise of the shape of x, at least float32."""
  return jax.random.normal(key, x.shape, wider(x.dtype, jnp.float32))


def check_choice(name, value, choices):
  """Raises a ValueError that lists the choices, unless value is one of them."""
  if value not in choices:
    raise ValueError(f"{name} must be one of {', '.join(choices)}, got {value!r}.")


@dataclasses.dataclass(frozen=True)
class OneOf:
  """A time sampler that picks from a list, each entry as likely as any other."""

  times: tuple[float, ...]

  def sample(self, key, shape=()):
    """Draws float32 times of the given shape."""
    grid = jnp.asarray(self.times, jnp.float32)
    return grid[jax.random.randint(key, shape, 0, len(self.times), jnp.int32)]

  def cdf(self, t):
    """Share of the list below t [N]; 1 is below nothing, so that `by_time` counts it."""
    t = t[:, None]
    return jnp.mean((jnp.asarray(self.times, jnp.float32)[None] < t) | (t >= 1), 1, jnp.float32)
