"""The only place that builds and cuts `[clean | noisy]` frame sequences."""

import flax.struct
import jax.numpy as jnp
import numpy as np

from vidstep.masks import CLEAN, NOISY, Rule, TokenInfo, token_info
from vidstep.models.cond import Cond
from vidstep.models.positions import Positions


@flax.struct.dataclass
class Layout:
  """Which latent frame of a sequence is which, and who may attend to whom.

  Attributes:
    info: attributes of every latent frame (frame number, chunk, role, valid), [F] or [B, F].
    mask: a rule of `vidstep.masks`, or None for full attention.
    shards: devices that the sequence is dealt to, each its clean frames, then its noisy ones.
    positions: which RoPE positions frames have.
  """

  info: TokenInfo
  mask: Rule | None = flax.struct.field(pytree_node=False, default=None)
  shards: int = flax.struct.field(pytree_node=False, default=1)
  positions: Positions = flax.struct.field(pytree_node=False, default=Positions())


def plain(frames: int, *, chunks=None, mask=None) -> Layout:
  """Layout of noisy frames 0 .. frames-1 alone.

  Args:
    frames: number of latent frames F.
    chunks: see `pack`.
    mask: rule or None.

  Returns:
    The `Layout`.
  """
  number = np.arange(frames, dtype=np.int32)
  return Layout(token_info(number, chunk=_chunk_of(number, chunks)), mask)


def pack(
  x,
  t,
  cond: Cond,
  *,
  clean,
  clean_frames=None,
  noisy_frames=None,
  chunks=None,
  mask=None,
  shards=1,
):
  """Puts clean frames in front of noisy ones as one sequence, clean frames at time 0.

  By default the clean frames are the context 0 .. n-1 of noisy frames n .. n+F-1. Teacher forcing
  passes its own numbers (see `teacher_forcing`), so that a frame may appear twice.

  Args:
    x: [B, F, H, W, C] noisy frames.
    t: [B] or [B, F] float32, their times (1 is noise).
    cond: `actions` and `image`, if given, have one entry for every frame of the video; they are
      gathered by frame number. `clean` takes the place of `context` and `cond.clean`.
    clean: [B, n, H, W, C] clean frames.
    clean_frames: n frame numbers; default 0 .. n-1.
    noisy_frames: F frame numbers; default n .. n+F-1.
    chunks: chunk of every frame of the video (`vidstep.masks.chunk_index`); default: each its own.
    mask: rule or None for full attention.
    shards: with P > 1 the order is `c0 n0 c1 n1 ...`: of P devices that share the sequence equally
      each holds 1/P of the clean and 1/P of the noisy frames.

  Returns:
    x [B, n+F, H, W, C], t [B, n+F], cond (per packed frame), layout.

  Raises:
    ValueError: if shapes or frame numbers do not fit each other.
  """
  n, f = clean.shape[1], x.shape[1]
  if clean.shape[0] != x.shape[0] or clean.shape[2:] != x.shape[2:]:
    raise ValueError(
      f"clean frames have shape {clean.shape} but the noisy ones {x.shape}; "
      "only the number of frames may differ."
    )
  if n % shards or f % shards:
    raise ValueError(f"{n} clean and {f} noisy frames do not divide among {shards} shards.")
  clean_frames = _numbers("clean_frames", clean_frames, np.arange(n), n)
  noisy_frames = _numbers("noisy_frames", noisy_frames, np.arange(n, n + f), f)
  number = _deal(clean_frames[None], noisy_frames[None], shards)[0]
  role = _deal(np.full((1, n), CLEAN), np.full((1, f), NOISY), shards)[0]
  info = token_info(number, chunk=_chunk_of(number, chunks), role=role)
  layout = Layout(info, mask, shards=shards)

  frames = int(number.max()) + 1
  deal = lambda a: _deal(_take(a, clean_frames), _take(a, noisy_frames), shards)
  cond = cond.replace(
    actions=deal(_per_frame("actions", cond.actions, frames)),
    image=deal(_per_frame("image", cond.image, frames)),
    context=None,
    clean=None,
  )
  return _deal(clean.astype(x.dtype), x, shards), pack_time(t, layout), cond, layout


def pack_time(t, layout: Layout):
  """Times of a packed sequence: 0 at clean frames.

  Args:
    t: [B] or [B, F] float32, times of the F noisy frames.
    layout: what `pack` returned.

  Returns:
    [B, n+F].
  """
  n = _clean_count(layout)
  f = layout.info.role.shape[-1] - n
  t = jnp.broadcast_to(t[:, None], (t.shape[0], f)) if t.ndim == 1 else t
  return _deal(jnp.zeros((t.shape[0], n), t.dtype), t, layout.shards)


def unpack(y, layout: Layout):
  """Cuts the noisy frames out of a packed sequence.

  Args:
    y: [B, n+F, ...].
    layout: what `pack` returned.

  Returns:
    [B, F, ...].
  """
  n, p = _clean_count(layout), layout.shards
  noisy = y.reshape(y.shape[0], p, -1, *y.shape[2:])[:, :, n // p :]
  return noisy.reshape(y.shape[0], -1, *y.shape[2:])


def teacher_forcing(x, t, cond: Cond, *, clean, chunks=None, mask=None, shards=1):
  """Packs the noisy frames of a video behind its clean ones, the last clean chunk dropped.

      [context 0 .. n-1 | clean n .. n+F-1, but for the last chunk | noisy n .. n+F-1]

  Nothing reads the last clean chunk: a noisy chunk sees the clean chunks before it. Without it,
  attention over equal chunks costs exactly N^2.

  Over P devices that order leaves some with nothing but context and others with nothing but loss.
  With `shards=P` each holds clean and noisy copies of its own frames, `[clean(p) | noisy(p)]`, and
  the last clean chunk stays (LongLive 2.0, arXiv 2605.18739, balanced sequence parallelism). What
  is computed is the same.

  Args:
    x: [B, F, H, W, C] noisy frames.
    t: [B] or [B, F] float32.
    cond: as in `pack`; with `context`, frames are numbered from its first one.
    clean: [B, F, H, W, C] the same frames without noise.
    chunks: as in `pack`.
    mask: rule; `vidstep.masks.TeacherForcing()` makes it causal.
    shards: P, see above; of a context that P does not divide, the last n % P clean frames go.

  Returns:
    As `pack`, with n + F minus the length of the last chunk clean frames if `shards` is 1.

  Raises:
    ValueError: if `clean` and `x` differ in shape, if a chunk holds context and noisy frames, or if
      the frames do not divide among the shards.
  """
  if clean.shape != x.shape:
    raise ValueError(f"teacher forcing needs clean {clean.shape} and noisy {x.shape} alike.")
  n = 0 if cond.context is None else cond.context.shape[1]
  frames = np.arange(n + x.shape[1], dtype=np.int32)
  chunk = _chunk_of(frames, chunks)
  if n and chunk[n - 1] == chunk[n]:
    raise ValueError(f"chunk {chunk[n]} holds context and noisy frames: a chunk must begin at {n}.")
  read = frames[chunk != chunk[-1]]
  kept = read if shards == 1 else frames[: len(frames) // shards * shards]
  if len(kept) < len(read):
    raise ValueError(
      f"{n} frames of context do not divide among {shards} shards: the {n % shards} clean frames "
      "too many must belong to the last chunk, which nothing reads."
    )
  past = clean if n == 0 else jnp.concatenate([cond.context.astype(clean.dtype), clean], axis=1)
  return pack(
    x,
    t,
    cond,
    clean=past[:, : len(kept)],
    clean_frames=kept,
    noisy_frames=frames[n:],
    chunks=chunks,
    mask=mask,
    shards=shards,
  )


def _deal(clean, noisy, shards):
  """[B, n, ...] and [B, F, ...] -> [B, n+F, ...], to every shard its clean and its noisy frames."""
  if clean is None:
    return None
  xp = np if all(isinstance(a, np.ndarray) for a in (clean, noisy)) else jnp
  part = lambda a: a.reshape(a.shape[0], shards, a.shape[1] // shards, *a.shape[2:])
  both = xp.concatenate([part(clean), part(noisy)], axis=2)
  return both.reshape(clean.shape[0], -1, *clean.shape[2:])


def _clean_count(layout):
  return int(np.sum(np.asarray(layout.info.role) == CLEAN))


def _numbers(name, given, default, length):
  numbers = np.asarray(default if given is None else given, np.int32)
  if numbers.shape != (length,):
    raise ValueError(f"{name} must number {length} frames, but has shape {numbers.shape}.")
  return numbers


def _chunk_of(number, chunks):
  """Chunk number of every frame number."""
  if chunks is None:
    return number
  chunks = np.asarray(chunks, np.int32)
  if number.max() >= len(chunks):
    raise ValueError(f"chunks numbers {len(chunks)} frames, but frame {number.max()} is used.")
  return chunks[number]


def _per_frame(name, values, frames):
  """A per-frame condition, checked to have an entry for every frame."""
  if values is not None and values.shape[1] != frames:
    raise ValueError(
      f"{name} must have one entry for each of the {frames} frames of the video "
      f"(context included), but has {values.shape[1]}."
    )
  return values


def _take(values, numbers):
  """Entries of the frames `numbers`: a slice where they follow each other, as a shard's do."""
  if values is None:
    return None
  if len(numbers) and (np.diff(numbers) == 1).all():
    return values[:, numbers[0] : numbers[0] + len(numbers)]
  return values[:, numbers]
