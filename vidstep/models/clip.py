"""The image encoder of Wan's image-to-video models: CLIP's vision transformer (ViT-H/14)."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from vidstep.attention import attention
from vidstep.models.linear import Linear
from vidstep.models.norms import AffineNorm
from vidstep.models.precision import stat_dtype

MEAN = (0.48145466, 0.4578275, 0.40821073)
STD = (0.26862954, 0.26130258, 0.27577711)


class CLIPVision(nn.Module):
  """Vision transformer (arXiv 2103.00020) up to the states before its last layer.

  These are what Wan conditions on: `depth` is one less than the layers of the released network,
  whose last layer, final norm and projection are not needed.

  Attributes:
    dim: width.
    heads: attention heads.
    ffn_dim: hidden width of the feed-forward part.
    depth: layers that are run, as one scan over stacked parameters.
    patch: side of a patch.
    size: side of the image.
    dtype: compute dtype.
  """

  dim: int = 1280
  heads: int = 16
  ffn_dim: int = 5120
  depth: int = 31
  patch: int = 14
  size: int = 224
  dtype: jnp.dtype = jnp.float32

  @nn.compact
  def __call__(self, pixels: jax.Array) -> jax.Array:
    """[B, size, size, 3] from `clip_pixels` -> [B, 1 + (size / patch)^2, dim] float32."""
    b, n, p = pixels.shape[0], self.size // self.patch, self.patch
    x = pixels.reshape(b, n, p, n, p, 3).swapaxes(2, 3).reshape(b, n * n, p * p * 3)
    x = Linear(self.dim, self.dtype, bias=False, name="patch_embed")(x)
    init = nn.initializers.normal(self.dim**-0.5)
    first = self.param("class", init, (self.dim,)).astype(self.dtype)
    positions = self.param("position", init, (n * n + 1, self.dim)).astype(self.dtype)
    first = jnp.broadcast_to(first[None, None], (b, 1, self.dim))
    x = jnp.concatenate([first, x], axis=1) + positions[None]
    x = AffineNorm(name="norm")(x)
    layers = nn.scan(
      _Layer, variable_axes={"params": 0}, split_rngs={"params": True}, length=self.depth
    )
    x, _ = layers(self.heads, self.ffn_dim, self.dtype, name="blocks")(x)
    return x.astype(stat_dtype(self.dtype))


class _Layer(nn.Module):
  """x += attention(norm(x)); x += gelu(norm(x) A + a) B + b."""

  heads: int
  ffn_dim: int
  dtype: jnp.dtype

  @nn.compact
  def __call__(self, x):
    dim = x.shape[-1]
    linear = lambda width, name: Linear(width, self.dtype, name=name)
    h = AffineNorm(name="norm1")(x)
    split = lambda a: a.reshape(*a.shape[:2], self.heads, -1)
    o = attention(*(split(linear(dim, name)(h)) for name in "qkv"))
    x = x + linear(dim, "o")(o.reshape(x.shape))
    h = nn.gelu(linear(self.ffn_dim, "in")(AffineNorm(name="norm2")(x)), approximate=False)
    return x + linear(dim, "out")(h), None


def clip_pixels(image: jax.Array, size: int = 224) -> jax.Array:
  """An image as Wan shows it to CLIP: squeezed to a square by bicubic interpolation, normalised.

  Args:
    image: [B, H, W, 3] in [-1, 1].
    size: side of the square.

  Returns:
    [B, size, size, 3] float32.
  """
  rows, columns = (jnp.asarray(_bicubic(n, size)) for n in image.shape[1:3])
  x = jnp.einsum("yh,xw,bhwc->byxc", rows, columns, image, precision="highest")
  row = lambda a: jnp.asarray(a, x.dtype).reshape(1, 1, 1, 3)
  return ((x + 1) / 2 - row(MEAN)) / row(STD)


def _bicubic(old: int, new: int) -> np.ndarray:
  """[new, old] weights of bicubic interpolation (Keys, a = -3/4) of pixel centres, edges repeated.

  Four pixels make one, however many are left out in between: that is torch's `interpolate`.
  """
  a = -0.75
  centre = (np.arange(new) + 0.5) * old / new - 0.5
  first = np.floor(centre).astype(int) - 1
  weights = np.zeros((new, old))
  for tap in range(4):
    d = np.abs(centre - (first + tap))
    near = ((a + 2) * d - (a + 3)) * d * d + 1
    far = ((a * d - 5 * a) * d + 8 * a) * d - 4 * a
    np.add.at(
      weights, (np.arange(new), np.clip(first + tap, 0, old - 1)), np.where(d <= 1, near, far)
    )
  return weights.astype(np.float32)
