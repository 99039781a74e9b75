"""Layers of causal video autoencoders, each of which remembers the frames that it will need again.

A layer that looks back keeps the last frames of its input in the variable collection "stream". A
call without that collection starts a clip; a call with it goes on where the last one ended:

    y0, stream = layer.apply({"params": p}, x0, mutable=["stream"])
    y1, stream = layer.apply({"params": p, **stream}, x1, mutable=["stream"])
"""

import flax.linen as nn
import jax
import jax.numpy as jnp

from vidstep.attention import attention
from vidstep.models.linear import Linear
from vidstep.models.precision import stat_dtype

STREAM = "stream"


class Conv2d(nn.Module):
  """Convolution of every frame by itself; float32 parameters, computed in `dtype`.

  Attributes:
    features: output channels.
    dtype: compute dtype.
    kernel: side of the square kernel.
    stride: stride of both sides.
    padding: (before, after) zeros of both sides.
    bias: whether to add one.
  """

  features: int
  dtype: jnp.dtype
  kernel: int = 3
  stride: int = 1
  padding: tuple[int, int] = (1, 1)
  bias: bool = True

  @nn.compact
  def __call__(self, x: jax.Array) -> jax.Array:
    """[B, T, H, W, C] -> [B, T, H', W', features]."""
    frames, sides = x.shape[:2], (self.kernel, self.kernel)
    x = x.reshape(-1, *x.shape[2:])
    y = _conv(self, x, self.features, sides, (self.stride,) * 2, (self.padding,) * 2, self.bias)
    return y.reshape(*frames, *y.shape[1:])


class CausalConv3d(nn.Module):
  """Convolution over a frame and the ones before it; zeros precede the clip.

  Attributes:
    features: output channels.
    dtype: compute dtype.
    kernel: (frames, height, width), odd.
  """

  features: int
  dtype: jnp.dtype
  kernel: tuple[int, int, int] = (3, 3, 3)

  @nn.compact
  def __call__(self, x: jax.Array) -> jax.Array:
    """[B, T, H, W, C] -> [B, T, H, W, features]; remembers kernel - 1 frames."""
    return self.convolve(x)

  def convolve(self, x):
    """What `__call__` does, for subclasses."""
    x = x.astype(self.dtype)
    b, _, *frame = x.shape
    t, *sides = self.kernel
    past = self.variable(STREAM, "past", jnp.zeros, (b, t - 1, *frame), x.dtype)
    x = jnp.concatenate([past.value, x], axis=1)
    past.value = x[:, x.shape[1] - (t - 1) :]
    padding = ((0, 0), *((n // 2, n // 2) for n in sides))
    return _conv(self, x, self.features, self.kernel, (1, 1, 1), padding)


class DoubleTime(CausalConv3d):
  """Two frames out of one by a causal convolution over frames 1, 2, ..; frame 0 stays one frame.

  The convolution never sees frame 0: zeros precede frame 1. `features` is that of the output.
  """

  kernel: tuple[int, int, int] = (3, 1, 1)

  @nn.compact
  def __call__(self, x: jax.Array) -> jax.Array:
    """[B, 1 + n, H, W, C] -> [B, 1 + 2 n, H, W, C] at the start of a clip, then n -> 2 n."""
    alone = 0 if self.has_variable(STREAM, "past") else 1
    y = self.convolve(x[:, alone:])
    b, n, h, w, c = y.shape
    y = jnp.moveaxis(y.reshape(b, n, h, w, 2, c // 2), 4, 2).reshape(b, 2 * n, h, w, c // 2)
    return jnp.concatenate([x[:, :alone], y], axis=1)


class HalveTime(nn.Module):
  """One frame out of two: frame 0 as it is, then y_i = conv(x_{2i-2}, x_{2i-1}, x_{2i}).

  Attributes:
    dtype: compute dtype.
  """

  dtype: jnp.dtype

  @nn.compact
  def __call__(self, x: jax.Array) -> jax.Array:
    """[B, 1 + 2 n, H, W, C] -> [B, 1 + n, H, W, C] at the start of a clip, then 2 n -> n."""
    alone = 0 if self.has_variable(STREAM, "past") else 1
    first = x[:, :alone]
    past = self.variable(STREAM, "past", lambda: x[:, :0])
    x = jnp.concatenate([past.value, x], axis=1)
    past.value = x[:, -1:]
    y = _conv(self, x, x.shape[-1], (3, 1, 1), (2, 1, 1), ((0, 0),) * 3)
    return jnp.concatenate([first, y], axis=1)


class ChannelNorm(nn.Module):
  """x / |x| * sqrt(C) * scale over channels, the norm in float32."""

  @nn.compact
  def __call__(self, x: jax.Array) -> jax.Array:
    """[..., C] -> [..., C]."""
    channels = x.shape[-1]
    scale = self.param("scale", nn.initializers.ones, (channels,)).astype(x.dtype)
    y = x.astype(stat_dtype(x.dtype))
    norm = jnp.sqrt(jnp.square(y).sum(-1, keepdims=True))
    y = (y / jnp.maximum(norm, 1e-12)).astype(x.dtype)
    return y * x.dtype.type(channels**0.5) * _lift(scale, y)


class ResBlock(nn.Module):
  """Two causal convolutions, each after norm and SiLU, beside a shortcut.

  Attributes:
    features: output channels.
    dtype: compute dtype.
  """

  features: int
  dtype: jnp.dtype

  @nn.compact
  def __call__(self, x: jax.Array) -> jax.Array:
    """[B, T, H, W, C] -> [B, T, H, W, features]."""
    h = CausalConv3d(self.features, self.dtype, name="conv1")(nn.silu(ChannelNorm(name="norm1")(x)))
    h = CausalConv3d(self.features, self.dtype, name="conv2")(nn.silu(ChannelNorm(name="norm2")(h)))
    if x.shape[-1] != self.features:
      x = Linear(self.features, self.dtype, name="shortcut")(x)
    return x + h


class FrameAttention(nn.Module):
  """Self-attention of one head among the pixels of a frame, added to them.

  Attributes:
    dtype: compute dtype.
  """

  dtype: jnp.dtype

  @nn.compact
  def __call__(self, x: jax.Array) -> jax.Array:
    """[B, T, H, W, C] -> [B, T, H, W, C]."""
    b, t, h, w, c = x.shape
    y = Linear(3 * c, self.dtype, name="qkv")(ChannelNorm(name="norm")(x))
    q, k, v = jnp.split(y.reshape(b * t, h * w, 1, 3 * c), 3, axis=-1)
    y = attention(q, k, v).reshape(b, t, h, w, c)
    return x + Linear(c, self.dtype, name="proj")(y)


def double_space(x: jax.Array) -> jax.Array:
  """[B, T, H, W, C] -> [B, T, 2 H, 2 W, C], every pixel four times."""
  return x.repeat(2, axis=2).repeat(2, axis=3)


def _conv(module, x, features, kernel, strides, padding, bias=True):
  """Convolution over the axes between the first and the last, with parameters of `module`."""
  shape = (*kernel, x.shape[-1], features)
  weight = module.param("kernel", nn.initializers.lecun_normal(), shape).astype(module.dtype)
  axes = "DHW"[-len(kernel) :]
  layout = (f"N{axes}C", f"{axes}IO", f"N{axes}C")
  x = x.astype(module.dtype)
  y = jax.lax.conv_general_dilated(x, weight, strides, padding, dimension_numbers=layout)
  if bias:
    y = y + _lift(module.param("bias", nn.initializers.zeros, (features,)).astype(y.dtype), y)
  return y


def _lift(vector, x):
  return vector.reshape((1,) * (x.ndim - 1) + (-1,))
