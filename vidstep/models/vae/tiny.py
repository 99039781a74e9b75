"""A small decoder of Wan's latents for speed and previews: the architecture of TAEHV."""

import flax.linen as nn
import jax
import jax.numpy as jnp

from vidstep.models.linear import Linear
from vidstep.models.precision import stat_dtype
from vidstep.models.vae.layers import STREAM, Conv2d, DoubleSpace


class TinyDecoder(nn.Module):
  """Decoder of TAEHV (madebyollin/taehv; `taew2_1` for Wan 2.1): convolutions within frames.

  Frames reach each other through one frame of memory in every block, so it streams as `WanVAE`
  does, by `vidstep.models.vae.decode_chunk`, and gives the same number of frames. It has 11 million
  parameters, decodes some ten times as fast, and loses fine detail.

  Attributes:
    channels: of a latent.
    widths: channels of the levels, the coarsest first; every level but the last is doubled.
    temporal: for each doubling of the sides, whether it doubles the frame rate as well.
    depth: blocks of a level.
    dtype: compute dtype.
  """

  channels: int = 16
  widths: tuple[int, ...] = (256, 128, 64, 64)
  temporal: tuple[bool, ...] = (False, True, True)
  depth: int = 3
  dtype: jnp.dtype = jnp.float32

  def __call__(self, latents: jax.Array) -> jax.Array:
    """The same as `decode`; what `init` runs."""
    return self.decode(latents)

  @nn.compact
  def decode(self, latents: jax.Array) -> jax.Array:
    """[B, F, h, w, C], normalised -> [B, T, H, W, 3] in [-1, 1]; float32."""
    start = not self.has_variable(STREAM, "started")
    self.variable(STREAM, "started", jnp.ones, latents.shape[:1], jnp.bool_)
    x = 3 * jnp.tanh(latents / 3)
    x = nn.relu(Conv2d(self.widths[0], self.dtype, name="conv_in")(x))
    for i, temporal in enumerate(self.temporal):
      for j in range(self.depth):
        x = MemoryBlock(self.dtype, name=f"level{i}_block{j}")(x)
      # A pixel of the larger frame sees one of the smaller: growing first is the same at a quarter.
      x = Grow(1 + temporal, self.dtype, name=f"level{i}_time")(x)
      x = DoubleSpace(self.widths[i + 1], self.dtype, bias=False, name=f"level{i}_space")(x)
    y = Conv2d(3, self.dtype, name="conv_out")(nn.relu(x)).astype(stat_dtype(self.dtype))
    # Latent 0 stands for one frame, which is the last of those that it is decoded to.
    y = y[:, 2 ** sum(self.temporal) - 1 :] if start else y
    return 2 * jnp.clip(y, 0.0, 1.0) - 1


class MemoryBlock(nn.Module):
  """relu(f(x, frame before) + x) with three convolutions f; zeros precede the clip.

  Attributes:
    dtype: compute dtype.
  """

  dtype: jnp.dtype

  @nn.compact
  def __call__(self, x: jax.Array) -> jax.Array:
    """[B, T, H, W, C] -> [B, T, H, W, C]; remembers one frame."""
    x = x.astype(self.dtype)
    past = self.variable(STREAM, "past", lambda: jnp.zeros_like(x[:, :1]))
    before = jnp.concatenate([past.value, x[:, :-1]], axis=1)
    past.value = x[:, -1:]
    y = jnp.concatenate([x, before], axis=-1)
    for i in range(3):
      y = Conv2d(x.shape[-1], self.dtype, name=f"conv{i}")(y)
      y = nn.relu(y) if i < 2 else y
    return nn.relu(y + x)


class Grow(nn.Module):
  """Several frames out of one by a linear layer.

  Attributes:
    frames: how many.
    dtype: compute dtype.
  """

  frames: int
  dtype: jnp.dtype

  @nn.compact
  def __call__(self, x: jax.Array) -> jax.Array:
    """[B, T, H, W, C] -> [B, frames T, H, W, C]."""
    b, t, h, w, c = x.shape
    y = Linear(self.frames * c, self.dtype, bias=False, name="linear")(x)
    y = jnp.moveaxis(y.reshape(b, t, h, w, self.frames, c), 4, 2)
    return y.reshape(b, t * self.frames, h, w, c)
