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
    kernel = _kernel(self, (self.kernel, self.kernel, x.shape[-1], self.features))
    frames, x = x.shape[:2], x.astype(self.dtype).reshape(-1, *x.shape[2:])
    y = _conv(x, kernel.astype(self.dtype), (self.stride,) * 2, (self.padding,) * 2)
    y = _bias(self, y) if self.bias else y
    return y.reshape(*frames, *y.shape[1:])


class DoubleSpace(nn.Module):
  """Every pixel four times, then a 3 x 3 convolution, which never sees the enlarged frame.

  Row 2i of the enlarged frame looks at rows 2i-1, 2i, 2i+1: rows i-1 and twice i of the small one;
  row 2i+1 at twice i, and i+1. So with columns: four kernels of 2 x 2, of which each weight is the
  sum of those that met the same pixel, give the pixels (2i+a, 2j+b). That is 16 multiplications a
  small pixel instead of 36, the same to rounding (the sums are float32 whatever `dtype` is).

  Attributes:
    features: output channels.
    dtype: compute dtype.
    bias: whether to add one.
  """

  features: int
  dtype: jnp.dtype
  bias: bool = True

  @nn.compact
  def __call__(self, x: jax.Array) -> jax.Array:
    """[B, T, H, W, C] -> [B, T, 2 H, 2 W, features]."""
    b, t, h, w, c = x.shape
    kernel = _kernel(self, (3, 3, c, self.features)).astype(stat_dtype(self.dtype))
    rows = _halves(kernel)  # [phase, row, 3, C, features]
    both = _halves(jnp.moveaxis(rows, 2, 0))  # [phase, column, phase, row, C, features]
    both = both.transpose(3, 1, 4, 2, 0, 5).reshape(2, 2, c, 4 * self.features)
    x = x.astype(self.dtype).reshape(b * t, h, w, c)
    y = _conv(x, both.astype(self.dtype), (1, 1), ((1, 1), (1, 1)))
    y = _bias(self, y, times=4) if self.bias else y
    y = y.reshape(b * t, h + 1, w + 1, 2, 2, self.features)
    # All phases are there for every window of 2 x 2; that of row 2i + a begins at row i - 1 + a.
    phase = lambda i, j: y[:, i : i + h, j : j + w, i, j]
    y = jnp.stack([jnp.stack([phase(i, j) for j in (0, 1)], axis=3) for i in (0, 1)], axis=2)
    return y.reshape(b, t, 2 * h, 2 * w, self.features)


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
    b, frames, *frame = x.shape
    t, *sides = self.kernel
    start = not self.has_variable(STREAM, "past")
    past = self.variable(STREAM, "past", jnp.zeros, (b, t - 1, *frame), x.dtype)
    x = jnp.concatenate([past.value, x], axis=1)
    # At the start of a clip, weights that would meet nothing but zeros are left out.
    zeros = t - max(1, min(frames, t)) if start else 0
    # Written once, read twice. Left alone, XLA computes the end a second time, and copies it once
    # more since the past is then still in use.
    x = x if start else jax.lax.optimization_barrier(x)
    past.value = x[:, x.shape[1] - (t - 1) :]
    padding = ((0, 0), *((n // 2, n // 2) for n in sides))
    kernel = _kernel(self, (*self.kernel, x.shape[-1], self.features))[zeros:]
    return _bias(self, _conv(x[:, zeros:], kernel.astype(self.dtype), (1, 1, 1), padding))


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
    kernel = _kernel(self, (3, 1, 1, x.shape[-1], x.shape[-1])).astype(self.dtype)
    y = _bias(self, _conv(x.astype(self.dtype), kernel, (2, 1, 1), ((0, 0),) * 3))
    return jnp.concatenate([first, y], axis=1)


class ChannelNorm(nn.Module):
  """x / |x| * sqrt(C) * scale over channels, the norm in float32."""

  @nn.compact
  def __call__(self, x: jax.Array) -> jax.Array:
    """[..., C] -> [..., C]."""
    channels = x.shape[-1]
    scale = self.param("scale", nn.initializers.ones, (channels,)).astype(x.dtype)
    y = x.astype(stat_dtype(x.dtype))
    # Else XLA for GPUs normalises in a kernel of its own: one more array is written and read.
    square = jax.lax.optimization_barrier(jnp.square(y).sum(-1, keepdims=True))
    norm = jnp.sqrt(square)
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


def _halves(kernel):
  """[3, ...] over a doubled axis -> [2 phases, 2, ...] over the axis before it was doubled."""
  before, here, after = kernel
  return jnp.stack([jnp.stack([before, here + after]), jnp.stack([before + here, after])])


def _conv(x, kernel, strides, padding):
  """Convolution over the axes between the first and the last."""
  axes = "DHW"[-len(strides) :]
  layout = (f"N{axes}C", f"{axes}IO", f"N{axes}C")
  return jax.lax.conv_general_dilated(x, kernel, strides, padding, dimension_numbers=layout)


def _kernel(module, shape):
  return module.param("kernel", nn.initializers.lecun_normal(), shape)


def _bias(module, y, times=1):
  """y plus a bias, which is repeated so often along the channels."""
  bias = module.param("bias", nn.initializers.zeros, (y.shape[-1] // times,))
  return y + _lift(jnp.tile(bias.astype(y.dtype), times), y)


def _lift(vector, x):
  return vector.reshape((1,) * (x.ndim - 1) + (-1,))
