"""Patches in and out, and the embedding of time."""

import flax.linen as nn
import jax.numpy as jnp
import numpy as np

from vidstep.models.linear import Linear
from vidstep.models.norms import AffineNorm

FREQUENCIES = 256  # channels of the sinusoidal embedding, as in Wan and DiT


def patchify(x, patch):
  """[B, F, H, W, C] -> [B, F/pt, H/ph, W/pw, pt*ph*pw*C]."""
  b, f, h, w, c = x.shape
  pt, ph, pw = patch
  x = x.reshape(b, f // pt, pt, h // ph, ph, w // pw, pw, c)
  x = x.transpose(0, 1, 3, 5, 2, 4, 6, 7)
  return x.reshape(b, f // pt, h // ph, w // pw, pt * ph * pw * c)


def unpatchify(x, patch):
  """[B, F/pt, H/ph, W/pw, pt*ph*pw*C] -> [B, F, H, W, C]; the inverse of `patchify`."""
  b, f, h, w, _ = x.shape
  pt, ph, pw = patch
  x = x.reshape(b, f, h, w, pt, ph, pw, -1)
  x = x.transpose(0, 1, 4, 2, 5, 3, 6, 7)
  return x.reshape(b, f * pt, h * ph, w * pw, -1)


def sinusoid(timestep, channels: int = FREQUENCIES):
  """[cos(timestep w_i) | sin(timestep w_i)], w_i = 10000^(-i / (channels/2)).

  Args:
    timestep: [...] float32 (or float64), a time t in [0, 1] times the network's `time_scale`.
    channels: even number of channels.

  Returns:
    [..., channels] in the dtype of timestep.
  """
  half = channels // 2
  # Rounded where the networks in use round: at t = 1 the last bit of a rate moves an angle by 6e-5.
  exponent = np.float32(-np.log(10000.0)) * np.arange(half, dtype=np.float32) / np.float32(half)
  rates = np.exp(exponent.astype(np.float64)).astype(np.float32).astype(timestep.dtype)
  angle = timestep[..., None] * rates.reshape((1,) * timestep.ndim + (half,))
  return jnp.concatenate([jnp.cos(angle), jnp.sin(angle)], axis=-1)


class ImageEmbed(nn.Module):
  """Wan's embedder of image tokens: norm, two linear layers with an exact GELU between, norm.

  Attributes:
    dim: width of the output.
    dtype: compute dtype.
  """

  dim: int
  dtype: jnp.dtype

  @nn.compact
  def __call__(self, x):
    x = AffineNorm(name="norm1")(x.astype(self.dtype))
    x = nn.gelu(Linear(x.shape[-1], self.dtype, name="in")(x), approximate=False)
    return AffineNorm(name="norm2")(Linear(self.dim, self.dtype, name="out")(x))


class MLP(nn.Module):
  """Two linear layers with an activation between: the embedder of times, actions and text.

  Attributes:
    dim: width of both layers.
    dtype: compute dtype.
    act: activation.
    zero: start with a zero last layer, so that the embedding begins as nothing.
    init: initializer of both layers.
  """

  dim: int
  dtype: jnp.dtype
  act: object = nn.silu
  zero: bool = False
  init: object = nn.initializers.normal(0.02)

  @nn.compact
  def __call__(self, x):
    x = Linear(self.dim, self.dtype, self.init, name="in")(x)
    last = nn.initializers.zeros if self.zero else self.init
    return Linear(self.dim, self.dtype, last, name="out")(self.act(x))
