"""The causal video autoencoder of Wan 2.1: 4 frames of 8 x 8 pixels to one latent."""

import flax.linen as nn
import jax
import jax.numpy as jnp

from vidstep.models.linear import Linear
from vidstep.models.precision import stat_dtype
from vidstep.models.vae.layers import (
  CausalConv3d,
  ChannelNorm,
  Conv2d,
  DoubleSpace,
  DoubleTime,
  FrameAttention,
  HalveTime,
  ResBlock,
)

# Of every latent channel, over Wan's training data.
WAN_MEAN = (
  -0.7571, -0.7089, -0.9113, 0.1075, -0.1745, 0.9653, -0.1517, 1.5508,
  0.4134, -0.0715, 0.5517, -0.3632, -0.1922, -0.9497, 0.2503, -0.2921,
)  # fmt: skip
WAN_STD = (
  2.8184, 1.4541, 2.3275, 2.6558, 1.2196, 1.7708, 2.6052, 2.0743,
  3.2687, 2.1526, 2.8652, 1.5579, 1.6382, 1.1253, 2.8251, 1.9160,
)  # fmt: skip


class WanVAE(nn.Module):
  """Encoder and decoder of Wan 2.1 (arXiv 2503.20314, section 4.1); causal in time.

  Latent 0 is pixel frame 0 alone; latent i > 0 is the pixel frames 4i-3 .. 4i. Use it through
  `vidstep.models.vae.stream`, which goes from latent to latent.

  Attributes:
    base: channels at full resolution.
    channels: of a latent.
    multipliers: of `base`, one for each resolution; every level but the first halves both sides.
    depth: residual blocks of a level of the encoder; the decoder has one more.
    temporal: for each halving of the sides, whether it halves the frame rate as well.
    mean: [channels] subtracted from latents.
    std: [channels] that latents are divided by.
    dtype: compute dtype.
  """

  base: int = 96
  channels: int = 16
  multipliers: tuple[int, ...] = (1, 2, 4, 4)
  depth: int = 2
  temporal: tuple[bool, ...] = (False, True, True)
  mean: tuple[float, ...] = WAN_MEAN
  std: tuple[float, ...] = WAN_STD
  dtype: jnp.dtype = jnp.float32

  def setup(self):
    widths = tuple(self.base * m for m in self.multipliers)
    self.encoder = Encoder(2 * self.channels, widths, self.depth, self.temporal, self.dtype)
    self.decoder = Decoder(widths[::-1], self.depth + 1, self.temporal[::-1], self.dtype)
    self.quant = Linear(2 * self.channels, self.dtype)
    self.post_quant = Linear(self.channels, self.dtype)

  def __call__(self, video: jax.Array) -> jax.Array:
    """Encodes and decodes; what `init` runs."""
    return self.decode(self.encode(video))

  def moments(self, video: jax.Array) -> tuple[jax.Array, jax.Array]:
    """[B, T, H, W, 3] in [-1, 1] -> mean and log-variance [B, F, h, w, C], not normalised."""
    return jnp.split(self.quant(self.encoder(video.astype(self.dtype))), 2, axis=-1)

  def encode(self, video: jax.Array) -> jax.Array:
    """[B, T, H, W, 3] in [-1, 1] -> [B, F, h, w, C], normalised means; float32."""
    stat = stat_dtype(self.dtype)
    z = self.moments(video)[0].astype(stat)
    return (z - _row(self.mean, stat)) / _row(self.std, stat)

  def decode(self, latents: jax.Array) -> jax.Array:
    """[B, F, h, w, C], normalised -> [B, T, H, W, 3], clipped to [-1, 1]; float32."""
    stat = stat_dtype(self.dtype)
    z = latents.astype(stat) * _row(self.std, stat) + _row(self.mean, stat)
    y = self.decoder(self.post_quant(z.astype(self.dtype)))
    return jnp.clip(y.astype(stat), -1.0, 1.0)


class Encoder(nn.Module):
  """Video to moments: levels of residual blocks, each followed by a halving.

  Attributes:
    features: output channels.
    widths: channels of the levels.
    depth: residual blocks of a level.
    temporal: whether a halving is one of time as well.
    dtype: compute dtype.
  """

  features: int
  widths: tuple[int, ...]
  depth: int
  temporal: tuple[bool, ...]
  dtype: jnp.dtype

  @nn.compact
  def __call__(self, x: jax.Array) -> jax.Array:
    """[B, T, H, W, 3] -> [B, F, h, w, features]."""
    x = CausalConv3d(self.widths[0], self.dtype, name="conv_in")(x)
    for i, width in enumerate(self.widths):
      for j in range(self.depth):
        x = ResBlock(width, self.dtype, name=f"level{i}_block{j}")(x)
      if i < len(self.temporal):
        halve = Conv2d(width, self.dtype, stride=2, padding=(0, 1), name=f"level{i}_space")
        x = halve(x)
        if self.temporal[i]:
          x = HalveTime(self.dtype, name=f"level{i}_time")(x)
    return _head(_middle(x, self.dtype), self.features, self.dtype)


class Decoder(nn.Module):
  """Latents to video: levels of residual blocks, each followed by a doubling.

  Attributes:
    widths: channels of the levels, the coarsest first; a doubling of space halves its channels.
    depth: residual blocks of a level.
    temporal: whether a doubling is one of time as well.
    dtype: compute dtype.
  """

  widths: tuple[int, ...]
  depth: int
  temporal: tuple[bool, ...]
  dtype: jnp.dtype

  @nn.compact
  def __call__(self, z: jax.Array) -> jax.Array:
    """[B, F, h, w, C] -> [B, T, H, W, 3]."""
    x = CausalConv3d(self.widths[0], self.dtype, name="conv_in")(z)
    x = _middle(x, self.dtype)
    for i, width in enumerate(self.widths):
      for j in range(self.depth):
        x = ResBlock(width, self.dtype, name=f"level{i}_block{j}")(x)
      if i < len(self.temporal):
        if self.temporal[i]:
          x = DoubleTime(2 * width, self.dtype, name=f"level{i}_time")(x)
        x = DoubleSpace(width // 2, self.dtype, name=f"level{i}_space")(x)
    return _head(x, 3, self.dtype)


def _middle(x, dtype):
  """Residual block, attention within frames, residual block."""
  x = ResBlock(x.shape[-1], dtype, name="middle_block0")(x)
  x = FrameAttention(dtype, name="middle_attention")(x)
  return ResBlock(x.shape[-1], dtype, name="middle_block1")(x)


def _head(x, features, dtype):
  x = nn.silu(ChannelNorm(name="norm_out")(x))
  return CausalConv3d(features, dtype, name="conv_out")(x)


def _row(values, dtype):
  return jnp.asarray(values, dtype).reshape(1, 1, 1, 1, -1)
