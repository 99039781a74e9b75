"""The key-value cache of a stream: a policy as data, slots of fixed size, writing and pinning."""

import dataclasses
import functools
from typing import Any, Literal

import flax.struct
import jax
import jax.numpy as jnp
import numpy as np

from vidstep.causal import quantize
from vidstep.masks import CLEAN, PINNED, TokenInfo
from vidstep.models.past import Past
from vidstep.models.positions import Positions


@dataclasses.dataclass(frozen=True)
class CachePolicy:
  """What a cache keeps, where its frames stand and how they are stored; static.

  Attributes:
    window: latent frames of the past that are kept, besides sink and pinned ones.
    sink: first frames of the video that are kept for ever (StreamingLLM; LongLive, 2509.22622).
    pinned: slots for frames that are kept on request, see `pin`.
    positions: "absolute", "relative" or "capped", see `vidstep.models.positions.Positions`.
    cap: largest position of a query that looks at sink and pinned frames ("capped" only).
    dtype: "float32", "bfloat16" or "int8", see `vidstep.causal.quantize`. Gradients do not pass
      the rounding of int8: it is for streaming, not for training through the cache.
    recache: also keep the frames and their actions, so that a new prompt can recompute all keys
      (LongLive's KV-recache).
    whole: all frames that the cache holds are seen, by a network trained without a `Window`: there
      is no live window and no pin. The frames that exist then come first (`vidstep.masks.Prefix`),
      which fast kernels take and a mask they do not.
  """

  window: int
  sink: int = 0
  pinned: int = 0
  positions: Literal["absolute", "relative", "capped"] = "absolute"
  cap: int | None = None
  dtype: Literal["float32", "bfloat16", "int8"] = "float32"
  recache: bool = False
  whole: bool = False

  def __post_init__(self):
    if self.window < 1 or self.sink < 0 or self.pinned < 0:
      raise ValueError(f"a cache needs window >= 1, sink >= 0 and pinned >= 0; got {self}.")
    if self.dtype not in quantize.DTYPES:
      raise ValueError(f"a cache stores {', '.join(quantize.DTYPES)}, not {self.dtype!r}.")
    if self.whole and (self.pinned or self.positions == "capped"):
      raise ValueError(f"of a whole cache all is seen alike: no pins, no capped positions; {self}.")
    _ = self.rope

  @property
  def slots(self) -> int:
    """P, the number of frames that a cache holds."""
    return self.sink + self.pinned + self.window

  @property
  def turned(self) -> bool:
    """Whether keys are stored after RoPE, and never turned again.

    RoPE sees distances alone, so positions are frame numbers however long the stream is. Not where
    a key has two positions, nor in int8, whose smoothing wants keys before RoPE.
    """
    return self.positions != "capped" and self.dtype != "int8"

  @property
  def rope(self) -> Positions:
    """The position policy, as the packed training forward takes it."""
    capped = self.positions == "capped"
    return Positions(self.positions, self.sink if capped else 0, self.cap)

  def slot(self, frame):
    """Slot of a frame, [sink | pinned | ring of window]: nothing ever moves."""
    ring = self.sink + self.pinned + (frame - self.sink) % self.window
    return jnp.where(frame < self.sink, frame, ring)


@flax.struct.dataclass
class KVCache:
  """Keys and values of P slots, one frame each, for a batch of independent streams.

  Attributes:
    keys: stored keys, a dict of arrays [L, B, P, ...] (`vidstep.causal.quantize`); before RoPE or
      after it, see `CachePolicy.turned`.
    values: stored values, likewise.
    frame: [B, P] number of the frame in a slot.
    chunk: [B, P] chunk of it.
    valid: [B, P] 1 for a slot that holds a frame.
    count: [B] number of the next frame.
    chunks: [B] number of the next chunk.
    window: [B] how many frames of the past are visible besides sink and pinned ones, at most
      `policy.window`; may be changed at any time.
    pins: [B] how many frames were pinned so far.
    text: (keys, values) of the text, each [L, B, tokens, heads, D]; None without text.
    text_mask: [B, tokens] bool; None for all.
    inputs: with `policy.recache` the frames [B, P, H, W, C], their actions and images, a dict.
    policy: the `CachePolicy`, static.
  """

  keys: dict[str, jax.Array]
  values: dict[str, jax.Array]
  frame: jax.Array
  chunk: jax.Array
  valid: jax.Array
  count: jax.Array
  chunks: jax.Array
  window: jax.Array
  pins: jax.Array
  text: Any
  text_mask: jax.Array | None
  inputs: dict[str, jax.Array]
  policy: CachePolicy = flax.struct.field(pytree_node=False)

  @property
  def info(self) -> TokenInfo:
    """Attributes of the slots as the next chunk sees them: [B, P], clean.

    `valid` is 0 for an empty slot, for one that the live window has passed and for one whose frame
    is also pinned (a frame is seen once); `PINNED` for a pinned one.
    """
    policy = self.policy
    if policy.whole:
      return TokenInfo(self.frame, self.chunk, jnp.full_like(self.frame, CLEAN), self.valid)
    ring, pinned = _ring(policy), _pinned(policy)
    kept = self.frame[:, pinned]
    twin = self.frame[:, ring, None] == kept[:, None]
    twin = (twin & (self.valid[:, None, pinned] != 0)).any(-1)
    passed = self.frame[:, ring] < (self.count - self.window)[:, None]
    valid = self.valid.at[:, ring].set(jnp.where(twin | passed, 0, self.valid[:, ring]))
    valid = valid.at[:, pinned].multiply(PINNED)
    return TokenInfo(self.frame, self.chunk, jnp.full_like(self.frame, CLEAN), valid)

  def past(self) -> Past:
    """What a network reads."""
    return Past(
      layers=(self.keys, self.values),
      info=self.info,
      text=self.text,
      text_mask=self.text_mask,
      load=lambda layer: (quantize.load(layer[0]), quantize.load(layer[1])),
      far=self.policy.sink + self.policy.pinned,
      turned=self.policy.turned,
    )


def empty(policy: CachePolicy, *, batch, layers, tokens, heads, head_dim, text, inputs) -> KVCache:
  """A cache without frames.

  Args:
    policy: the policy.
    batch: B.
    layers: L, blocks of the network.
    tokens: S, tokens of a frame.
    heads: attention heads.
    head_dim: D.
    text: (keys, values, mask) of the text.
    inputs: name -> (shape of a frame, dtype) of what is kept for recomputing.

  Returns:
    The `KVCache`; its next frame is 0, its next chunk 0.
  """
  slots = policy.slots
  store = lambda smooth: quantize.empty(
    policy.dtype, (layers, batch, slots, tokens, heads, head_dim), smooth=smooth
  )
  number = lambda fill, *shape: jnp.full((batch, *shape), fill, jnp.int32)
  return KVCache(
    keys=store(True),
    values=store(False),
    frame=number(-1, slots),
    chunk=number(-1, slots),
    valid=number(0, slots),
    count=number(0),
    chunks=number(0),
    window=number(policy.window),
    pins=number(0),
    text=text[0],
    text_mask=text[1],
    inputs={name: jnp.zeros((batch, slots, *s), d) for name, (s, d) in inputs.items()},
    policy=policy,
  )


def write(cache: KVCache, k, v, inputs) -> KVCache:
  """The cache after a chunk: its frames scattered to their slots, the oldest ones overwritten.

  Args:
    cache: the cache; donate it to write in place.
    k: [L, B, c, S, heads, D] keys of the next c frames, turned as the policy says.
    v: [L, B, c, S, heads, D] values.
    inputs: name -> [B, c, ...], kept where the cache keeps inputs.

  Returns:
    The cache whose next frame is c later and whose next chunk is one later.
  """
  policy, c = cache.policy, k.shape[2]
  frame = cache.count[:, None] + jnp.arange(c, dtype=jnp.int32)[None]
  # Of a chunk longer than the ring only its last frames stay; the others have no slot.
  lost = (frame >= policy.sink) & (frame < (cache.count + c - policy.window)[:, None])
  slot = jnp.where(lost, policy.slots, policy.slot(frame))
  row = jnp.arange(frame.shape[0])[:, None]
  put = lambda old, new: old.at[row, slot].set(new.astype(old.dtype), mode="drop")
  put_layers = lambda old, new: old.at[:, row, slot].set(new, mode="drop")
  store = lambda old, new, smooth: jax.tree.map(
    put_layers, old, quantize.store(policy.dtype, new, smooth=smooth)
  )
  return cache.replace(
    keys=store(cache.keys, k, True),
    values=store(cache.values, v, False),
    frame=put(cache.frame, frame),
    chunk=put(cache.chunk, jnp.broadcast_to(cache.chunks[:, None], frame.shape)),
    valid=put(cache.valid, jnp.ones_like(frame)),
    count=cache.count + c,
    chunks=cache.chunks + 1,
    inputs={name: put(old, inputs[name]) for name, old in cache.inputs.items()},
  )


def overwrite(cache: KVCache, k, v) -> KVCache:
  """The cache with the keys and values [L, B, P, S, heads, D] of all its slots replaced."""
  store = functools.partial(quantize.store, cache.policy.dtype)
  return cache.replace(keys=store(k, smooth=True), values=store(v, smooth=False))


def pin(cache: KVCache, frame) -> KVCache:
  """Keeps a frame for as long as the stream runs, or until its slot is needed for a newer pin.

  A frame that is gone already, is in the sink or is pinned already changes nothing.

  Args:
    cache: the cache.
    frame: [B] int32 number of the frame, or one for all rows; negative for none.

  Returns:
    The cache.

  Raises:
    ValueError: if the policy has no slots for pinned frames.
  """
  policy = cache.policy
  if not policy.pinned:
    raise ValueError("nothing can be pinned: build the cache with CachePolicy(pinned=1) or more.")
  frame = jnp.broadcast_to(jnp.asarray(frame, jnp.int32), cache.count.shape)
  row = jnp.arange(frame.shape[0])
  source = policy.slot(jnp.maximum(frame, policy.sink))
  here = (cache.frame[row, source] == frame) & (cache.valid[row, source] != 0)
  pinned = _pinned(policy)
  twin = (cache.frame[:, pinned] == frame[:, None]) & (cache.valid[:, pinned] != 0)
  do = here & ~twin.any(-1)
  target = jnp.where(do, policy.sink + cache.pins % policy.pinned, policy.slots)
  copy = lambda a: a.at[row, target].set(a[row, source], mode="drop")
  copy_layers = lambda a: a.at[:, row, target].set(a[:, row, source], mode="drop")
  return cache.replace(
    keys=jax.tree.map(copy_layers, cache.keys),
    values=jax.tree.map(copy_layers, cache.values),
    frame=copy(cache.frame),
    chunk=copy(cache.chunk),
    valid=copy(cache.valid),
    pins=cache.pins + do.astype(jnp.int32),
    inputs=jax.tree.map(copy, cache.inputs),
  )


def cache_bytes(cache: KVCache) -> int:
  """Bytes of a cache, from shapes alone: `jax.eval_shape` of `start` will do."""
  return sum(int(np.prod(a.shape)) * np.dtype(a.dtype).itemsize for a in jax.tree.leaves(cache))


def cache_report(cache: KVCache) -> str:
  """What a cache takes, for people: a line a part, then the total and that of one stream.

  Args:
    cache: arrays or shapes, as for `cache_bytes`.
  """
  policy = cache.policy
  layers, batch, slots, tokens = cache.keys["x"].shape[:4]
  parts = {
    "keys": cache.keys,
    "values": cache.values,
    "text": (cache.text, cache.text_mask),
    "frames": cache.inputs,
    "numbers": (cache.frame, cache.chunk, cache.valid, cache.count, cache.chunks, cache.window),
  }
  sizes = {name: cache_bytes(part) for name, part in parts.items()}
  total = cache_bytes(cache)
  sizes["numbers"] += total - sum(sizes.values())
  rows = {name: size for name, size in sizes.items() if size}
  rows |= {"total": total, "a stream": total // batch}
  head = (
    f"{batch} streams x {slots} frames ({policy.sink} sink, {policy.pinned} pinned, "
    f"{policy.window} window) x {tokens} tokens x {layers} blocks, {policy.dtype}"
  )
  return "\n".join([head, *(f"  {name:<9}{size / 2**20:10.3f} MiB" for name, size in rows.items())])


def _ring(policy):
  return slice(policy.sink + policy.pinned, None)


def _pinned(policy):
  return slice(policy.sink, policy.sink + policy.pinned)
