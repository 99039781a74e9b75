"""The one linear layer of all networks."""

from collections.abc import Callable

import flax.linen as nn
import jax
import jax.numpy as jnp


class Linear(nn.Module):
  """y = x W + b over the last axis; float32 parameters, computed in `dtype`.

  Attributes:
    features: width of y.
    dtype: compute dtype.
    init: initializer of W; b starts at zero.
    bias: whether there is b.
    apart: the axes of x are not to be merged, since several of them are sharded.
  """

  features: int
  dtype: jnp.dtype
  init: Callable = nn.initializers.xavier_uniform()
  bias: bool = True
  apart: bool = False

  @nn.compact
  def __call__(self, x: jax.Array) -> jax.Array:
    """[..., C] -> [..., features]."""
    kernel = self.param("kernel", self.init, (x.shape[-1], self.features)).astype(self.dtype)
    x = x.astype(self.dtype)
    # XLA for CPU computes the gradient of W from transposed copies unless x is a matrix, which
    # makes a training step 2x slower. Elsewhere the axes stay apart: they may be sharded.
    merge = jax.default_backend() == "cpu" and not self.apart
    flat = x.reshape(-1, x.shape[-1]) if merge else x
    y = jax.lax.dot_general(flat, kernel, (((flat.ndim - 1,), (0,)), ((), ())))
    if self.bias:
      bias = self.param("bias", nn.initializers.zeros, (self.features,)).astype(self.dtype)
      y = y + bias.reshape((1,) * (y.ndim - 1) + (-1,))
    return y.reshape(*x.shape[:-1], self.features)
