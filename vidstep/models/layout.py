"""The only place that builds and cuts `[clean | noisy]` frame sequences."""

import flax.struct
import jax.numpy as jnp
import numpy as np

from vidstep.masks import CLEAN, NOISY, Rule, TokenInfo, token_info
from vidstep.models.cond import Cond


@flax.struct.dataclass
class Layout:
  """Which latent frame of a sequence is which, and who may attend to whom.

  Attributes:
    info: attributes of every latent frame (frame number, chunk, role, valid), [F] or [B, F].
    mask: a rule of `vidstep.masks`, or None for full attention.
  """

  info: TokenInfo
  mask: Rule | None = flax.struct.field(pytree_node=False, default=None)


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


def pack(x, t, cond: Cond, *, clean, clean_frames=None, noisy_frames=None, chunks=None, mask=None):
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
  clean_frames = _numbers("clean_frames", clean_frames, np.arange(n), n)
  noisy_frames = _numbers("noisy_frames", noisy_frames, np.arange(n, n + f), f)
  number = np.concatenate([clean_frames, noisy_frames])
  role = np.repeat(np.int32([CLEAN, NOISY]), [n, f])
  info = token_info(number, chunk=_chunk_of(number, chunks), role=role)
  layout = Layout(info, mask)

  frames = int(number.max()) + 1
  cond = cond.replace(
    actions=_gather("actions", cond.actions, number, frames),
    image=_gather("image", cond.image, number, frames),
    context=None,
    clean=None,
  )
  x = jnp.concatenate([clean.astype(x.dtype), x], axis=1)
  return x, pack_time(t, layout), cond, layout


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
  return jnp.pad(t, ((0, 0), (n, 0)))


def unpack(y, layout: Layout):
  """Cuts the noisy frames out of a packed sequence.

  Args:
    y: [B, n+F, ...].
    layout: what `pack` returned.

  Returns:
    [B, F, ...].
  """
  return y[:, _clean_count(layout) :]


def teacher_forcing(x, t, cond: Cond, *, clean, chunks=None, mask=None):
  """Packs the noisy frames of a video behind its clean ones, the last clean chunk dropped.

      [context 0 .. n-1 | clean n .. n+F-1, but for the last chunk | noisy n .. n+F-1]

  Nothing reads the last clean chunk: a noisy chunk sees the clean chunks before it. Without it,
  attention over equal chunks costs exactly N^2.

  Args:
    x: [B, F, H, W, C] noisy frames.
    t: [B] or [B, F] float32.
    cond: as in `pack`; with `context`, frames are numbered from its first one.
    clean: [B, F, H, W, C] the same frames without noise.
    chunks: as in `pack`.
    mask: rule; `vidstep.masks.TeacherForcing()` makes it causal.

  Returns:
    As `pack`, with n + F minus the length of the last chunk clean frames.

  Raises:
    ValueError: if `clean` and `x` differ in shape, or a chunk holds context and noisy frames.
  """
  if clean.shape != x.shape:
    raise ValueError(f"teacher forcing needs clean {clean.shape} and noisy {x.shape} alike.")
  n = 0 if cond.context is None else cond.context.shape[1]
  frames = np.arange(n + x.shape[1], dtype=np.int32)
  chunk = _chunk_of(frames, chunks)
  if n and chunk[n - 1] == chunk[n]:
    raise ValueError(f"chunk {chunk[n]} holds context and noisy frames: a chunk must begin at {n}.")
  kept = frames[chunk != chunk[-1]]
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
  )


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


def _gather(name, values, number, frames):
  """Entries of a per-frame condition for every packed frame."""
  if values is None:
    return None
  if values.shape[1] != frames:
    raise ValueError(
      f"{name} must have one entry for each of the {frames} frames of the video "
      f"(context included), but has {values.shape[1]}."
    )
  return values[:, number]
