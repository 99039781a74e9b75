"""Diagnosis of a run while it trains: says each finding once, and when going on is a waste."""

import dataclasses
import json

import numpy as np

from vidstep.files import write_text
from vidstep.training.detectors import diagnose
from vidstep.training.history import History


class Collapsed(Exception):
  """Raised after the last checkpoint of a run that stopped because it had collapsed."""


class Diagnosis:
  """What the detectors have found so far.

  It is a function of the rows of `metrics.jsonl` alone: feed it those of an interrupted run, and it
  goes on as if nothing had happened. Detectors look at every row that has a probe of the samples,
  and at rows that are not finite.

  Args:
    rows: of the steps before this process began.
    total: steps that the run is planned to take, if known.
    path: file that is kept up to date with `events`, a JSON object a line; None for none.

  Attributes:
    history: the `History`.
    standing: name -> (finding, number of looks at which it has been there without a break).
    events: what was found and what went away, as dicts.
  """

  def __init__(self, rows=(), *, total=None, path=None):
    self.history = History(total=total)
    self.standing, self.events, self._path = {}, [], None
    for row in rows:
      self.update(row["step"], {name: value for name, value in row.items() if name != "step"})
    self._path = path
    self._write()

  def update(self, step, values):
    """Takes in the metrics of one step.

    Returns:
      list of findings that are new, or that grew into a collapse.
    """
    values = {name: float(value) for name, value in values.items()}
    self.history.add(step, values)
    probed = any(name.startswith("probe/") for name in values)
    return self.look() if probed or not np.isfinite(list(values.values())).all() else []

  def look(self):
    """Runs the detectors on the history as it is. Returns what is new, as `update` does."""
    found = {finding.name: finding for finding in diagnose(self.history)}
    new = []
    for name, finding in found.items():
      before, looks = self.standing.get(name, (None, 0))
      if before is None or (before.severity, finding.severity) == ("warning", "collapse"):
        new.append(finding)
      self.standing[name] = (finding, looks + 1)
    gone = [name for name in self.standing if name not in found]
    for name in gone:
      del self.standing[name]
    step = self.history.step
    self.events += [{"step": step, **dataclasses.asdict(finding)} for finding in new]
    self.events += [{"step": step, "name": name, "gone": True} for name in gone]
    if new or gone:
      self._write()
    return new

  def collapse(self, patience):
    """A finding of severity "collapse" that has stood for `patience` looks, or None."""
    for finding, looks in self.standing.values():
      if finding.severity == "collapse" and looks >= patience:
        return finding
    return None

  def _write(self):
    if self._path is not None:
      write_text(self._path, "".join(json.dumps(event) + "\n" for event in self.events))
