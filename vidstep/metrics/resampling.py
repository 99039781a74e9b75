"""How sure a distance is: bootstrap intervals, paired differences, and the real-vs-real floor."""

from typing import NamedTuple

import numpy as np


class Interval(NamedTuple):
  """A value and its confidence interval."""

  value: float
  low: float
  high: float


class Spread(NamedTuple):
  """A distance over random disjoint subsets of `size` rows each."""

  mean: float
  std: float
  size: int
  values: tuple


def bootstrap_rows(at, n, m=None, *, seed=0, resamples=200, level=0.95, paired=False):
  """`bootstrap` of a statistic that is given row numbers instead of rows.

  Args:
    at: function (i [n], j [m]) -> float; of i alone if m is None.
    n: rows of the first set.
    m: rows of the second, or None.
    seed: of the resampling.
    resamples: how many.
    level: coverage.
    paired: the two sets are drawn with the same numbers.

  Returns:
    Interval(value, low, high).

  Raises:
    ValueError: if paired sets differ in length, or resamples or level make no interval.
  """
  if resamples < 20 or not 0 < level < 1:
    raise ValueError(
      f"an interval needs at least 20 resamples and 0 < level < 1, got {resamples} and {level}."
    )
  if paired and n != m:
    raise ValueError(f"paired=True needs two sets with as many rows each, got {n} and {m}.")
  rng = np.random.default_rng(seed)
  values = []
  for _ in range(resamples):
    i = rng.integers(n, size=n)
    values.append(at(i) if m is None else at(i, i if paired else rng.integers(m, size=m)))
  value = float(at(np.arange(n)) if m is None else at(np.arange(n), np.arange(m)))
  low, high = np.quantile(values, [(1 - level) / 2, (1 + level) / 2]) - np.mean(values)
  return Interval(value, float(value + low), float(value + high))


def bootstrap(fn, a, b=None, seed=0, n=200, *, level=0.95, paired=False):
  """Recentred bootstrap interval of `fn(a, b)`: what another draw of as many clips could have said.

  Rows are drawn with replacement. Duplicates make a resample look more different from the other set
  than a fresh sample would (Frechet and kernel distances grow), so the plain percentiles miss the
  value; here their mean is moved onto it: `value + quantile(theta* - mean theta*)`. The interval is
  for the expectation of fn **at this sample size**; it does not remove the bias that fn itself has.

  Args:
    fn: function of the resampled arrays -> float; of a alone if b is None.
    a: array [n, ...], rows are independent clips.
    b: array [m, ...] or None.
    seed: of the resampling.
    n: number of resamples.
    level: coverage.
    paired: row i of a and row i of b belong together (one condition), and are drawn together.

  Returns:
    Interval(value, low, high).

  Raises:
    ValueError: if paired arrays differ in length, or n or level make no interval.
  """
  at = (lambda i: fn(a[i])) if b is None else (lambda i, j: fn(a[i], b[j]))
  length = None if b is None else len(b)
  return bootstrap_rows(at, len(a), length, seed=seed, resamples=n, level=level, paired=paired)


def bootstrap_difference(fn, first, second, b, seed=0, n=200, *, level=0.95, paired=False):
  """Interval of `fn(first, b) - fn(second, b)` where first and second share seeds and conditions.

  Both are resampled with the same rows, and so is b for both: what they have in common cancels,
  which is why two settings can be told apart long after their own intervals overlap.

  Args:
    fn: function (x, b) -> float.
    first: [n, ...]; row i has the condition and the noise of row i of second.
    second: [n, ...].
    b: [m, ...], the reference of both.
    seed: of the resampling.
    n: number of resamples.
    level: coverage.
    paired: row i of b belongs to row i of first and second too.

  Returns:
    Interval; negative where first is closer to b. It contains 0: call it a tie.

  Raises:
    ValueError: if first and second differ in shape.
  """
  first, second = np.asarray(first), np.asarray(second)
  if first.shape != second.shape:
    raise ValueError(f"a paired difference needs one shape, got {first.shape} and {second.shape}.")
  return bootstrap_rows(
    lambda i, j: fn(first[i], b[j]) - fn(second[i], b[j]),
    len(first),
    len(b),
    seed=seed,
    resamples=n,
    level=level,
    paired=paired,
  )


def disjoint_rows(at, n, m, *, size=None, splits=10, seed=0):
  """A statistic between `size` rows of one set and `size` **other** rows of another, many times.

  Where the sets have as many rows, row i counts as the same clip (or its condition) in both and
  never stands on both sides.

  Args:
    at: function (i [size], j [size]) -> float.
    n: rows of the first set.
    m: rows of the second.
    size: rows on each side; None for the most that fits.
    splits: number of random splits.
    seed: of the splits.

  Returns:
    Spread(mean, std, size, values).

  Raises:
    ValueError: if there are not enough rows.
  """
  most = n // 2 if n == m else min(n, m)
  size = most if size is None else size
  if not 2 <= size <= most or splits < 2:
    raise ValueError(
      f"{n} and {m} rows give disjoint subsets of 2 to {most} rows, and splits must be >= 2; got "
      f"size={size}, splits={splits}."
    )
  rng = np.random.default_rng(seed)
  values = []
  for _ in range(splits):
    rows = rng.permutation(n)
    others = rows[size : 2 * size] if n == m else rng.permutation(m)[:size]
    values.append(float(at(rows[:size], others)))
  return Spread(float(np.mean(values)), float(np.std(values, ddof=1)), size, tuple(values))


def real_floor(fn, real, *, size=None, splits=10, seed=0):
  """What fn says of real against real: disjoint random subsets of one pool.

  No generator can be asked to do better at this many clips. The Frechet floor falls as size grows,
  so it is only a floor for distances at the same size. Draw the pool across episodes: clips of one
  episode are not independent, and their floor is too low.

  Args:
    fn: function (x, y) -> float.
    real: features [m, ...].
    size: rows on each side; None for halves.
    splits: number of random splits.
    seed: of the splits.

  Returns:
    Spread(mean, std, size, values).

  Raises:
    ValueError: if the pool is smaller than two disjoint subsets.
  """
  real = np.asarray(real)
  at = lambda i, j: fn(real[i], real[j])
  return disjoint_rows(at, len(real), len(real), size=size, splits=splits, seed=seed)
