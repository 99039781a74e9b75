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
  if n < 20 or not 0 < level < 1:
    raise ValueError(f"an interval needs n >= 20 resamples and 0 < level < 1, got {n} and {level}.")
  if paired and (b is None or len(a) != len(b)):
    raise ValueError("paired=True needs two arrays with as many rows each.")
  rng = np.random.default_rng(seed)
  draw = lambda x: rng.integers(len(x), size=len(x))
  values = []
  for _ in range(n):
    rows = draw(a)
    values.append(fn(a[rows]) if b is None else fn(a[rows], b[rows if paired else draw(b)]))
  value = float(fn(a) if b is None else fn(a, b))
  low, high = np.quantile(values, [(1 - level) / 2, (1 + level) / 2]) - np.mean(values)
  return Interval(value, float(value + low), float(value + high))


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
  both = np.stack([first, second], axis=1)
  difference = lambda x, y: fn(x[:, 0], y) - fn(x[:, 1], y)
  return bootstrap(difference, both, b, seed, n, level=level, paired=paired)


def disjoint_distance(fn, a, b, *, size=None, splits=10, seed=0):
  """`fn` between `size` rows of a and `size` **other** rows of b, over random splits.

  Where a and b have as many rows, row i counts as the same clip (or its condition) in both and
  never stands on both sides. `disjoint_distance(fn, real, real)` is the floor;
  `disjoint_distance(fn, fake, real)` is what to hold against it: same number of clips, same
  independence.

  Args:
    fn: function (x, y) -> float.
    a: [n, ...].
    b: [m, ...].
    size: rows on each side; None for the most that fits.
    splits: number of random splits.
    seed: of the splits.

  Returns:
    Spread(mean, std, size, values).

  Raises:
    ValueError: if there are not enough rows.
  """
  together = len(a) == len(b)
  most = len(a) // 2 if together else min(len(a), len(b))
  size = most if size is None else size
  if not 2 <= size <= most or splits < 2:
    raise ValueError(
      f"{len(a)} and {len(b)} rows give disjoint subsets of 2 to {most} rows, and splits must be "
      f">= 2; got size={size}, splits={splits}."
    )
  rng = np.random.default_rng(seed)
  values = []
  for _ in range(splits):
    rows = rng.permutation(len(a))
    others = rows[size : 2 * size] if together else rng.permutation(len(b))[:size]
    values.append(float(fn(a[rows[:size]], b[others])))
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
  return disjoint_distance(fn, real, real, size=size, splits=splits, seed=seed)
