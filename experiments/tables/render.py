"""A filled table as Markdown and JSON: claims and verdicts first, then every number."""

import math

from experiments import markdown
from experiments.tables.table import judge, results_of


def report(table, cells, command):
  """What is written to disk.

  Args:
    table: the `Table`.
    cells: as `table.fill` returns them.
    command: the command line that made them.

  Returns:
    (Markdown, JSON-able dict).
  """
  results = results_of(cells)
  missing = [row for row in table.rows if row not in cells]
  claims = [] if missing else table.claims(results)
  judged = [(claim, judge(claim, results)) for claim in claims]
  first = next(iter(cells.values()))
  seen = [cell for many in cells.values() for cell in many]
  where = {key: sorted({cell[key] for cell in seen}) for key in ("device", "date")}
  lines = [f"# {table.title}", "", f"    {command}", ""]
  lines += [
    f"Tier: analytic videos. Seeds 0 to {len(first) - 1}, {' and '.join(where['device'])}, "
    f"{' and '.join(where['date'])}; {sum(c['seconds'] for c in seen) / 60:.0f} minutes of "
    "training and measuring in all, compilation included.",
    "",
  ]
  lines += ["## Expected and obtained", ""]
  if missing:
    lines += ["Claims are checked when all rows are there.", ""]
  else:
    head = ("claim (source)", "expected", "obtained", "seeds", "verdict")
    lines += ["Obtained: mean and 95 % interval over seeds. Reproduced: all of it is as expected."]
    lines += ["", markdown.table(head, [_claim(claim, verdict) for claim, verdict in judged]), ""]
  lines += ["## Every row", "", "Mean +- standard deviation over seeds.", ""]
  rows = []
  for row, many in cells.items():
    seconds = sum(cell["seconds"] for cell in many) / len(many)
    shown = [_spread(results[row].get(c.metric), c.digits) for c in table.columns]
    rows.append([row, *shown, len(many), f"{seconds:.0f}"])
  lines += [markdown.table(["row", *(c.header for c in table.columns), "seeds", "s a seed"], rows)]
  lines += ["", table.notes.strip(), "", "## Published, at another scale", "", table.paper.strip()]
  data = {
    "table": table.name,
    "command": command,
    **where,
    "seeds": len(first),
    "claims": [
      {"claim": c.text, "source": c.source, "expected": [_number(c.low), _number(c.high)]}
      | {k: _number(v) for k, v in verdict._asdict().items()}
      for c, verdict in judged
    ],
    "rows": {row: _record(many) for row, many in cells.items()},
  }
  return "\n".join(lines) + "\n", data


def _record(cells):
  """The seeds of a row side by side."""
  keys = cells[0]["values"]
  values = {key: [cell["values"][key] for cell in cells] for key in keys}
  return {"recipe": cells[0]["recipe"], "values": values, "seconds": [c["seconds"] for c in cells]}


def _claim(claim, v):
  obtained = "not finite" if math.isnan(v.value) else f"{v.value:.3g} [{v.low:.3g}, {v.high:.3g}]"
  name = f"{claim.text} ({claim.source})"
  return [name, _range(claim), obtained, v.seeds, f"**{v.verdict}**"]


def _range(claim):
  if math.isinf(claim.low):
    return f"<= {claim.high:.3g}"
  if math.isinf(claim.high):
    return f">= {claim.low:.3g}"
  return f"{claim.low:.3g} to {claim.high:.3g}"


def _spread(values, digits):
  if values is None:
    return ""
  if values.ndim > 1:
    values = values[:, -1]
  show = lambda value: f"{value:.2g}" if digits is None else f"{value:.{digits}f}"
  mean = show(values.mean())
  if len(values) < 2 or (values == values[0]).all():
    return mean
  return f"{mean} +- {show(values.std(ddof=1))}"


def _number(value):
  """JSON has no infinity: such ends become null."""
  return value if not isinstance(value, float) or math.isfinite(value) else None
