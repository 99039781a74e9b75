"""The layer norm of image encoders and image embeddings."""

import flax.linen as nn
import jax
import jax.numpy as jnp

from vidstep.models.precision import stat_dtype


class AffineNorm(nn.Module):
  """(x - mean) / sqrt(var + 1e-5) * scale + bias in float32, returned in the dtype of x."""

  @nn.compact
  def __call__(self, x: jax.Array) -> jax.Array:
    """[B, N, C] -> [B, N, C]."""
    stat, shape = stat_dtype(x.dtype), (x.shape[-1],)
    scale = self.param("scale", nn.initializers.ones, shape).astype(stat)
    bias = self.param("bias", nn.initializers.zeros, shape).astype(stat)
    y = x.astype(stat)
    y = y - y.mean(-1, keepdims=True)
    y = y * jax.lax.rsqrt(jnp.square(y).mean(-1, keepdims=True) + 1e-5)
    return (y * scale[None, None] + bias[None, None]).astype(x.dtype)
