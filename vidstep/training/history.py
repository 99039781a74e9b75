"""The scalars of a run by name, as detectors look at them: series and means of windows."""

from array import array

import numpy as np


class History:
  """Rows of `metrics.jsonl`, column by column.

  Args:
    rows: dicts with "step" and scalars; the words "nan", "inf" and "-inf" are numbers here.
    total: steps that the run is planned to take, if known.
  """

  def __init__(self, rows=(), *, total=None):
    self._series = {}
    self.step, self.total = 0, total
    for row in rows:
      self.add(row["step"], {name: value for name, value in row.items() if name != "step"})

  def add(self, step, values):
    """Takes in one step; steps must come in order."""
    self.step = int(step)
    for name, value in values.items():
      steps, column = self._series.setdefault(name, (array("q"), array("d")))
      steps.append(self.step)
      column.append(float(value))

  def __contains__(self, name):
    return name in self._series

  def late(self, share):
    """Whether this share of the planned run is over; True if nothing is planned."""
    return self.total is None or self.step >= share * self.total

  def names(self, suffix=""):
    """Names of all scalars that end so, such as "student/loss" for "/loss"."""
    return [name for name in self._series if name.endswith(suffix)]

  def roles(self):
    """Networks that were updated at least once, in the order of their first update."""
    return [name.removesuffix("/grad_norm") for name in self.names("/grad_norm")]

  def series(self, name):
    """(steps int64 [n], values float64 [n]) of one scalar; empty if it was never logged."""
    steps, values = self._series.get(name, (array("q"), array("d")))
    return np.array(steps, np.int64), np.array(values, np.float64)

  def windows(self, name, *, center=np.mean, least=10, most=20):
    """Means over consecutive windows, the last of which ends with the newest value.

    A loss by time bin is the noisy estimate of few samples: a mean over `least` updates or more
    tells something. Values that are not finite are left out.

    Args:
      name: of the scalar.
      center: np.mean, or np.median for what has outliers and no zeros.
      least: values in a window.
      most: about as many windows as this are made of a long series.

    Returns:
      (first step of each window int64 [k], means float64 [k]); k = 0 while there is no window.
    """
    steps, values = self.series(name)
    fine = np.isfinite(values)
    steps, values = steps[fine], values[fine]
    width = max(least, -(-len(values) // most))
    count = len(values) // width
    skip = len(values) - count * width
    return steps[skip::width][:count], center(values[skip:].reshape(count, width), axis=1)


def start_of_tail(mask):
  """Index of the first of the trues that a mask ends with; its length if it ends with a false."""
  wrong = np.flatnonzero(~np.asarray(mask))
  return int(wrong[-1]) + 1 if len(wrong) else 0
