"""Which dtype norms, modulation, times and rotations are computed in."""

import jax.numpy as jnp


def stat_dtype(dtype) -> jnp.dtype:
  """float32 for every compute dtype, except that float64 stays float64 (used by the tests)."""
  return jnp.dtype(jnp.float64 if dtype == jnp.float64 else jnp.float32)


def kept_dtype(path: str, dtype):
  """Dtype that a frozen parameter is kept in, if large ones are kept in `dtype`.

  Matrices of the blocks are as good as all of a network, and are computed in its compute dtype.
  Norms, biases, modulation and the embedding of time are small, and are computed in float32.

  Args:
    path: of the parameter, "blocks/ffn_in/kernel".
    dtype: of the large ones.
  """
  small = path.startswith("time_") or path.rpartition("/")[2] not in ("kernel", "embed")
  return jnp.dtype(jnp.float32 if small else dtype)
