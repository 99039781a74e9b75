"""Draws what lies in one device's memory, preset by preset, against what it holds."""

from matplotlib.figure import Figure

from experiments.plan import GIB
from vidstep.metrics.machines import machine as machine_of

PARTS = ("weights", "EMA", "optimizer", "frozen", "batch", "temporary", "program and padding")


def parts_of(record):
  """Bytes by part, of the kind of step that takes most; None if the compiler gave no numbers.

  Of a step that the compiler refused for want of memory it says the total alone: all above what is
  held between steps counts as temporary.
  """
  if any("total" not in step for step in record.get("steps", [{}])):
    return None
  step = max(record["steps"], key=lambda step: step["total"])
  sizes = dict.fromkeys(PARTS, 0.0)
  for name, size in record["held"].items():
    kind = name.rpartition(" ")[2]
    sizes[kind if kind in sizes else "batch"] += size
  rest = step["total"] - sum(sizes.values())
  sizes["temporary"] = step.get("temporary", rest)
  sizes["program and padding"] = max(step["total"] - sum(sizes.values()), 0.0)
  return sizes


def draw(rows, path):
  """Stacked bars in GiB, a mark where the memory of the device ends.

  Args:
    rows: name -> record.
    path: where the PNG goes.
  """
  shown = {name: parts for name, row in rows.items() if (parts := parts_of(row))}
  figure = Figure(figsize=(10, 1.2 + 0.45 * max(len(shown), 1)), layout="constrained")
  axes = figure.add_subplot()
  left = [0.0] * len(shown)
  for part in PARTS:
    sizes = [parts[part] / GIB for parts in shown.values()]
    axes.barh(range(len(shown)), sizes, left=left, label=part, height=0.6)
    left = [a + b for a, b in zip(left, sizes, strict=True)]
  for at, name in enumerate(shown):
    limit = machine_of(rows[name]["machine"]).chip.memory / GIB
    axes.plot([limit, limit], [at - 0.4, at + 0.4], color="black", linewidth=2)
  axes.set_yticks(range(len(shown)), list(shown))
  axes.invert_yaxis()
  axes.set_xlabel("GiB on one device while it steps; the black mark is what it has")
  figure.legend(fontsize="small", ncols=len(PARTS), loc="outside upper center")
  figure.savefig(path, dpi=110)
