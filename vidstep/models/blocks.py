"""The block of Wan 2.1: modulated self-attention, text cross-attention, feed-forward."""

from collections.abc import Callable
from functools import partial

import flax.linen as nn
import jax
import jax.numpy as jnp

from vidstep.attention import attention
from vidstep.masks import Rule, TokenInfo, Valid, token_info
from vidstep.models.linear import Linear
from vidstep.models.precision import stat_dtype
from vidstep.models.rope import apply_rope

EPS = 1e-6


def layer_norm(x, dtype):
  """(x - mean) / sqrt(var + eps) over channels, without parameters, in `dtype`."""
  x = x.astype(dtype)
  x = x - x.mean(-1, keepdims=True)
  return x * jax.lax.rsqrt(jnp.square(x).mean(-1, keepdims=True) + EPS)


def modulated_norm(x, shift, scale):
  """layer_norm(x) (1 + scale) + shift, in the dtype of the modulation, returned in that of x.

  Args:
    x: [B, F, S, C] tokens, S of each frame.
    shift: [B or 1, F or 1, 1, C], one for all tokens of a frame.
    scale: as `shift`.
  """
  return (layer_norm(x, shift.dtype) * (1 + scale) + shift).astype(x.dtype)


def self_attention(q, k, v, rope, info: TokenInfo, mask: Rule | None, implementation):
  """Attention among the tokens of a sequence; the one place where a cache of keys can be put.

  Keys arrive before RoPE, which is how they are to be cached: their positions may change later.

  Args:
    q: [B, N, heads, D] queries, normalised, not rotated.
    k: [B, N, heads, D] keys, likewise.
    v: [B, N, heads, D] values.
    rope: table of `vidstep.models.rope.rope_table`.
    info: attributes of the N tokens.
    mask: rule or None.
    implementation: see `vidstep.attention.attention`.

  Returns:
    [B, N, heads, D].
  """
  q, k = apply_rope(q, rope), apply_rope(k, rope)
  return attention(q, k, v, mask, q_info=info, k_info=info, implementation=implementation)


def cross_attention(q, k, v, valid, implementation):
  """Attention of video tokens to text tokens; a text that is masked out contributes nothing.

  Args:
    q: [B, N, heads, D] queries.
    k: [B, L, heads, D] keys.
    v: [B, L, heads, D] values.
    valid: [B, L] bool, or None for all.
    implementation: see `vidstep.attention.attention`.

  Returns:
    [B, N, heads, D].
  """
  if valid is None:
    return attention(q, k, v, implementation=implementation)
  q_info = token_info(jnp.zeros(q.shape[1], jnp.int32))
  k_info = token_info(jnp.zeros(k.shape[1], jnp.int32), valid=valid)
  return attention(q, k, v, Valid(), q_info=q_info, k_info=k_info, implementation=implementation)


class RMSNorm(nn.Module):
  """x / rms(x) * scale over all channels of all heads at once, for q and k [B, N, C]."""

  @nn.compact
  def __call__(self, x):
    scale = self.param("scale", nn.initializers.ones, (x.shape[-1],))
    y = x.astype(stat_dtype(x.dtype))
    y = y * jax.lax.rsqrt(jnp.square(y).mean(-1, keepdims=True) + EPS)
    return (y * scale.astype(y.dtype)[None, None]).astype(x.dtype)


class LayerNorm(nn.Module):
  """layer_norm(x) * scale + bias in `dtype`; Flax's own promotes float64 against float32."""

  dtype: jnp.dtype

  @nn.compact
  def __call__(self, x):
    shape, lift = (x.shape[-1],), (None,) * (x.ndim - 1)
    scale = self.param("scale", nn.initializers.ones, shape).astype(self.dtype)
    bias = self.param("bias", nn.initializers.zeros, shape).astype(self.dtype)
    return layer_norm(x, self.dtype) * scale[lift] + bias[lift]


class Attention(nn.Module):
  """Projections around an attention function; q and k are RMS-normalised across heads.

  Attributes:
    heads: number of heads.
    dtype: compute dtype.
    attend: (q, k, v) [B, N, heads, D] -> [B, N, heads, D].
    zero: start with a zero output projection.
  """

  heads: int
  dtype: jnp.dtype
  attend: Callable
  zero: bool = False

  @nn.compact
  def __call__(self, x, y):
    """Queries from x [B, N, C], keys and values from y [B, M, C']."""
    dim = x.shape[-1]
    linear = partial(Linear, dim, self.dtype)
    q = RMSNorm(name="norm_q")(linear(name="q")(x))
    k = RMSNorm(name="norm_k")(linear(name="k")(y))
    v = linear(name="v")(y)
    split = lambda a: a.reshape(*a.shape[:2], self.heads, -1)
    o = self.attend(split(q), split(k), split(v))
    if self.zero:
      linear = partial(linear, init=nn.initializers.zeros)
    return linear(name="o")(o.reshape(x.shape))


class Block(nn.Module):
  """One Wan block: x += g1 SA(norm(x)); x += CA(norm(x), text); x += g2 FFN(norm(x)).

  Attributes:
    heads: number of heads.
    ffn_dim: hidden width of the feed-forward part.
    dtype: compute dtype.
    attend: self-attention of this sequence (q, k, v) -> o.
    attend_text: cross-attention to the text, or None for a network without text.
    keep: return the output a second time, to be collected as a feature.
  """

  heads: int
  ffn_dim: int
  dtype: jnp.dtype
  attend: Callable
  attend_text: Callable | None
  keep: bool = False

  @nn.compact
  def __call__(self, x, mod, text):
    """Runs the block.

    Args:
      x: [B, F, S, C] tokens, S of each frame.
      mod: [B or 1, F or 1, 6, C] modulation shared by all blocks.
      text: [B, L, C] or None.

    Returns:
      (x, x if `keep` else None).
    """
    dim, stat = x.shape[-1], mod.dtype
    table = self.param("modulation", nn.initializers.zeros, (6, dim))
    mod = mod + table.astype(stat)[None, None]
    shift1, scale1, gate1, shift2, scale2, gate2 = (mod[:, :, i, None] for i in range(6))
    flat = lambda a: a.reshape(a.shape[0], -1, dim)
    add = lambda a, b: (a.astype(stat) + b).astype(a.dtype)

    h = flat(modulated_norm(x, shift1, scale1))
    h = Attention(self.heads, self.dtype, self.attend, name="self_attn")(h, h)
    x = add(x, h.reshape(x.shape).astype(stat) * gate1)

    if self.attend_text is not None:
      h = flat(LayerNorm(stat, name="cross_norm")(x).astype(x.dtype))
      h = Attention(self.heads, self.dtype, self.attend_text, True, name="cross_attn")(h, text)
      x = x + h.reshape(x.shape)

    h = modulated_norm(x, shift2, scale2)
    h = nn.gelu(Linear(self.ffn_dim, self.dtype, name="ffn_in")(h), approximate=True)
    x = add(x, Linear(dim, self.dtype, name="ffn_out")(h).astype(stat) * gate2)
    return x, x if self.keep else None
