"""Markdown of reports."""


def table(head, rows) -> str:
  """A table: the head, and rows of as many cells, each shown as `str` has it."""
  lines = [_line(head), "|" + "---|" * len(head), *map(_line, rows)]
  return "\n".join(lines)


def _line(cells):
  return f"| {' | '.join(map(str, cells))} |"
