"""The tables that `experiments.reproduce` fills, one file each."""

from experiments.tables import causal_rcm_init, objectives, scm_numerics, scm_vs_dcm

TABLES = {
  "objectives": objectives.table,
  "scm_vs_dcm": scm_vs_dcm.table,
  "scm_numerics": scm_numerics.table,
  "causal_rcm_init": causal_rcm_init.table,
}


def make(name, *, small=False):
  """The table of that name; small is for tests.

  Raises:
    ValueError: for an unknown name.
  """
  if name not in TABLES:
    raise ValueError(f"There is no table {name!r}: there are {', '.join(TABLES)}.")
  return TABLES[name](small)
