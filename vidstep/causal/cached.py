"""A video DiT behind a key-value cache: a `CausalNetwork` that computes every frame once."""

import dataclasses

import flax.linen as nn
import jax.numpy as jnp

from vidstep import paths
from vidstep.causal import kv_cache
from vidstep.causal.kv_cache import CachePolicy, KVCache
from vidstep.masks import (
  CLEAN,
  NOISY,
  Intersection,
  Prefix,
  Present,
  Rule,
  TeacherForcing,
  Window,
  token_info,
)
from vidstep.models.cond import Cond
from vidstep.models.layout import Layout
from vidstep.models.past import Past

TEACHER_FORCING = TeacherForcing()


@dataclasses.dataclass(frozen=True)
class CachedNetwork:
  """Chunk-by-chunk forward of a causal `VideoDiT`; see `vidstep.causal.network.CausalNetwork`.

  It computes what the packed, teacher-forced forward computes: `read` what a noisy chunk is given
  there, `append` what its clean copy is given, under the one rule `mask`. Without a `Window` in
  the mask, a chunk sees all frames that the cache holds; with one, no others than it allows.

  Attributes:
    model: a `VideoDiT` with patches of one frame.
    policy: what the cache keeps.
    mask: causality, and a `Window` if the network was trained with one.

  Raises:
    ValueError: when built, if the mask allows frames that the cache does not keep.
    NotImplementedError: for patches of several frames.
  """

  model: nn.Module
  policy: CachePolicy
  mask: Rule = TEACHER_FORCING

  def __post_init__(self):
    if self.model.patch[0] > 1:
      raise NotImplementedError(
        f"a cache keeps single frames: patch={tuple(self.model.patch)} must begin with 1."
      )
    if self.policy.whole and self.mask != TEACHER_FORCING:
      raise ValueError(f"a whole cache has no mask of its own, but {self.mask} hides some frames.")
    for window in _windows(self.mask):  # a chunk is a frame at least; its size, when it is known
      self._check_kept(window, window.size - 1)

  def start(self, params, like, cond: Cond) -> KVCache:
    """An empty cache for videos shaped like `like` [B, F, H, W, C], with the text of `cond`.

    Args:
      params: parameters of the model; they make the keys of the text.
      like: an array, or `jax.ShapeDtypeStruct`; its number of frames does not matter.
      cond: its text alone is used. `cond.context` is to be appended as the first chunk.

    Returns:
      The `KVCache`.
    """
    model = self.model
    b, _, h, w, c = like.shape
    _, ph, pw = model.patch
    inputs = {}
    if self.policy.recache:
      inputs["x"] = (h, w, c), like.dtype
      if model.action_dim:
        inputs["actions"] = (model.actions_per_frame, model.action_dim), jnp.float32
      if model.in_channels > c:
        inputs["image"] = (h, w, model.in_channels - c), like.dtype
    return kv_cache.empty(
      self.policy,
      batch=b,
      layers=model.depth,
      tokens=(h // ph) * (w // pw),
      heads=model.heads,
      head_dim=model.dim // model.heads,
      text=self._text(params, b, cond),
      inputs=inputs,
    )

  def read(self, params, x, t, cond: Cond, cache: KVCache, *, s=None):
    """Velocity [B, c, H, W, C] of the next chunk, x at time t [B] or [B, c]."""
    return self._run(params, x, t, s, cond, cache, NOISY).v

  def append(self, params, x, cond: Cond, cache: KVCache, *, t=None) -> KVCache:
    """The cache after the chunk x [B, c, H, W, C], which the network reads at time t (None: 0)."""
    t = jnp.zeros(x.shape[:1], jnp.float32) if t is None else t
    out = self._run(params, x, t, None, cond, cache, CLEAN)
    return self._write(cache, out, x, cond)

  def read_append(self, params, x, t, cond: Cond, cache: KVCache, *, s=None):
    """`read`, and the cache after that very forward.

    Later chunks then see keys of the noisy x (Causal-rCM's noisy context: a forward less a chunk).
    What is kept for a new prompt is the clean estimate x - t v.

    Returns:
      (v, cache).
    """
    out = self._run(params, x, t, s, cond, cache, NOISY)
    # Always 0, but not before all has been read: else compilers copy the cache to write it earlier.
    late = (out.v.reshape(-1)[0] < -jnp.inf).astype(jnp.int32)
    cache = cache.replace(count=cache.count + late)
    return out.v, self._write(cache, out, paths.x0_from_v(x, out.v.astype(x.dtype), t), cond)

  def switch(self, params, cond: Cond, cache: KVCache) -> KVCache:
    """The cache under a new prompt, `cond.text` and `cond.text_mask`; of the same shapes.

    The keys of the text are computed anew. With `policy.recache` so are those of all frames that
    the cache holds: they are run through the network once more, clean, at time 0, as one sequence
    under the same causal mask (KV-recache, LongLive, 2509.22622, section 3.2). The order of slots
    does not matter, since mask and positions go by frame numbers. Without it the frames keep what
    they carry of the old prompt, which is cheaper and lingers.

    The frames see each other, but no longer those that the cache has dropped. The live window does
    not count here, so that it may be widened later.

    Raises:
      ValueError: for a network without text.
    """
    if self.model.text_dim is None:
      raise ValueError("this network has no text to switch: build it with text_dim.")
    text, mask = self._text(params, cache.count.shape[0], cond)
    if mask is None and cache.text_mask is not None:
      mask = jnp.ones_like(cache.text_mask)
    cache = cache.replace(text=text, text_mask=mask)
    if not self.policy.recache:
      return cache
    inputs = cache.inputs
    given = Cond(actions=self._actions(inputs.get("actions")), image=inputs.get("image"))
    full = cache.replace(window=jnp.full_like(cache.window, self.policy.window))
    past = Past(text=text, text_mask=mask, turned=self.policy.turned)
    t = jnp.zeros(cache.count.shape[0])
    made = self._forward(params, inputs["x"], t, None, given, full.info, past).cache
    return kv_cache.overwrite(cache, made.k, made.v)

  def _run(self, params, x, t, s, cond, cache, role):
    number = jnp.arange(x.shape[1], dtype=jnp.int32)[None]
    chunk = cache.chunks[:, None] + 0 * number
    info = token_info(cache.count[:, None] + number, chunk=chunk, role=role)
    for window in _windows(self.mask):
      if window.by == "chunk":
        self._check_kept(window, (window.size - 1) * x.shape[1])
    cond = Cond(actions=cond.actions, image=cond.image)
    return self._forward(params, x, t, s, cond, info, cache.past())

  def _forward(self, params, x, t, s, cond, info, past):
    layout = None if info is None else Layout(info, self._rule(), positions=self.policy.rope)
    return self.model.apply({"params": params}, x, t, s=s, cond=cond, layout=layout, cache=past)

  def _actions(self, actions):
    """Actions [B, F, S, A] as the network takes them."""
    if actions is None:
      return None
    return actions[:, :, 0] if self.model.actions_per_frame == 1 else actions

  def _write(self, cache, out, x, cond):
    inputs = {"x": x, "image": cond.image}
    if "actions" in cache.inputs:
      shape = (*x.shape[:2], *cache.inputs["actions"].shape[2:])
      inputs["actions"] = jnp.zeros(shape) if cond.actions is None else cond.actions.reshape(shape)
    return kv_cache.write(cache, out.cache.k, out.cache.v, inputs)

  def _rule(self):
    """The mask for slots some of which are empty and some pinned."""
    if self.policy.whole:
      return Prefix()
    pin = lambda rule: (
      dataclasses.replace(rule, pinned=True)
      if isinstance(rule, Window) and self.policy.pinned
      else rule
    )
    rules = getattr(self.mask, "rules", (self.mask,))
    return Intersection(tuple(map(pin, rules))) & Present()

  def _text(self, params, batch, cond):
    """Keys, values and mask of the text: what a forward of one empty patch leaves behind."""
    model = self.model
    if model.text_dim is None:
      return None, None
    x = jnp.zeros((batch, *model.patch, model.out_channels))
    extra = model.in_channels - model.out_channels
    image = jnp.zeros((*x.shape[:-1], extra)) if extra else None
    given = cond.replace(actions=None, image=image, context=None, clean=None)
    alone = dataclasses.replace(self, model=model.clone(attention="xla"))  # nothing to shard
    text = alone._forward(params, x, jnp.zeros(batch), None, given, None, Past()).cache.text
    mask = cond.text_mask
    if cond.text is None:
      mask = jnp.zeros(text[0].shape[1:3], bool)
    return text, mask

  def _check_kept(self, window, past):
    if past > self.policy.window or window.sink > self.policy.sink:
      raise ValueError(
        f"{window} lets a frame see {past} earlier ones and {window.sink} of the sink, but the "
        f"cache keeps window={self.policy.window} and sink={self.policy.sink}: enlarge the policy."
      )


def _windows(mask):
  return [rule for rule in getattr(mask, "rules", (mask,)) if isinstance(rule, Window)]
