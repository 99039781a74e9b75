"""The cache as the clean video itself: rolls out any function, and checks real caches."""

import dataclasses
from typing import Any

import flax.struct
import jax
import jax.numpy as jnp
import numpy as np

from vidstep.losses.base import Velocity
from vidstep.masks import chunk_index
from vidstep.models.cond import Cond


@flax.struct.dataclass
class PackedCache:
  """What has been generated.

  Attributes:
    video: [B, n+F, H, W, C] clean frames, the context first; anything from `count` on.
    cond: condition of the whole video, actions and image filled in as they come.
    count: [B] int32, number of the next frame.
    chunks: [B] int32, number of the next chunk.
    context: n, frames of the context.
  """

  video: jax.Array
  cond: Cond
  count: jax.Array
  chunks: jax.Array
  context: int = flax.struct.field(pytree_node=False)


@dataclasses.dataclass(frozen=True)
class PackedNetwork:
  """A teacher-forced function as a `CausalNetwork`: each read is its packed forward, cut.

  A read costs a forward over [clean | noisy] of the whole video, and remembers nothing but frames;
  in exchange any function that reads `cond.clean` can be rolled out.

  Attributes:
    velocity: `velocity(params, x [B, F, H, W, C], t [B, F], cond, *, s) -> v`, causal and teacher
      forced by `cond.clean`, such as `velocity_fn(model, chunk=chunk)`.
    chunk: frames in a chunk, k or (first, k); that of the velocity.
  """

  velocity: Velocity
  chunk: int | tuple[int, int]

  def start(self, params: Any, like: Any, cond: Cond) -> PackedCache:
    """An empty cache.

    Args:
      params: not looked at.
      like: array or `ShapeDtypeStruct` [B, n+F, H, W, C]: all frames, the context included.
      cond: whose text is kept and whose fields are; its context is not written, but counted.
    """
    del params
    rows = jnp.zeros(like.shape[0], jnp.int32)
    shape = lambda a: (*like.shape[:2], *a.shape[2:])
    blank = lambda a: None if a is None else jnp.zeros(shape(a), a.dtype)
    seen = 0 if cond.context is None else cond.context.shape[1]
    cond = cond.replace(
      actions=blank(cond.actions), image=blank(cond.image), context=None, clean=None
    )
    return PackedCache(jnp.zeros(like.shape, like.dtype), cond, rows, rows, seen)

  def read(self, params, x, t, cond, cache, *, s=None):
    """Velocity of the next chunk x [B, c, H, W, C] at t [B] or [B, c], behind the cache.

    Raises:
      ValueError: if the network has no chunk of c frames.
    """
    n, frames = cache.context, cache.video.shape[1]
    sizes = {*np.bincount(chunk_index(frames - n, self.chunk)).tolist()}
    if x.shape[1] not in sizes:
      raise ValueError(f"A chunk of {x.shape[1]} frames: this network's have {sorted(sizes)}.")
    when = lambda t: _put(jnp.broadcast_to(t[:, :1], (len(x), frames)), t, cache.count)[:, n:]
    wide = lambda t: jnp.broadcast_to(t if t.ndim == 2 else t[:, None], x.shape[:2])
    whole = _put(jnp.zeros(cache.video.shape, x.dtype), x, cache.count)[:, n:]
    known = _fill(cache, cond).replace(
      clean=cache.video[:, n:], context=cache.video[:, :n] if n else None
    )
    ends = {} if s is None else {"s": when(wide(s))}
    v = self.velocity(params, whole, when(wide(t)), known, **ends)
    return _cut(v, cache.count - n, x.shape[1])

  def append(self, params, x, cond, cache, *, t=None):
    """The cache with x [B, c, H, W, C] behind it.

    Raises:
      NotImplementedError: if t is given: packed frames are clean.
    """
    del params
    if t is not None:
      raise NotImplementedError(
        "Packed frames are clean: keys of noisy frames need a network with a real cache "
        "(vidstep.causal.cached.CachedNetwork)."
      )
    return cache.replace(
      video=_put(cache.video, x.astype(cache.video.dtype), cache.count),
      cond=_fill(cache, cond),
      count=cache.count + x.shape[1],
      chunks=cache.chunks + 1,
    )

  def read_append(self, params, x, t, cond, cache, *, s=None):
    """Not possible, see `append`."""
    return self.read(params, x, t, cond, cache, s=s), self.append(params, x, cond, cache, t=t)

  def switch(self, params, cond, cache):
    """The cache under the text of `cond`."""
    del params
    return cache.replace(cond=cache.cond.replace(text=cond.text, text_mask=cond.text_mask))


def _put(video, frames, start):
  """`video` [B, F, ...] with `frames` [B, c, ...] from frame `start` [B] on."""
  at = lambda v, x, i: jax.lax.dynamic_update_slice_in_dim(v, x, i, 0)
  return jax.vmap(at)(video, frames, start)


def _cut(video, start, size):
  """`size` frames of `video` [B, F, ...] from frame `start` [B] on."""
  return jax.vmap(lambda v, i: jax.lax.dynamic_slice_in_dim(v, i, size))(video, start)


def _fill(cache, cond):
  """The condition of the whole video with that of the next frames in its place."""
  put = lambda a, b: a if a is None or b is None else _put(a, b.astype(a.dtype), cache.count)
  return cache.cond.replace(
    actions=put(cache.cond.actions, cond.actions), image=put(cache.cond.image, cond.image)
  )
