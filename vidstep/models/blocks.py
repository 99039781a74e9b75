"""The block of Wan 2.1: modulated self-attention, text cross-attention, feed-forward."""

from collections.abc import Callable
from functools import partial

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax.ad_checkpoint import checkpoint_name

from vidstep.attention import attention, merge
from vidstep.masks import TokenInfo, Valid, token_info
from vidstep.models.linear import Linear
from vidstep.models.precision import stat_dtype
from vidstep.models.remat import BLOCK_INPUT
from vidstep.models.rope import halves, turn

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


def self_attention(q, k, v, past=None, *, sets, info: TokenInfo, implementation, turned=False):
  """Attention of a sequence to itself and to what is cached of earlier frames.

  Keys arrive before RoPE; those of the past may have been turned already.

  Args:
    q: [B, N, heads, D] queries, normalised, not rotated.
    k: [B, N, heads, D] keys, likewise.
    v: [B, N, heads, D] values.
    past: None, or keys and values of P earlier frames, each [B, P, S, heads, D], the keys in the
      order of `vidstep.models.rope.halves`; they come last.
    sets: pairs of the `KeySet`s of `vidstep.models.positions` and the tables of
      `vidstep.models.rope.rope_table` for their queries and keys. The result is merged from one
      attention to each.
    info: attributes of the N tokens.
    implementation: see `vidstep.attention.attention`.
    turned: whether keys of the past are after RoPE. Then there is one of `sets`, whose table of
      keys is that of the N tokens alone.

  Returns:
    [B, N, heads, D].
  """
  tokens = q.shape[1] // info.frame.shape[-1]
  q, k = halves(q), halves(k)
  if turned:
    k = turn(k, sets[0][1][1])
  if past is not None:
    flat = lambda a: a.astype(k.dtype).reshape(a.shape[0], -1, *a.shape[3:])
    k, v = (jnp.concatenate([a, flat(b)], axis=1) for a, b in zip((k, v), past, strict=True))
  parts = []
  for keys, (q_rope, k_rope) in sets:
    pick = lambda a, keys=keys: _frames(a, keys.frames, tokens)
    parts.append(
      attention(
        turn(q, q_rope),
        k if turned else turn(pick(k), k_rope),
        pick(v),
        keys.mask,
        q_info=info.tokens(tokens),
        k_info=keys.k_info.tokens(tokens),
        implementation=implementation,
        return_lse=len(sets) > 1,
      )
    )
  return merge(parts)[0] if len(sets) > 1 else parts[0]


def _frames(a, frames, tokens):
  """The tokens [B, n*tokens, heads, D] of some frames of a [B, N*tokens, heads, D]."""
  if frames is None:
    return a
  b, _, *rest = a.shape
  return a.reshape(b, -1, tokens, *rest)[:, frames].reshape(b, -1, *rest)


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


def text_and_image_attention(q, k, v, valid, implementation, image):
  """Attention to the text plus attention to the image, each with a softmax of its own.

  Args:
    q: [B, N, heads, D] queries.
    k: [B, L + image, heads, D] keys of the text, then of the image.
    v: [B, L + image, heads, D] values, likewise.
    valid: [B, L] bool (more columns are not read), or None for all.
    implementation: see `vidstep.attention.attention`.
    image: number of image tokens.

  Returns:
    [B, N, heads, D].
  """
  length = k.shape[1] - image
  valid = None if valid is None else valid[:, :length]
  text = cross_attention(q, k[:, :length], v[:, :length], valid, implementation)
  return text + attention(q, k[:, length:], v[:, length:], implementation=implementation)


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
    apart: see `Linear`.
  """

  heads: int
  dtype: jnp.dtype
  attend: Callable
  zero: bool = False
  apart: bool = False

  @nn.compact
  def __call__(self, x, y, kv=None, image=None):
    """Queries from x [B, N, C], keys and values from y [B, M, C'], or given as `kv`.

    Those of an image [B, I, C'] have projections of their own and come behind those of y.

    Returns:
      The output [B, N, C], and (keys, values), each [B, M, heads, D].
    """
    dim = x.shape[-1]
    linear = partial(Linear, dim, self.dtype, apart=self.apart)
    split = lambda a: a.reshape(*a.shape[:2], self.heads, -1)
    q = split(RMSNorm(name="norm_q")(linear(name="q")(x)))
    if kv is None:
      k = RMSNorm(name="norm_k")(linear(name="k")(y))
      v = linear(name="v")(y)
      if image is not None:
        k_image = RMSNorm(name="norm_k_image")(linear(name="k_image")(image))
        k = jnp.concatenate([k, k_image], axis=1)
        v = jnp.concatenate([v, linear(name="v_image")(image)], axis=1)
      kv = split(k), split(v)
    o = self.attend(q, *kv)
    if self.zero:
      linear = partial(linear, init=nn.initializers.zeros)
    return linear(name="o")(o.reshape(x.shape)), kv


class Block(nn.Module):
  """One Wan block: x += g1 SA(norm(x)); x += CA(norm(x), text); x += g2 FFN(norm(x)).

  Attributes:
    heads: number of heads.
    ffn_dim: hidden width of the feed-forward part.
    dtype: compute dtype.
    attend: self-attention of this sequence (q, k, v, past=...) -> o.
    attend_text: cross-attention to the text, or None for a network without text.
    keep: return the output a second time, to be collected as a feature.
    load: see `vidstep.models.past.Past`; None for a network without one.
    place: where tokens [B, F, S, C] are to lie on a mesh; None for one device.
    keep_key: how keys [B, N, heads, D] of these frames are left behind, with `load`.
  """

  heads: int
  ffn_dim: int
  dtype: jnp.dtype
  attend: Callable
  attend_text: Callable | None
  keep: bool = False
  load: Callable | None = None
  place: Callable | None = None
  keep_key: Callable = halves

  @nn.compact
  def __call__(self, x, mod, text, layer=None, text_kv=None):
    """Runs the block.

    Args:
      x: [B, F, S, C] tokens, S of each frame.
      mod: [B or 1, F or 1, 6, C] modulation shared by all blocks.
      text: pair of text [B, L, C] and image tokens [B, I, C], each or None.
      layer: this block's entry of `Past.layers`, or None.
      text_kv: keys and values of the text, which are then not made from `text`; or None.

    Returns:
      x and (x again if `keep` else None, with `load` keys and values of frames and text else None).
    """
    apart = self.place is not None
    x = checkpoint_name(self.place(x) if apart else x, BLOCK_INPUT)
    dim, stat = x.shape[-1], mod.dtype
    table = self.param("modulation", nn.initializers.zeros, (6, dim))
    mod = mod + table.astype(stat)[None, None]
    shift1, scale1, gate1, shift2, scale2, gate2 = (mod[:, :, i, None] for i in range(6))
    flat = lambda a: a.reshape(a.shape[0], -1, dim)
    add = lambda a, b: (a.astype(stat) + b).astype(a.dtype)

    attend = self.attend if layer is None else partial(self.attend, past=self.load(layer))
    h = flat(modulated_norm(x, shift1, scale1))
    h, kv = Attention(self.heads, self.dtype, attend, apart=apart, name="self_attn")(h, h)
    x = add(x, h.reshape(x.shape).astype(stat) * gate1)

    if self.attend_text is not None:
      h = flat(LayerNorm(stat, name="cross_norm")(x).astype(x.dtype))
      cross = Attention(self.heads, self.dtype, self.attend_text, True, apart, name="cross_attn")
      h, text_kv = cross(h, text[0], text_kv, text[1])
      x = x + h.reshape(x.shape)

    h = modulated_norm(x, shift2, scale2)
    h = nn.gelu(Linear(self.ffn_dim, self.dtype, apart=apart, name="ffn_in")(h), approximate=True)
    x = add(x, Linear(dim, self.dtype, apart=apart, name="ffn_out")(h).astype(stat) * gate2)
    if self.load is None:
      return x, (x if self.keep else None, None)
    by_frame = lambda a: a.reshape(*x.shape[:3], *a.shape[2:])
    return x, (x if self.keep else None, (by_frame(self.keep_key(kv[0])), by_frame(kv[1]), text_kv))
