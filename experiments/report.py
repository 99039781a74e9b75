"""A sweep's rows as a Markdown table, a Pareto plot, and the answer in words."""

import matplotlib

matplotlib.use("Agg")

import matplotlib.pyplot as plt

from experiments import markdown
from vidstep.metrics.summary import DISTANCES


def main_distance(result):
  """The name of the distance that ranks: FVD where it was measured, else the AlexNet one."""
  return "fvd_i3d_k400" if "fvd_i3d_k400" in result else "frechet_alexnet_clip"


def one_line(result):
  """A row while the sweep runs."""
  name = main_distance(result)
  return f"{name} {result[name]['value']:.4g}, motion {result['motion']['ratio']:.2f} of real"


def table(results, config, versus):
  """Markdown: what was measured, the table, who beats whom, and the cheapest good setting."""
  any_row = next(iter(results.values()))
  main = main_distance(any_row)
  distances = [name for name in DISTANCES if name in any_row]
  head = ["", "NFE", "latency ms (median / p95)", *(f"{d} [95 %]" for d in distances)]
  head += ["motion / real", "saturation / real", "contrast / real"]
  rows = []
  for name, row in results.items():
    latency = row.get("latency")
    cells = [name, latency["nfe"] if latency else "", _ms(latency)]
    cells += [_interval(row[d]) for d in distances]
    cells += [f"{row[s]['ratio']:.2f}" for s in ("motion", "saturation", "contrast")]
    rows.append(cells)
  devices = {row["latency"]["device"] for row in results.values() if "latency" in row}
  floor = any_row[main].get("floor")
  notes = [
    f"{any_row['clips']} videos of {any_row['frames']} frames, {any_row['height']} x "
    f"{any_row['width']} pixels, seeds {', '.join(map(str, config['seeds']))}, against "
    f"{any_row['real_clips']} other real clips. Latency: one clip at batch 1, denoising, decoding "
    f"and transfer, without compilation, on {', '.join(sorted(devices)) or 'no device'}."
  ]
  if floor:
    notes.append(
      f"Real against real: {main} {floor['mean']:.4g} +- {floor['std']:.2g} "
      f"at {floor['clips']} clips a side."
    )
  notes += [_versus(pair, result) for pair, result in versus.items()]
  notes += [cheapest(results, config["within"])]
  return "\n".join([markdown.table(head, rows), "", *(f"- {note}" for note in notes)]) + "\n"


def cheapest(results, within):
  """The cheapest setting whose distance is within a share of the best, in words."""
  rows = {name: row for name, row in results.items() if "latency" in row}
  if not rows:
    return "No network was measured."
  main = main_distance(next(iter(rows.values())))
  value = lambda name: rows[name][main]["value"]
  cost = lambda name: rows[name]["latency"]["total"]["median"]
  best = min(rows, key=value)
  good = [name for name in rows if value(name) <= (1 + within) * value(best)]
  name = min(good, key=cost)
  return (
    f"Cheapest within {within:.0%} of the best {main}: **{name}** "
    f"({value(name):.4g}, {rows[name]['latency']['nfe']} NFE, {1e3 * cost(name):.0f} ms, motion "
    f"{rows[name]['motion']['ratio']:.2f} of real). Best: {best} ({value(best):.4g}, "
    f"{rows[best]['latency']['nfe']} NFE, {1e3 * cost(best):.0f} ms)."
  )


def front(points):
  """Names on the Pareto front of {name: (cost, distance)}: nothing is cheaper and closer."""
  chosen, best = [], float("inf")
  for name, (_, distance) in sorted(points.items(), key=lambda item: item[1]):
    if distance < best:
      chosen.append(name)
      best = distance
  return chosen


def pareto(results, path):
  """Draws distance against latency, one colour a network, the front and the floor."""
  rows = {name: row for name, row in results.items() if "latency" in row}
  main = main_distance(next(iter(results.values())))
  points = {n: (1e3 * r["latency"]["total"]["median"], r[main]["value"]) for n, r in rows.items()}
  figure, axes = plt.subplots(figsize=(8, 5), layout="constrained")
  groups = {}
  for name in rows:
    who = name.split()[0]
    groups.setdefault((who, rows[name]["setting"]["solver"]), []).append(name)
  for (who, solver), names in groups.items():
    names.sort(key=lambda name: points[name])
    x, y = zip(*(points[name] for name in names), strict=True)
    low = [max(points[n][1] - rows[n][main]["low"], 0) for n in names]
    high = [max(rows[n][main]["high"] - points[n][1], 0) for n in names]
    axes.errorbar(x, y, (low, high), marker="o", capsize=2, lw=1, label=f"{who}, {solver}")
    for name, a, b in zip(names, x, y, strict=True):
      steps = rows[name]["setting"]["steps"]
      axes.annotate(str(steps), (a, b), (4, 4), textcoords="offset points", fontsize=8)
  best = [points[name] for name in front(points)]
  axes.step(*zip(*best, strict=True), where="post", color="0.6", lw=3, alpha=0.5, zorder=0,
            label="Pareto front")  # fmt: skip
  for name, style in (("real", "-"), ("repeat last frame", ":")):
    if name in results:
      axes.axhline(results[name][main]["value"], color="0.3", ls=style, lw=1, label=name)
  axes.set(xscale="log", yscale="log", xlabel="latency of a clip, ms (batch 1)", ylabel=main)
  axes.set_title("Numbers are solver steps", fontsize=10)
  axes.legend(fontsize=8)
  axes.grid(alpha=0.2, which="both")
  figure.savefig(path, dpi=120)
  plt.close(figure)


def _versus(pair, result):
  name = main_distance(result)
  r = result[name]
  first, second = pair.split(" against ")
  verdict = {"first": f"{first} is closer to real", "second": f"{second} is closer to real"}
  return (
    f"{pair}, paired: {name} differs by {r['value']:.4g} [{r['low']:.4g}, {r['high']:.4g}]: "
    f"{verdict.get(r['verdict'], 'a tie')}."
  )


def _ms(latency):
  if not latency:
    return ""
  return f"{1e3 * latency['total']['median']:.1f} / {1e3 * latency['total']['p95']:.1f}"


def _interval(d):
  return f"{d['value']:.4g} [{d['low']:.4g}, {d['high']:.4g}]"
