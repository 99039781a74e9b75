"""Pictures of tables: bars with their spread, and curves over updates."""

import matplotlib

matplotlib.use("Agg")

import matplotlib.pyplot as plt
import numpy as np


def bars(groups, path, *, panels, ylabels, log=()):
  """Horizontal bars: one panel a metric, one bar a row, points for seeds.

  Args:
    groups: list over panels of {row: values [seeds]}.
    path: where the PNG goes.
    panels: titles.
    ylabels: axis labels.
    log: indices of panels with a logarithmic axis.
  """
  rows = list(groups[0])
  figure, axes = plt.subplots(
    1, len(groups), figsize=(4.2 * len(groups), 0.6 + 0.24 * len(rows)), layout="constrained",
    sharey=True, squeeze=False,
  )  # fmt: skip
  place = np.arange(len(rows))[::-1]
  for i, (ax, values) in enumerate(zip(axes[0], groups, strict=True)):
    means = [np.mean(values[row]) if row in values else 0 for row in rows]
    ax.barh(place, means, color=f"C{i % 10}", alpha=0.55, height=0.7)
    for y, row in zip(place, rows, strict=True):
      seeds = np.atleast_1d(values.get(row, []))
      ax.plot(seeds, np.full(len(seeds), y), "|", color="k", ms=6, mew=0.8)
    ax.set(title=panels[i], xlabel=ylabels[i])
    if i in log:
      ax.set_xscale("log")
    ax.grid(alpha=0.2, axis="x", which="both")
  axes[0][0].set_yticks(place, rows, fontsize=8)
  figure.savefig(path, dpi=110)
  plt.close(figure)


def curves(rows, every, path, *, panels, ylabel, xlabel="updates of the student", log=True):
  """Curves over updates: one panel for each prefix of row names; median and range of seeds.

  Args:
    rows: {row: values [seeds, looks + 1]}, the first before training.
    every: updates between looks.
    path: where the PNG goes.
    panels: prefixes of row names, or ("",) for one panel.
    ylabel: of the vertical axis, logarithmic.
    xlabel: of the other.
    log: whether that is logarithmic, too, from the first look on.
  """
  figure, axes = plt.subplots(
    1, len(panels), figsize=(5.5 * len(panels), 4), layout="constrained", squeeze=False
  )
  for ax, panel in zip(axes[0], panels, strict=True):
    mine = {row: v for row, v in rows.items() if row.startswith(panel)}
    for i, (row, values) in enumerate(mine.items()):
      at = np.arange(values.shape[1]) * every
      label = row.removeprefix(panel).strip()
      ax.plot(at, np.median(values, axis=0), label=label, color=f"C{i}", lw=1.3)
      ax.fill_between(at, values.min(0), values.max(0), color=f"C{i}", alpha=0.15, lw=0)
    ax.set(yscale="log", title=panel, xlabel=xlabel, ylabel=ylabel)
    if log:
      ax.set_xscale("symlog", linthresh=max(every, 1), linscale=0.2)
      ax.set_xlim(left=0)
    ax.legend(fontsize=8)
    ax.grid(alpha=0.2, which="both")
  figure.savefig(path, dpi=110)
  plt.close(figure)
