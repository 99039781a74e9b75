"""Cells of a table on disk: what is computed once is kept, whole or not at all."""

import hashlib
import json
import pickle

from vidstep.files import whole


def kept(workdir, identity, fill):
  """What `fill()` returns, from disk if it was computed before.

  Args:
    workdir: folder of the table; cells are files in its folder `cells`.
    identity: what the cell depends on, for JSON: another one is another cell.
    fill: computes it.
  """
  text = json.dumps(identity, sort_keys=True)
  path = workdir / "cells" / f"{hashlib.sha256(text.encode()).hexdigest()[:16]}.pkl"
  if path.exists():
    return pickle.loads(path.read_bytes())
  made = fill()
  with whole(path) as partial:
    partial.write_bytes(pickle.dumps(made))
  return made
