"""Intervals cover what they claim, pairing pays, the floor compares no clip with itself."""

import numpy as np
import pytest

from vidstep.metrics.distribution import frechet_distance, kernel_distance
from vidstep.metrics.resampling import (
  bootstrap,
  bootstrap_difference,
  disjoint_rows,
  real_floor,
)


def draw(rng, n=40, shift=1.0):
  return rng.normal(size=(n, 3)), rng.normal(size=(n, 3)) * 1.3 + shift


def coverage(fn, interval, draw=draw, trials=80):
  """How often an interval from one draw holds the expectation of fn over draws of that size."""
  rng = np.random.default_rng(5)
  target = np.mean([fn(*draw(rng)) for _ in range(1000)])
  hits = 0
  for trial in range(trials):
    low, high = interval(fn, *draw(rng), trial)
    hits += low <= target <= high
  return hits / trials


def recentred(fn, a, b, seed):
  return bootstrap(fn, a, b, seed, 60, level=0.9)[1:]


def plain_percentiles(fn, a, b, seed):
  rng = np.random.default_rng(seed)
  rows = lambda x: x[rng.integers(len(x), size=len(x))]
  return np.quantile([fn(rows(a), rows(b)) for _ in range(60)], [0.05, 0.95])


@pytest.mark.parametrize("fn", [frechet_distance, kernel_distance])
def test_intervals_cover_the_expectation_at_their_sample_size(fn):
  assert 0.8 <= coverage(fn, recentred) <= 0.99


def test_plain_percentiles_would_miss_it_near_the_floor():
  """The reason for recentring, and the proof above fails without it."""
  close = lambda rng: (rng.normal(size=(30, 12)), rng.normal(size=(30, 12)))
  assert coverage(frechet_distance, recentred, close, trials=40) >= 0.8
  assert coverage(frechet_distance, plain_percentiles, close, trials=40) < 0.3


def test_the_interval_of_a_mean_is_the_textbook_one(rng):
  x = rng.normal(size=400)
  value, low, high = bootstrap(np.mean, x, n=400)
  half = 1.96 * x.std(ddof=1) / 20
  assert value == x.mean()
  np.testing.assert_allclose([value - low, high - value], half, rtol=0.2)


def test_bootstrap_is_repeatable_and_its_seed_matters(rng):
  a, b = draw(rng)
  first = bootstrap(kernel_distance, a, b, 3, 30)
  assert first == bootstrap(kernel_distance, a, b, 3, 30)
  assert first != bootstrap(kernel_distance, a, b, 4, 30)


def test_a_paired_difference_is_far_narrower_than_the_two_intervals(rng):
  real = rng.normal(size=(60, 4))
  noise = rng.normal(size=(60, 4))
  first, second = noise * 1.5 + 0.5, noise * 1.5 + 0.6
  difference = bootstrap_difference(frechet_distance, first, second, real, 0, 60)
  alone = bootstrap(frechet_distance, first, real, 0, 60)
  exact = frechet_distance(first, real) - frechet_distance(second, real)
  np.testing.assert_allclose(difference.value, exact)
  assert difference.high < 0, "first is closer, and the paired interval knows"
  assert difference.high - difference.low < 0.4 * (alone.high - alone.low)


def test_a_difference_of_equals_is_exactly_a_tie(rng):
  a, b = draw(rng)
  assert bootstrap_difference(kernel_distance, a, a, b, 0, 20) == (0.0, 0.0, 0.0)


def test_paired_resampling_draws_the_same_rows():
  rows = np.arange(30.0)[:, None]
  same = lambda x, y: float(np.array_equal(x, y))
  assert bootstrap(same, rows, rows, 0, 20, paired=True) == (1.0, 1.0, 1.0)
  assert bootstrap(same, rows, rows, 0, 20).value == 1.0
  seen = []
  bootstrap(lambda x, y: seen.append(same(x, y)) or 0.0, rows, rows, 0, 20)
  assert sum(seen) == 1, "only the value itself, of the whole sets"


@pytest.mark.parametrize("length", [(20, 20), (10, 31)])
def test_splits_are_disjoint_and_of_one_size(length):
  seen = []

  def record(i, j):
    seen.append((i, j))
    return float(len(seen))

  spread = disjoint_rows(record, *length, splits=5)
  assert spread.size == 10 and len(spread.values) == 5 and spread.mean == 3.0
  for x, y in seen:
    assert len(set(x)) == len(set(y)) == 10
    if length[0] == length[1]:
      assert not set(x) & set(y)


def test_the_frechet_floor_falls_with_size_and_the_kernel_floor_does_not(rng):
  real = rng.normal(size=(128, 8))
  floors = {
    fn: [real_floor(fn, real, size=n, splits=20) for n in (16, 64)]
    for fn in (frechet_distance, kernel_distance)
  }
  small, large = floors[frechet_distance]
  assert small.mean > 2 * large.mean > 0
  assert all(abs(f.mean) < 3 * f.std for f in floors[kernel_distance])


def test_bad_resampling_requests_raise(rng):
  a, b = draw(rng, n=6)
  with pytest.raises(ValueError, match="at least 20"):
    bootstrap(kernel_distance, a, b, 0, 5)
  with pytest.raises(ValueError, match="as many rows"):
    bootstrap(kernel_distance, a, b[:4], 0, 20, paired=True)
  with pytest.raises(ValueError, match="one shape"):
    bootstrap_difference(kernel_distance, a, a[:4], b)
  with pytest.raises(ValueError, match="disjoint subsets"):
    real_floor(kernel_distance, a, size=4)
