"""What stands beside every distance: motion, saturation, contrast, clipping, warp error."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from vidstep.metrics.clips import check_clips, in_batches, to_bytes, to_unit
from vidstep.metrics.weights import require

_BATCH = 32
_LUMA = (0.299, 0.587, 0.114)  # BT.601


def _per_clip(fn, video, frames=1):
  return in_batches(fn, (check_clips(video, frames=frames),), _BATCH)


@jax.jit
def _motion(x):
  x = to_unit(x) * 127.5
  return jnp.mean(jnp.abs(x[:, 1:] - x[:, :-1]), axis=(2, 3, 4))


def motion_magnitude(video):
  """Mean absolute change from frame to frame, on the 0..255 scale.

  Not optical flow: noise counts as motion, a still picture has none. Compare it with the real
  clips' number, where more is no better than less.

  Args:
    video: [N, T >= 2, H, W, 3] uint8 or float in [-1, 1].

  Returns:
    float32 [N, T-1]; entry i is between frames i and i+1.

  Raises:
    ValueError: on anything that is no video, or a single frame.
  """
  return _per_clip(_motion, video, frames=2)


@jax.jit
def _saturation(x):
  x = (to_unit(x) + 1) / 2
  high, low = jnp.max(x, axis=-1), jnp.min(x, axis=-1)
  return jnp.mean(jnp.where(high > 0, (high - low) / jnp.where(high > 0, high, 1), 0), axis=(2, 3))


def saturation(video):
  """Mean saturation of HSV, `(max - min) / max` over R, G, B; 0 where a pixel is black.

  Guidance and many-step sampling push it up, averaging pulls it down.

  Args:
    video: [N, T, H, W, 3] uint8 or float in [-1, 1].

  Returns:
    float32 [N, T] in [0, 1].
  """
  return _per_clip(_saturation, video)


@jax.jit
def _contrast(x):
  luma = jnp.sum(to_unit(x) * 127.5 * jnp.array(_LUMA, jnp.float32).reshape(1, 1, 1, 1, 3), axis=-1)
  return jnp.std(luma, axis=(2, 3))


def contrast(video):
  """Standard deviation of luma (BT.601) within each frame, on the 0..255 scale (RMS contrast).

  Args:
    video: [N, T, H, W, 3] uint8 or float in [-1, 1].

  Returns:
    float32 [N, T].
  """
  return _per_clip(_contrast, video)


@jax.jit
def _clipped(x):
  return jnp.mean((jnp.abs(to_unit(x)) >= 1 - 1.5 / 127.5).astype(jnp.float32), axis=(2, 3, 4))


def clipped(video):
  """Share of values within one of 256 levels of black or white: over- and under-exposure.

  Args:
    video: [N, T, H, W, 3] uint8 or float in [-1, 1].

  Returns:
    float32 [N, T] in [0, 1].
  """
  return _per_clip(_clipped, video)


class WarpError(NamedTuple):
  """Mean squared error in [0, 1] after warping, and the share of pixels it could be measured on."""

  error: np.ndarray
  coverage: np.ndarray


def _flow(estimator, a, b):
  return estimator.calc(a, b, None)


def _warp(cv2, image, flow):
  height, width = flow.shape[:2]
  x, y = np.meshgrid(np.arange(width, dtype=np.float32), np.arange(height, dtype=np.float32))
  x, y = x + flow[..., 0], y + flow[..., 1]
  inside = (x >= 0) & (x <= width - 1) & (y >= 0) & (y <= height - 1)
  return cv2.remap(image, x, y, cv2.INTER_LINEAR, borderMode=cv2.BORDER_REPLICATE), inside


def warp_error(video):
  """Flow warp error: how much of a frame is not its successor, moved.

  Dense inverse search flow (Kroeger et al. 2016) both ways; frame t+1 is warped back onto frame t
  and compared where the pixel stays inside the picture and the flows agree,
  `|f + b|^2 <= 0.01 (|f|^2 + |b|^2) + 0.5` (Sundaram et al. 2010). Flicker raises it; a frozen
  clip has 0, so it means something only beside `motion_magnitude` and its own coverage.

  Args:
    video: [N, T >= 2, H, W, 3] uint8 or float in [-1, 1], H and W >= 16.

  Returns:
    WarpError(error [N], coverage [N]); error is NaN for a clip in which no pixel could be followed.

  Raises:
    ImportError: without OpenCV.
    ValueError: on anything that is no video, a single frame, or frames under 16 pixels.
  """
  require("cv2")
  import cv2

  video = check_clips(video, frames=2)
  if min(video.shape[2:4]) < 16:
    raise ValueError(f"optical flow needs frames of 16x16 or more, got {video.shape[2:4]}.")
  estimator = cv2.DISOpticalFlow_create(cv2.DISOPTICAL_FLOW_PRESET_MEDIUM)
  estimator.setFinestScale(0)  # the preset stops at half size, too coarse for small frames
  error, coverage = np.zeros(len(video)), np.zeros(len(video))
  for n, clip in enumerate(video):
    rgb = to_bytes(clip)
    gray = [np.rint(frame @ np.array(_LUMA, np.float32)).astype(np.uint8) for frame in rgb]
    total, count = 0.0, 0
    for t in range(len(clip) - 1):
      forward = _flow(estimator, gray[t], gray[t + 1])
      backward, inside = _warp(cv2, _flow(estimator, gray[t + 1], gray[t]), forward)
      squares = np.sum(forward**2, axis=-1) + np.sum(backward**2, axis=-1)
      seen = inside & (np.sum((forward + backward) ** 2, axis=-1) <= 0.01 * squares + 0.5)
      warped, _ = _warp(cv2, rgb[t + 1], forward)
      total += float(np.sum(np.mean(((warped - rgb[t]) / 255) ** 2, axis=-1)[seen]))
      count += int(seen.sum())
    error[n] = total / count if count else np.nan
    coverage[n] = count / (seen.size * (len(clip) - 1))
  return WarpError(error, coverage)
