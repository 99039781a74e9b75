"""Token attributes: which frame and chunk a token belongs to, clean or noisy, real or padding.

As NumPy arrays they are known while tracing, and the host can plan which tiles attention touches.
As traced arrays (cache slots, shards, per-sample lengths) the mask is evaluated on the device.
"""

from collections.abc import Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

CLEAN, NOISY = 0, 1

ArrayLike = np.ndarray | jax.Array | Sequence[int] | int


class TokenInfo(NamedTuple):
  """Attributes of N tokens, each an int32 array `[N]` or `[B, N]`.

  Attributes:
    frame: latent frame the token belongs to, counted over the whole video.
    chunk: group of frames that is denoised together, counted over the whole video.
    role: `CLEAN` (context, at time 0) or `NOISY` (being denoised).
    valid: 1 for a token that exists, 0 for padding or an empty cache slot.
  """

  frame: ArrayLike
  chunk: ArrayLike
  role: ArrayLike
  valid: ArrayLike

  def tokens(self, n: int) -> "TokenInfo":
    """Repeats every entry `n` times: from attributes of frames to those of their tokens."""
    xp = np if self.static else jnp
    return TokenInfo(*(xp.repeat(field, n, axis=-1) for field in self))

  @property
  def static(self) -> bool:
    """Whether every attribute is known on the host (NumPy)."""
    return not any(isinstance(field, jax.Array) for field in self)


def token_info(
  frame: ArrayLike,
  chunk: ArrayLike | None = None,
  role: ArrayLike | None = None,
  valid: ArrayLike | None = None,
) -> TokenInfo:
  """Builds a `TokenInfo`, filling what is left out and broadcasting scalars.

  Args:
    frame: `[N]` or `[B, N]` frame indices.
    chunk: as `frame`; each frame is its own chunk when left out.
    role: `CLEAN` or `NOISY`, as `frame` or a scalar; `NOISY` when left out.
    valid: 1 or 0 (or bool), as `frame` or a scalar; 1 when left out.

  Returns:
    int32 arrays of one common shape; NumPy if all inputs are, else JAX.

  Raises:
    ValueError: for attributes that are not integers or bool, or whose shapes do not broadcast.
  """
  fields = [
    frame,
    frame if chunk is None else chunk,
    NOISY if role is None else role,
    1 if valid is None else valid,
  ]
  xp = jnp if any(isinstance(field, jax.Array) for field in fields) else np
  fields = [xp.asarray(field) for field in fields]
  for name, field in zip(TokenInfo._fields, fields, strict=True):
    if not (np.issubdtype(field.dtype, np.integer) or field.dtype == np.bool_):
      raise ValueError(f"{name} holds {field.dtype}; token attributes are integers.")
  shape = np.broadcast_shapes(*(field.shape for field in fields))
  return TokenInfo(*(xp.broadcast_to(field.astype(np.int32), shape) for field in fields))


def concat_info(*infos: TokenInfo) -> TokenInfo:
  """Joins attributes along the token axis, as `concatenate` joins the tokens themselves."""
  xp = np if all(info.static for info in infos) else jnp
  return TokenInfo(*(xp.concatenate(fields, axis=-1) for fields in zip(*infos, strict=True)))


def chunk_index(frames: int, size: int | tuple[int, int], first: int | None = None) -> np.ndarray:
  """Chunk of every frame: `first` frames, then chunks of `size`, the last one what remains.

  Args:
    frames: number of latent frames.
    size: frames in a chunk; or (first, size), both in one.
    first: frames in the first chunk (1 when the clip opens on an image); `size` if left out.

  Returns:
    int32 `[frames]`, e.g. `chunk_index(6, 2, first=1)` is `[0, 1, 1, 2, 2, 3]`.

  Raises:
    ValueError: for a size below one.
  """
  if np.ndim(size):
    first, size = size
  first = size if first is None else first
  if size < 1 or first < 1:
    raise ValueError(f"chunks hold at least one frame; got size={size}, first={first}.")
  index = np.arange(frames, dtype=np.int32)
  return np.where(index < first, 0, 1 + (index - first) // size).astype(np.int32)


def teacher_forcing_info(chunk: np.ndarray, *, shards: int = 1) -> TokenInfo:
  """Attributes of a packed teacher-forcing sequence, one entry a frame.

  With one shard the order is `[clean 0..F-1 | noisy 0..F-1]`. With P shards each holds its own
  L = F/P frames twice, `[clean pL..pL+L-1 | noisy pL..pL+L-1]`, and the whole is
  `c0 n0 c1 n1 ...`: every device has as many clean as noisy tokens (LongLive 2.0, balanced
  sequence parallelism). `TeacherForcing` masks either by attributes alone.

  Args:
    chunk: `[F]` chunk of every frame, from `chunk_index`.
    shards: number of devices the sequence is spread over.

  Returns:
    `TokenInfo` of `[2F]` entries.

  Raises:
    ValueError: if the frames do not divide among the shards.
  """
  frames = len(chunk)
  if frames % shards:
    raise ValueError(f"{frames} frames do not divide among {shards} shards.")
  index = np.arange(frames, dtype=np.int32).reshape(shards, 1, -1)
  both = np.broadcast_to(index, (shards, 2, frames // shards))
  role = np.broadcast_to(np.array([CLEAN, NOISY], np.int32)[None, :, None], both.shape)
  return token_info(both.reshape(-1), np.asarray(chunk)[both.reshape(-1)], role.reshape(-1))
