"""The world table in Markdown, and its metrics against time."""

import matplotlib

matplotlib.use("Agg")

import matplotlib.pyplot as plt

from experiments import markdown

DRIFTS = 1.5  # times the distance of the first tenth: a row is said to drift
SHORT = {"frechet_alexnet_clip": "Frechet", "kernel_alexnet_clip": "kernel"}
SLOW = {"fvd_i3d_k400": "FVD", "kvd_i3d_k400": "KVD"}


def one_line(result):
  """A row while the table fills."""
  length, last = list(result["distances"].items())[-1]
  return (
    f"next frame {result['near']['psnr']['value']:.1f} dB, Frechet {length} "
    f"{last['frechet_alexnet_clip']['value']:.3g}, motion {last['motion']['ratio']:.2f} of real, "
    f"keys {result['obeys']['balanced']['value']:.2f}"
  )


def table(results, bench, made):
  """Three tables and what to know about them.

  Args:
    results: row name -> numbers, "real" among them.
    bench: the `Bench`.
    made: {"command", "date", "device", "seconds"}.
  """
  parts = ["## How good", quality(results), *_quality_notes(results, bench)]
  parts += ["", "## How long", drifting(results), *_drift_notes(results, bench)]
  parts += ["", "## Does it obey", obedience(results), *_obedience_notes(results, bench)]
  parts += ["", "## What it costs", cost(results), *_cost_notes()]
  parts += ["", f"`{made['command']}`", ""]
  parts += [f"{made['date']}, {made['device']}, {made['seconds']} s (finished rows are reused)."]
  return "\n".join(parts) + "\n"


def quality(results):
  """Fidelity of the next frames and distances of free rollouts."""
  lengths = list(results["real"]["distances"])
  has_lpips = "lpips" in results["real"]["near"]
  shown = [(length, name, word) for length in lengths for name, word in SHORT.items()
           if word == "Frechet"]  # fmt: skip
  shown += [
    (length, name, word)
    for length in lengths
    for name, word in SLOW.items()
    if any(name in row["distances"][length] for row in results.values())
  ]
  head = ["", "PSNR next [95 %]", "PSNR last"]
  head += ["LPIPS next [95 %]", "LPIPS last"] if has_lpips else []
  head += [f"{word} {length} [95 %]" for length, _, word in shown]
  head += ["motion / real", "saturation / real", "contrast / real"]
  lines = []
  for name, row in results.items():
    near, last = row["near"], row["distances"][lengths[-1]]
    exact = name == "real"  # against itself
    cells = [name, *_near(near["psnr"], "{:.1f}", exact)]
    cells += _near(near["lpips"], "{:.3f}", exact) if has_lpips else []
    for length, metric, _ in shown:
      found = row["distances"][length].get(metric)
      cells.append(_interval(found) if found else "")
    cells += [f"{last[s]['ratio']:.2f}" for s in ("motion", "saturation", "contrast")]
    lines.append(cells)
  return markdown.table(head, lines)


def _near(metric, form, exact):
  if exact:
    return ["", ""]
  return [_interval(metric, form), form.format(metric["by_frame"][-1])]


def _quality_notes(results, bench):
  real, (clips, near) = (
    results["real"]["distances"],
    (bench.config["clips"], results["real"]["near"]),
  )
  floors = []
  for length, found in real.items():
    for name, word in (SHORT | SLOW).items():
      floor = found.get(name, {}).get("floor")
      if floor:
        floors.append(
          f"{word} {length}: {floor['mean']:.3g} +- {floor['std']:.2g} at {floor['clips']} a side"
        )
  n, size = bench.context, bench.reference["video"].shape[2]
  return [
    "",
    f"- Next frames: {near['clips']} held-out clips; {n} real frames and the recorded actions are "
    f"given, `next` is the first frame after them, `last` the {bench.horizon}th. A blurred mean of "
    "all futures does well here: read it beside motion.",
    f"- Distances: N = {clips} free rollouts under recorded actions, each from another held-out "
    f"episode, against {len(bench.reference['video'])} real clips of other episodes (FVD: "
    f"{min(2 * clips, len(bench.reference['video']))}), {size} x {size} pixels. `real` is the true "
    "continuation, which no model can be expected to beat. Frechet: features of AlexNet, not FVD; "
    "FVD and KVD: I3D Kinetics-400 at 224 x 224.",
    f"- Real against real: {'; '.join(floors) or 'too few clips for a floor'}.",
    *(
      ["- **So few clips order rows at best**: FVD of this table is comparable with nothing else."]
      if clips < 128
      else []
    ),
  ]


def drifting(results):
  """First and last tenth of the long rollouts."""
  size = results["real"]["drift"]["stops"][0]
  head = ["", f"distance, first {size} frames", f"last {size}", "last / first"]
  head += [f"{name}, first and last" for name in ("motion", "saturation", "keys told")]
  lines = []
  for name, row in results.items():
    d = row["drift"]
    grows = d["distance"][-1] / max(d["distance"][0], 1e-9)
    cells = [name, f"{d['distance'][0]:.3g}", f"{d['distance'][-1]:.3g}"]
    cells += [f"**{grows:.2f}**" if grows > DRIFTS else f"{grows:.2f}"]
    cells += [f"{d[k][0]:.3g}, {d[k][-1]:.3g}" for k in ("motion", "saturation")]
    told = [f"{v:.2f}" if v is not None else "-" for v in (d["obeys"][0], d["obeys"][-1])]
    lines.append([*cells, ", ".join(told)])
  return markdown.table(head, lines)


def _drift_notes(results, bench):
  d = results["real"]["drift"]
  return [
    "",
    f"- {d['clips']} rollouts of {d['stops'][-1]} frames ({d['stops'][-1] / bench.rate:.1f} s), "
    f"{d['stops'][-1] / bench.horizon:.0f} times the {bench.horizon} frames of training. Distance: "
    f"Frechet, AlexNet features of single frames, against {len(bench.features)} real frames of any "
    f"time; bold where it grew more than {DRIFTS} times. All tenths: drift.png.",
  ]


def obedience(results):
  """What the reader of actions and the flow say."""
  names = list(results["real"]["obeys"]["buttons"])
  turns = any("turns" in row for row in results.values())
  head = ["", "keys told, balanced [95 %]", "at changes [95 %]", "all keys right [95 %]", *names]
  head += ["left / right by flow: frames", "clips [95 %]", "apart"] if turns else []
  read = results["real"]["read"]
  rows = {
    "real, held out": {"obeys": read["real"], "turns": read.get("turns", {})},
    "real, actions shifted by one": {"obeys": read["shifted"]},
    "real, actions shuffled (chance)": {"obeys": read["shuffled"]},
    **{name: row for name, row in results.items() if name != "real"},
  }
  lines = []
  for name, row in rows.items():
    o, t = row["obeys"], row.get("turns", {})
    each = [f"{v:.2f}" if v is not None else "-" for v in o["buttons"].values()]
    cells = [name, *(_interval(o[k], "{:.2f}") for k in ("balanced", "changes", "exact")), *each]
    if turns:
      cells += [f"{t['frames']:.2f}" if "frames" in t else ""]
      cells += [_interval(t["clips"], "{:.2f}") if "clips" in t else ""]
      cells += [f"{t['apart']:.1f}" if "apart" in t else ""]
    lines.append(cells)
  return markdown.table(head, lines)


def _obedience_notes(results, bench):
  o, read = results["real"]["obeys"], results["real"]["read"]
  notes = [
    "",
    "- Keys told: an inverse-dynamics network trained on real frames of the train split says from "
    "two neighbouring frames which buttons led from one to the next. Balanced accuracy (guessing: "
    f"0.50) over the buttons that it tells on real frames ({', '.join(bench.readable)}); all keys "
    f"right: exact match (always the most frequent: {o['majority']:.2f}; shuffled: "
    f"{read['shuffled']['exact']['value']:.2f}). Rollouts: {o['frames']} frames; real, held out: "
    f"{read['real']['frames']}. Keys are held for several frames; at changes: "
    "of the keys just pressed or let go, the share read as it was before and as it is now "
    "(guessing: 0.25). Where the actions came a frame late it must fall.",
  ]
  if bench.turns:
    keys, frames = bench.config["hold"], bench.config["hold_frames"]
    notes.append(
      f"- Left / right: from the same context and noise {keys['left']} or {keys['right']} is held "
      f"for {frames} frames; the sign of the horizontal optical flow (DIS), learnt on real frames, "
      "must tell which (guessing: 0.50), by single frames and by the mean of a clip. "
      "Apart: mean |left - right| of the last frames, of 255."
    )
  return notes


def cost(results):
  """Network evaluations and milliseconds a frame."""
  head = ["", "NFE a frame", "ms a frame", "denoise", "append", "decode"]
  lines = []
  for name, row in results.items():
    if "latency" in row:
      l = row["latency"]
      stages = [f"{l[stage]:.2f}" for stage in ("total", "denoise", "append", "decode")]
      lines.append([name, f"{row['nfe']:.3g}", *stages])
  return markdown.table(head, lines)


def _cost_notes():
  return [
    "",
    "- Batch 1, medians, without compilation; decode includes the transfer to the host; append "
    "writes the finished frame's keys into the cache and counts as an evaluation (none where the "
    "context is noisy: the last step writes them).",
  ]


def draw_drift(results, bench, path):
  """Metrics of the long rollouts against time, one line a row, real ones black."""
  titles = {
    "distance": "Frechet distance of frames (AlexNet)",
    "motion": "motion, |frame difference| of 255",
    "saturation": "saturation",
    "obeys": "keys told, balanced accuracy",
  }
  figure, axes = plt.subplots(2, 2, figsize=(12, 7), layout="constrained", sharex=True)
  colours = plt.get_cmap("tab20").colors
  for (key, title), ax in zip(titles.items(), axes.flat, strict=True):
    for i, (name, row) in enumerate(results.items()):
      d = row["drift"]
      starts = [0, *d["stops"][:-1]]
      middle = [(a + b) / 2 / bench.rate for a, b in zip(starts, d["stops"], strict=True)]
      style = {"color": "black", "lw": 2.5} if name == "real" else {"color": colours[i % 20]}
      ax.plot(middle, [float("nan") if v is None else v for v in d[key]], label=name, **style)
    ax.axvspan(0, bench.horizon / bench.rate, color="0.9", zorder=0)
    ax.set_title(title, fontsize=10)
    ax.grid(alpha=0.2)
  axes[0, 0].set_yscale("log")
  axes[1, 1].axhline(0.5, color="0.4", ls=":", lw=1)
  for ax in axes[1]:
    ax.set_xlabel("seconds since the last real frame (grey: as long as a training clip)")
  figure.legend(*axes[0, 0].get_legend_handles_labels(), loc="outside right center", fontsize=8)
  figure.savefig(path, dpi=110)
  plt.close(figure)


def _interval(d, form="{:.3g}"):
  if d is None:
    return "-"
  return f"{form.format(d['value'])} [{form.format(d['low'])}, {form.format(d['high'])}]"
