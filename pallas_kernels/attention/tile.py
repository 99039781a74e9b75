"""What kernels in plain JAX and on TPU share: the softmax of a tile, streamed, and their layout."""

import jax.numpy as jnp

FLOOR = -1e30  # of the running maximum: finite, so that a row without keys gives 0 and not NaN


def online_softmax(s, top, allowed):
  """New row maximum, the factor that brings old sums to it, and exp(s - maximum)."""
  s = s if allowed is None else jnp.where(allowed, s, -jnp.inf)
  new = jnp.maximum(top, s.max(-1, keepdims=True))
  return new, jnp.exp(top - new), jnp.exp(s - new)


def probabilities(s, lse, allowed):
  """`exp(s - lse)`, 0 where the mask says no."""
  p = jnp.exp(s - lse)
  return p if allowed is None else jnp.where(allowed, p, 0)


def row_sum(p):
  """Sum over the keys of a tile, one column."""
  return p.sum(-1, keepdims=True)


def divide(x, total):
  """`x / total`, x where a row had no key."""
  return x / jnp.where(total > 0, total, 1)


def log_sum_exp(top, total):
  """`top + log total`, -inf where a row had no key."""
  return jnp.where(total > 0, top + jnp.log(total), -jnp.inf)


def heads(*arrays):
  """`[B, N, H, D]` to `[B, H, N, D]`; None stays None."""
  return tuple(None if x is None else x.swapaxes(1, 2) for x in arrays)


def tokens(x):
  """`[B, H, N, D]` to `[B, N, H, D]`."""
  return x.swapaxes(1, 2)
