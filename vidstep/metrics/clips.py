"""What a metric accepts as video: uint8 or float in [-1, 1], checked once at the door."""

import jax.numpy as jnp
import numpy as np

_SLACK = 1e-3  # rounding of a decoder's last operation, not a licence for another range


def check_clips(video, *, name="video", frames=1):
  """Returns the clips as a NumPy array, uint8 or float32, or says what is wrong with them.

  Args:
    video: [N, T, H, W, 3], uint8 in 0..255 or floating point in [-1, 1]. Nothing else is guessed:
      floats in [0, 1] or [0, 255] are another range, and only the second can be told apart.
    name: what the sentence calls the array.
    frames: the least number of frames that the caller can work with.

  Returns:
    The same values; floats become float32 and are clipped to [-1, 1] (the slack is 1e-3).

  Raises:
    ValueError: if the shape, the type, the range or the number of frames is wrong.
  """
  video = np.asarray(video)
  if video.ndim != 5 or video.shape[-1] != 3:
    raise ValueError(
      f"{name} has shape {video.shape}; give clips as [N, T, H, W, 3] (one clip: video[None])."
    )
  if 0 in video.shape:
    raise ValueError(f"{name} has shape {video.shape}: there is nothing to measure.")
  if video.shape[1] < frames:
    raise ValueError(f"{name} has T={video.shape[1]} frames; this metric needs T >= {frames}.")
  if video.dtype == np.uint8:
    return video
  if not jnp.issubdtype(video.dtype, jnp.floating):
    raise ValueError(f"{name} is {video.dtype}; give uint8 in 0..255 or floats in [-1, 1].")
  video = video.astype(np.float32)
  low, high = float(video.min()), float(video.max())
  if not (low >= -1 - _SLACK and high <= 1 + _SLACK):  # written so that NaN fails too
    raise ValueError(
      f"{name} is floating point with values in [{low:.4g}, {high:.4g}]; floats must be finite and "
      "in [-1, 1]. Clip the samples first, or give uint8."
    )
  return np.clip(video, -1, 1)


def check_pair(a, b, *, names=("a", "b"), frames=1):
  """`check_clips` for two videos that are compared frame by frame.

  Raises:
    ValueError: if either is no video or if the shapes differ.
  """
  a = check_clips(a, name=names[0], frames=frames)
  b = check_clips(b, name=names[1], frames=frames)
  if a.shape != b.shape:
    raise ValueError(f"{names[0]} {a.shape} and {names[1]} {b.shape} must have one shape.")
  return a, b


def to_unit(x):
  """Traceable: uint8 -> float32 in [-1, 1]; floating point stays as it is."""
  return x if jnp.issubdtype(x.dtype, jnp.floating) else x.astype(jnp.float32) / 127.5 - 1.0


def to_bytes(x):
  """NumPy float32 on the 0..255 scale, not rounded, whichever of the two forms x has."""
  x = np.asarray(x)
  return x.astype(np.float32) if x.dtype == np.uint8 else (x.astype(np.float32) + 1) * 127.5


def in_batches(fn, arrays, size):
  """Applies a jitted fn to rows of arrays in batches of one fixed shape, so it compiles once.

  The last batch is filled up by repeating row 0 and cut afterwards. Fewer rows than `size` are
  filled up to the next power of two: few programs, and no sixteen-fold work for a single clip.

  Args:
    fn: arrays [size, ...] -> array [size, ...].
    arrays: tuple of NumPy arrays with one length n.
    size: rows per call.

  Returns:
    NumPy array [n, ...].
  """
  count = len(arrays[0])
  size = min(size, 1 << (count - 1).bit_length())
  pending = []
  for start in range(0, count, size):
    rows = [a[start : start + size] for a in arrays]
    short = size - len(rows[0])
    if short:
      rows = [np.concatenate([r, np.repeat(r[:1], short, axis=0)]) for r in rows]
    pending.append(fn(*rows))  # dispatched without waiting: the host cuts the next batch meanwhile
  return np.concatenate([np.asarray(p) for p in pending])[:count]
