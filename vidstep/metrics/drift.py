"""Drift: a metric along the clip, by frame index or by time window, not one number for all."""

import numpy as np


def windows(frames, window, stride=None):
  """Start and stop of every window that fits: [(0, w), (s, s + w), ...]; the last ends the clip.

  Args:
    frames: T.
    window: frames in a window.
    stride: step between starts; None for windows side by side.

  Returns:
    List of (start, stop). Where the stride does not land there, a last window is added that ends
    with frame T, since the end is where drift shows.

  Raises:
    ValueError: unless 1 <= window <= frames and stride >= 1.
  """
  stride = window if stride is None else stride
  if not 1 <= window <= frames or stride < 1:
    raise ValueError(f"{frames} frames have no window={window}, stride={stride}: both must be >= 1 "
                     "and the window no longer than the clip.")  # fmt: skip
  starts = list(range(0, frames - window + 1, stride))
  if starts[-1] + window < frames:
    starts.append(frames - window)
  return [(start, start + window) for start in starts]


def by_window(fn, fake, real, *, window, stride=None):
  """A distance per time window of fake against the same window of real.

  Args:
    fn: function (fake [N, w, ...], real [M, w, ...]) -> float.
    fake: [N, T, ...], videos or features of frames.
    real: [M, T, ...].
    window: frames in a window.
    stride: see `windows`.

  Returns:
    List of {"start", "stop", "value"}.

  Raises:
    ValueError: if the clips differ in length, or no window fits.
  """
  if fake.shape[1] != real.shape[1]:
    raise ValueError(
      f"fake has {fake.shape[1]} frames, real {real.shape[1]}: cut them to one length."
    )
  return [
    {"start": start, "stop": stop, "value": float(fn(fake[:, start:stop], real[:, start:stop]))}
    for start, stop in windows(fake.shape[1], window, stride)
  ]


def by_frame(values):
  """Mean and standard error over clips at every frame index.

  Args:
    values: [N >= 2, T], a per-frame metric.

  Returns:
    (mean [T], standard error [T]), float64.

  Raises:
    ValueError: on another shape.
  """
  values = np.asarray(values, np.float64)
  if values.ndim != 2 or len(values) < 2:
    raise ValueError(f"give a per-frame metric as [N >= 2, T], got {values.shape}.")
  return values.mean(axis=0), values.std(axis=0, ddof=1) / np.sqrt(len(values))


def slope(values):
  """Least-squares change per frame of the mean over clips: one number for "it drifts".

  Args:
    values: [N >= 2, T >= 2], a per-frame metric.

  Returns:
    float, in units of the metric per frame.

  Raises:
    ValueError: on another shape.
  """
  mean, _ = by_frame(values)
  if len(mean) < 2:
    raise ValueError("a slope needs at least two frames.")
  t = np.arange(len(mean)) - (len(mean) - 1) / 2
  return float(t @ mean / (t @ t))
