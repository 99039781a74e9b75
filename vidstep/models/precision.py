"""Which dtype norms, modulation, times and rotations are computed in."""

import jax.numpy as jnp


def stat_dtype(dtype) -> jnp.dtype:
  """float32 for every compute dtype, except that float64 stays float64 (used by the tests)."""
  return jnp.dtype(jnp.float64 if dtype == jnp.float64 else jnp.float32)
