"""The video DiT: one network, Wan 2.1's block, from a toy to Wan 14B by numbers alone."""

from functools import partial

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from vidstep.masks import TokenInfo, concat_info, token_info
from vidstep.models.actions import ActionEmbed
from vidstep.models.blocks import (
  Block,
  cross_attention,
  modulated_norm,
  self_attention,
  text_and_image_attention,
)
from vidstep.models.checks import check_fields, check_inputs
from vidstep.models.cond import Cond, Out
from vidstep.models.embed import MLP, ImageEmbed, patchify, sinusoid, unpatchify
from vidstep.models.layout import plain
from vidstep.models.linear import Linear
from vidstep.models.parts import collect, deal, deal_table, repeat_frames
from vidstep.models.past import Keys
from vidstep.models.positions import Positions, far_frames, key_sets
from vidstep.models.precision import stat_dtype
from vidstep.models.remat import POLICIES
from vidstep.models.rope import apply_rope, halves, rope_table


class VideoDiT(nn.Module):
  """Video diffusion transformer (DiT, arXiv 2212.09748) with the block of Wan 2.1 (2503.20314).

  Parameters are float32. Norms, modulation, times, softmax statistics and the returned velocity
  are float32 whatever the compute dtype. A fresh network returns v = 0 (or x0 = 0).

  Attributes:
    dim: width.
    heads: attention heads.
    depth: blocks.
    ffn_dim: hidden width of the feed-forward part; None means 4 dim.
    patch: (frames, height, width) of a token.
    in_channels: channels of x plus those of `cond.image`.
    out_channels: channels of x.
    text_dim: channels of the text embeddings; None builds no cross-attention.
    image_dim: channels of `cond.image_tokens`, which cross-attention reads beside the text (Wan's
      image-to-video); None for none.
    image_tokens: how many those are.
    action_dim: length of an action vector; 0 for none.
    actions_per_frame: action vectors per latent frame (S).
    time_scale: factor on times before their sinusoids. 1000 is Wan's and that of pretrained
      networks; it makes `dv/dt` of a network noise. Objectives with a tangent (sCM, MeanFlow) want
      1, the identity transform of Lu and Song 2024 (section 4.1), if the network is your own.
    second_time: also embed `t - s` (flow maps); starts as nothing, so that a network trained
      without it keeps its function.
    prediction: what the last layer means. "v": the velocity. "x0": the clean video, and
      v = (x_t - x0) / max(t, t_min); suits raw pixels and big patches.
    t_min: bounds the factor 1/t by which an error in x0 grows in v. Below t_min the implied
      velocity shrinks, so an ODE step from t < t_min to 0 stops short of x0.
    dtype: compute dtype.
    remat: what blocks keep for the gradient: None for everything, or a name in
      `vidstep.models.remat.POLICIES`.
    scan: run the blocks as one `lax.scan` over stacked parameters: compile time independent of
      depth. See `stack_blocks` and `unstack_blocks`.
    attention: implementation for `vidstep.attention.attention`: a name, None for the best, or on a
      mesh a `vidstep.parallel.attention.ShardedAttention`.
    features: numbers of the blocks whose outputs are returned in `Out.features`.
  """

  dim: int
  heads: int
  depth: int
  ffn_dim: int | None = None
  patch: tuple[int, int, int] = (1, 2, 2)
  in_channels: int = 3
  out_channels: int = 3
  text_dim: int | None = None
  image_dim: int | None = None
  image_tokens: int = 257
  action_dim: int = 0
  actions_per_frame: int = 1
  time_scale: float = 1000.0
  second_time: bool = False
  prediction: str = "v"
  t_min: float = 0.05
  dtype: jnp.dtype = jnp.float32
  remat: str | None = None
  scan: bool = False
  attention: str | None = None
  features: tuple[int, ...] = ()

  @nn.compact
  def __call__(self, x, t, *, s=None, cond: Cond | None = None, layout=None, cache=None) -> Out:
    """Velocity of a noisy video.

    Args:
      x: [B, F, H, W, C] noisy latents or pixels at time t.
      t: [B] or [B, F] float32 in [0, 1], 1 is noise. Never lower precision. With patches of
        several frames the time of a patch is that of its first frame.
      s: [B] or [B, F] float32, second time of a flow map; None means s = t.
      cond: the conditions; `cond.context` must have been packed (see `layout.pack`).
      layout: which frame is which and the mask; None means frames 0 .. F-1 and full attention.
      cache: None, or a `Past` whose frames precede those of `layout` (with one) as further keys,
        and whose text stands in for `cond.text`. `layout.mask` is one rule over both; empty slots
        need a `Valid` or `Present` in it. See `vidstep.causal`.

    Returns:
      `Out` with `v` [B, F, H, W, C] float32, and with a cache the `Keys` of these frames.

    Raises:
      ValueError: if fields or shapes do not fit, in one sentence that says what to change.
      NotImplementedError: for shots, or a cache of patches of several frames.
    """
    cond = Cond() if cond is None else cond
    check_fields(self)
    check_inputs(self, x, t, s, cond, layout, cache)
    layout = plain(x.shape[1]) if layout is None else layout
    stat = stat_dtype(self.dtype)
    zeros = nn.initializers.zeros

    pixels = x.astype(self.dtype)
    if cond.image is not None:
      pixels = jnp.concatenate([pixels, cond.image.astype(self.dtype)], axis=-1)
    h = patchify(pixels, self.patch)
    b, f, rows, columns, _ = h.shape
    parts = self._parts(f, rows * columns, cache)
    h = deal(h.reshape(b, f, rows * columns, -1), parts)
    place = getattr(self.attention, "place", None)
    linear = partial(Linear, apart=place is not None)
    h = linear(self.dim, self.dtype, name="patch_embed")(h)

    lay = place or (lambda a, **_: a)
    temb = self._time_embedding(t, s, cond.actions, x.shape, stat)
    temb = lay(jnp.tile(temb, (1, parts if temb.shape[1] > 1 else 1, 1)))
    mod = Linear(6 * self.dim, stat, zeros, name="time_proj")(nn.silu(temb))
    mod = lay(mod.reshape(*temb.shape[:2], 6, self.dim))
    text, text_mask = self._text(cond, b, cache)
    text = jax.tree.map(partial(lay, frames=False), (text, self._image(cond, cache)))

    grid = rows, columns
    h, features, keys = self._blocks(h, mod, text, text_mask, layout, grid, cache, parts)
    h = lay(h)

    table = self.param("head_modulation", zeros, (2, self.dim)).astype(stat)
    shift, scale = ((temb + table[i][None, None])[:, :, None] for i in range(2))
    h = modulated_norm(h, shift, scale)
    width = self.out_channels * int(np.prod(self.patch))
    h = collect(linear(width, self.dtype, zeros, name="head")(h), parts)
    y = unpatchify(h.reshape(b, f, rows, columns, width), self.patch).astype(stat)
    if self.prediction == "x0":
      time = t.astype(stat).reshape(t.shape + (1,) * (5 - t.ndim))
      y = (x.astype(stat) - y) / jnp.maximum(time, self.t_min)
    features = tuple(collect(a, parts).reshape(b, f, rows, columns, -1) for a in features)
    return Out(v=y, cache=keys, features=features)

  def _time_embedding(self, t, s, actions, shape, stat):
    """[B, F', dim] with per-frame times or actions, else [B, 1, dim]."""
    frames = self.patch[0]
    per_frame = lambda a: a[:, None] if a.ndim == 1 else a[:, ::frames]
    t = per_frame(t.astype(stat))
    temb = MLP(self.dim, stat, name="time_embed")(sinusoid(self.time_scale * t))
    if self.second_time:
      gap = t - (t if s is None else per_frame(s.astype(stat)))
      embed = MLP(self.dim, stat, zero=True, name="second_time_embed")
      temb = temb + embed(sinusoid(self.time_scale * gap))
    if self.action_dim:
      if actions is None:
        actions = jnp.zeros((1, shape[1], self.actions_per_frame, self.action_dim), stat)
      embed = ActionEmbed(self.dim, stat, name="action_embed")
      temb = temb + embed(actions.astype(stat), frames)
    return temb

  def _text(self, cond, batch, cache):
    """Embedded text [B, L, dim] and its mask; no text stands for one token that is masked out."""
    if self.text_dim is None:
      return None, None
    if cache is not None and cache.text is not None:
      return None, cache.text_mask
    text, mask = cond.text, cond.text_mask
    if text is None:
      text, mask = jnp.zeros((batch, 1, self.text_dim), self.dtype), jnp.zeros((batch, 1), bool)
    gelu = partial(nn.gelu, approximate=True)
    return MLP(self.dim, self.dtype, gelu, name="text_embed")(text.astype(self.dtype)), mask

  def _image(self, cond, cache):
    """Embedded image tokens [B, M, dim], unless there are none or a cache holds their keys."""
    if self.image_dim is None or (cache is not None and cache.text is not None):
      return None
    return ImageEmbed(self.dim, self.dtype, name="image_embed")(cond.image_tokens)

  def _parts(self, frames, tokens, cache):
    """Into how many parts frames are dealt: one, unless they do not divide among the devices."""
    shards = getattr(self.attention, "shards", 1)
    return shards if cache is None and frames % shards and tokens % shards == 0 else 1

  def _blocks(self, h, mod, text, text_mask, layout, grid, cache, parts):
    """Runs all blocks; returns tokens, the features asked for, and keys if there is a cache."""
    info = layout.info
    if self.patch[0] > 1:
      first = lambda a: a[..., :: self.patch[0]]
      info = token_info(
        first(info.frame) // self.patch[0], first(info.chunk), first(info.role), first(info.valid)
      )
    info = repeat_frames(info, parts)
    sets = self._key_sets(layout, info, grid, cache, parts)
    turned = cache is not None and cache.turned
    attend = partial(
      self_attention, sets=sets, info=info, implementation=self.attention, turned=turned
    )
    attend_text = None
    if self.text_dim is not None:
      attend_text = partial(cross_attention, valid=text_mask, implementation=self.attention)
    if self.image_dim is not None:
      attend_text = partial(
        text_and_image_attention,
        valid=text_mask,
        implementation=self.attention,
        image=self.image_tokens,
      )
    fields = {
      "heads": self.heads,
      "ffn_dim": self.ffn_dim or 4 * self.dim,
      "dtype": self.dtype,
      "attend": attend,
      "attend_text": attend_text,
      "load": None if cache is None else cache.load,
      "place": getattr(self.attention, "place", None),
      "keep_key": partial(apply_rope, table=sets[0][1][1]) if turned else halves,
    }
    past = (None, None) if cache is None else (cache.layers, cache.text)
    block = Block
    if self.remat is not None:
      block = nn.remat(Block, policy=POLICIES[self.remat], prevent_cse=not self.scan)
    if self.scan:
      stacked = nn.scan(
        block,
        variable_axes={"params": 0},
        split_rngs={"params": True},
        in_axes=(nn.broadcast, nn.broadcast, 0, 0),
        length=self.depth,
      )
      stacked = stacked(**fields, keep=bool(self.features), name="blocks")
      h, (kept, keys) = stacked(h, mod, text, *past)
    else:
      kept, keys = [], []
      for i in range(self.depth):
        layer = jax.tree.map(lambda a, i=i: a[i], past)
        run = block(**fields, keep=i in self.features, name=f"blocks_{i}")
        h, (feature, made) = run(h, mod, text, *layer)
        kept.append(feature)
        keys.append(made)
      keys = jax.tree.map(lambda *a: jnp.stack(a), *keys)
    return h, [kept[i] for i in self.features], None if cache is None else Keys(*keys)

  def _key_sets(self, layout, info, grid, cache, parts):
    """What the frames of `info` attend to, with tables for RoPE: see `self_attention`."""
    turned = cache is not None and cache.turned
    positions = Positions() if turned else layout.positions
    keys, far = info, far_frames(positions, info)
    if cache is not None and cache.layers is not None:
      own, past = info.frame.shape[-1], cache.info.frame.shape
      batched = lambda a: jnp.broadcast_to(a, (past[0], own))
      keys = concat_info(TokenInfo(*map(batched, info)), cache.info)
      far = np.arange(own + cache.far)
    if getattr(self.attention, "shards", 1) > 1:  # every device reads the same number of keys
      far = None
    sets = key_sets(positions, info, keys, layout.mask, far)

    def table(position):
      frames = position.shape[-1] // parts
      one = rope_table(position[..., :frames], *grid, self.dim // self.heads)
      return deal_table(one, frames, parts)

    ropes = []
    for one in sets:
      q = table(one.q_position)
      same = turned or one.k_position is one.q_position
      ropes.append((q, q if same else table(one.k_position)))
    return list(zip(sets, ropes, strict=True))


def layer_axes(path: tuple) -> int:
  """How many leading axes of a leaf count layers: 1 where blocks are stacked (`scan=True`), else 0.

  Args:
    path: of the leaf, as `jax.tree_util` gives it; also in a state that holds such parameters.
  """
  name = jax.tree_util.keystr(path, simple=True, separator="/")
  return int("blocks" in name.split("/"))


def stack_blocks(params: dict, depth: int) -> dict:
  """Parameters of `scan=False` -> those of `scan=True`: blocks_0 .. become one stacked `blocks`."""
  names = [f"blocks_{i}" for i in range(depth)]
  blocks = jax.tree.map(lambda *leaves: jnp.stack(leaves), *(params[name] for name in names))
  return {k: v for k, v in params.items() if k not in names} | {"blocks": blocks}


def unstack_blocks(params: dict, depth: int) -> dict:
  """Parameters of `scan=True` -> those of `scan=False`; the inverse of `stack_blocks`."""
  blocks = {
    f"blocks_{i}": jax.tree.map(lambda a, i=i: a[i], params["blocks"]) for i in range(depth)
  }
  return {k: v for k, v in params.items() if k != "blocks"} | blocks
