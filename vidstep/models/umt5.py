"""The text encoder of Wan: the encoder half of UMT5 (arXiv 2304.09151), and its tokenizer."""

import html
import math
import pathlib
import re

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from vidstep.models.blocks import RMSNorm
from vidstep.models.linear import Linear
from vidstep.models.precision import stat_dtype


class UMT5Encoder(nn.Module):
  """T5 1.1's encoder with a relative position bias in every layer; by default UMT5-XXL.

  Wan's own convention is part of it: embeddings of padding are zero, and the video network attends
  to those zeros as well (`Cond.text` of 512 tokens without `text_mask`).

  Attributes:
    vocabulary: number of tokens.
    dim: width.
    heads: attention heads.
    head_dim: width of a head; heads * head_dim need not be dim.
    ffn_dim: hidden width of the feed-forward part.
    depth: layers, run as one scan over stacked parameters.
    buckets: of relative positions.
    max_distance: from which on all positions are alike.
    dtype: compute dtype.
  """

  vocabulary: int = 256384
  dim: int = 4096
  heads: int = 64
  head_dim: int = 64
  ffn_dim: int = 10240
  depth: int = 24
  buckets: int = 32
  max_distance: int = 128
  dtype: jnp.dtype = jnp.float32

  @nn.compact
  def __call__(self, tokens: jax.Array, mask: jax.Array) -> jax.Array:
    """Tokens [B, L] int32 and mask [B, L] bool -> [B, L, dim] float32, zero where masked out."""
    table = self.param("embed", nn.initializers.normal(1.0), (self.vocabulary, self.dim))
    x = table[tokens].astype(self.dtype)
    buckets = position_buckets(tokens.shape[1], self.buckets, self.max_distance)
    layers = nn.scan(
      _Layer,
      variable_axes={"params": 0},
      split_rngs={"params": True},
      in_axes=nn.broadcast,
      length=self.depth,
    )
    fields = (self.heads, self.head_dim, self.ffn_dim, self.buckets, self.dtype)
    x, _ = layers(*fields, name="blocks")(x, mask, buckets)
    x = RMSNorm(name="norm")(x).astype(stat_dtype(self.dtype))
    return jnp.where(mask[..., None], x, 0)


class _Layer(nn.Module):
  """x += attention(norm(x)); x += (gelu(norm(x) A) * norm(x) B) C; no biases, no scale on q k'."""

  heads: int
  head_dim: int
  ffn_dim: int
  buckets: int
  dtype: jnp.dtype

  @nn.compact
  def __call__(self, x, mask, buckets):
    stat = stat_dtype(self.dtype)
    linear = lambda width, name: Linear(width, self.dtype, bias=False, name=name)
    split = lambda a: a.reshape(*a.shape[:2], self.heads, self.head_dim)

    h = RMSNorm(name="norm1")(x)
    q, k, v = (split(linear(self.heads * self.head_dim, name)(h)) for name in "qkv")
    bias = self.param("position", nn.initializers.normal(1.0), (self.buckets, self.heads))
    scores = jnp.einsum("bqhd,bkhd->bhqk", q, k, preferred_element_type=stat)
    scores = scores + jnp.moveaxis(bias.astype(stat)[buckets], -1, 0)[None]
    scores = jnp.where(mask[:, None, None], scores, jnp.finfo(stat).min)
    weights = nn.softmax(scores, axis=-1).astype(self.dtype)
    o = jnp.einsum("bhqk,bkhd->bqhd", weights, v)
    x = x + linear(x.shape[-1], "o")(o.reshape(*o.shape[:2], -1))

    h = RMSNorm(name="norm2")(x)
    gate = nn.gelu(linear(self.ffn_dim, "gate")(h), approximate=True)
    return x + linear(x.shape[-1], "out")(gate * linear(self.ffn_dim, "in")(h)), None


def position_buckets(length: int, buckets: int, max_distance: int) -> np.ndarray:
  """T5's relative positions: buckets[q, k] of k - q, [length, length] int32.

  Half of the buckets look back, half ahead. In each half, the first half are single distances, the
  rest grow geometrically up to `max_distance`.
  """
  offset = np.arange(length)[None] - np.arange(length)[:, None]
  side, distance = buckets // 2, np.abs(offset)
  exact = side // 2
  ratio = np.log(np.maximum(distance, 1).astype(np.float32) / exact) / math.log(
    max_distance / exact
  )
  far = np.minimum(exact + (ratio * (side - exact)).astype(np.int32), side - 1)
  return (np.where(distance < exact, distance, far) + side * (offset > 0)).astype(np.int32)


class Tokenizer:
  """Prompts to tokens, from the `tokenizer.json` that comes with the weights.

  Args:
    path: the file, or a folder with it.
    length: tokens of every prompt; longer ones are cut, shorter ones padded. Wan uses 512.

  Raises:
    FileNotFoundError: if there is no such file.
    ImportError: without the `tokenizers` package.
  """

  def __init__(self, path, length: int = 512):
    path = pathlib.Path(path)
    path = path / "tokenizer.json" if path.is_dir() else path
    if not path.is_file():
      raise FileNotFoundError(
        f"no tokenizer at {path}: Wan's releases keep tokenizer.json in google/umt5-xxl/ "
        "(original) or tokenizer/ (diffusers)."
      )
    try:
      import tokenizers
    except ImportError as e:
      raise ImportError("prompts need `pip install tokenizers`.") from e
    self.length = length
    self._tokenizer = tokenizers.Tokenizer.from_file(str(path))
    self._tokenizer.enable_truncation(length)
    self._tokenizer.no_padding()

  def __call__(self, prompts: list[str]) -> tuple[np.ndarray, np.ndarray]:
    """Returns tokens [B, length] int32 and mask [B, length] bool."""
    tokens = np.zeros((len(prompts), self.length), np.int32)
    mask = np.zeros((len(prompts), self.length), bool)
    for i, prompt in enumerate(prompts):
      ids = self._tokenizer.encode(clean_prompt(prompt)).ids
      tokens[i, : len(ids)], mask[i, : len(ids)] = ids, True
    return tokens, mask


def clean_prompt(text: str) -> str:
  """What Wan does to prompts: HTML entities resolved (twice), white space runs made one space.

  Wan also repairs wrongly decoded text (mojibake) by the package ftfy; that is left to the caller.
  """
  return re.sub(r"\s+", " ", html.unescape(html.unescape(text))).strip()
