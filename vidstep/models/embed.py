"""Patches in and out, and the embedding of time."""

import flax.linen as nn
import jax.numpy as jnp
import numpy as np

from vidstep.models.linear import Linear

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


def sinusoid(t, channels: int = FREQUENCIES):
  """[cos(1000 t w_i) | sin(1000 t w_i)], w_i = 10000^(-i / (channels/2)).

  The factor 1000 turns our t in [0, 1] into the timesteps that diffusion transformers are trained
  with; it appears nowhere else.

  Args:
    t: [...] float32 (or float64).
    channels: even number of channels.

  Returns:
    [..., channels] in the dtype of t.
  """
  half = channels // 2
  # Rounded where the networks in use round: at t = 1 the last bit of a rate moves an angle by 6e-5.
  exponent = np.float32(-np.log(10000.0)) * np.arange(half, dtype=np.float32) / np.float32(half)
  rates = np.exp(exponent.astype(np.float64)).astype(np.float32).astype(t.dtype)
  angle = (t * 1000)[..., None] * rates.reshape((1,) * t.ndim + (half,))
  return jnp.concatenate([jnp.cos(angle), jnp.sin(angle)], axis=-1)


class MLP(nn.Module):
  """Two linear layers with an activation between: the embedder of times, actions and text.

  Attributes:
    dim: width of both layers.
    dtype: compute dtype.
    act: activation.
    zero: start with a zero last layer, so that the embedding begins as nothing.
  """

  dim: int
  dtype: jnp.dtype
  act: object = nn.silu
  zero: bool = False

  @nn.compact
  def __call__(self, x):
    small = nn.initializers.normal(0.02)
    x = Linear(self.dim, self.dtype, small, name="in")(x)
    last = nn.initializers.zeros if self.zero else small
    return Linear(self.dim, self.dtype, last, name="out")(self.act(x))
