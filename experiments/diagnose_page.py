"""The page of experiments.diagnose: curves of one run or several side by side, and the verdict."""

import base64
import html as escape
import io
import textwrap

import matplotlib

matplotlib.use("Agg")

import matplotlib.pyplot as plt
import numpy as np
from PIL import Image

from vidstep.training.detectors import LIMITS

COLOURS = {"collapse": "#c0392b", "warning": "#d68910", "well": "#1e8449"}
WIDTH = 150  # characters of the verdict above a page of one run


# ------------------------------------------------------------------------------------------------
# Words
# ------------------------------------------------------------------------------------------------


def findings(run):
  """What stands at the end of a run, the gravest first."""
  standing = [finding for finding, _ in run.diagnosis.standing.values()]
  return sorted(standing, key=lambda f: (f.severity != "collapse", f.since))


def headline(run):
  """(severity or "well", one sentence)."""
  standing, history = findings(run), run.diagnosis.history
  if any(f.severity == "collapse" for f in standing):
    return "collapse", f"{run.name}, {run.state}: this run has collapsed."
  if standing:
    return "warning", f"{run.name}, {run.state}: look at this."
  looks = len(history.series("probe/finite")[0])
  judged = f"{looks} looks at its samples" if looks else (
    "its losses and gradients only: for samples, train with diagnose.every > 0"
  )  # fmt: skip
  return "well", f"{run.name}, {run.state}: nothing looks wrong, judged by {judged}."


def passed(run):
  """Sentences on findings that came and went away."""
  standing, gone = {f.name for f in findings(run)}, {}
  for event in run.diagnosis.events:
    if event["name"] in standing:
      continue
    if "gone" in event:
      gone[event["name"]] = (*gone[event["name"]][:2], event["step"])
    else:
      gone[event["name"]] = (event["seen"], event["step"], event["step"])
  return [
    f"Earlier, from step {first} to {last} ({name}): {seen}."
    for name, (seen, first, last) in gone.items()
  ]


def verdict(run, *, brief=False):
  """The verdict as lines of text; brief, without causes and advice."""
  lines = [headline(run)[1]]
  for i, f in enumerate(findings(run), 1):
    words = f"{f.seen}, since step {f.since}." if brief else f.text
    lines.append(f"[{i}] {f.name}, {f.severity}: {words}")
  return lines + passed(run)


# ------------------------------------------------------------------------------------------------
# Curves
# ------------------------------------------------------------------------------------------------


def draw(runs, path):
  """Draws the page as a picture.

  Args:
    runs: what `experiments.diagnose.open_run` returns, one or several.
    path: of the PNG.
  """
  panels = (_losses, _losses_by_time, _gaps, _gradients, _samples, _exposure)
  columns = 3 if len(runs) == 1 else len(runs)
  width = WIDTH if len(runs) == 1 else int(WIDTH / len(runs))
  lines = [verdict(run, brief=len(runs) > 1) for run in runs]
  texts = ["\n".join(textwrap.fill(line, width) for line in each) for each in lines]
  strips = [None if run.picture is None else landscape(run.picture, run.clips) for run in runs]
  rows = 2 if len(runs) == 1 else len(panels)
  tall = [0.15 * (max(text.count("\n") for text in texts) + 2), *[2.3] * rows]
  tall += [1.8] if any(s is not None for s in strips) else []
  figure = plt.figure(figsize=(12, sum(tall) + 0.3 * len(tall)), layout="constrained")
  grid = figure.add_gridspec(len(tall), columns, height_ratios=tall)
  for i, (run, text, strip) in enumerate(zip(runs, texts, strips, strict=True)):
    column = slice(None) if len(runs) == 1 else i
    axes = figure.add_subplot(grid[0, column])
    axes.axis("off")
    colour = COLOURS[headline(run)[0]]
    words = axes.text(0, 1, text, va="top", fontsize=8, family="monospace", color=colour)
    words.set_in_layout(False)
    if strip is not None:
      axes = figure.add_subplot(grid[-1, column])
      axes.imshow(strip, interpolation="nearest")
      axes.axis("off")
      step = int(run.picture.stem.rpartition("_")[2])
      axes.set_title(f"step {step}: real above drawn", fontsize=9)
  for k, panel in enumerate(panels):
    shared = None
    for i, run in enumerate(runs):
      place = divmod(k, columns) if len(runs) == 1 else (k, i)
      axes = figure.add_subplot(grid[1 + place[0], place[1]], sharey=shared)
      shared = axes
      panel(axes, run.diagnosis.history)
      _mark(axes, run)
  buffer = io.BytesIO()
  figure.savefig(buffer, dpi=100)
  plt.close(figure)
  with Image.open(buffer) as image:  # 256 colours are a quarter of the bytes
    image.convert("RGB").quantize(256).save(path, optimize=True)


def landscape(file, clips, gap=2):
  """A picture of training, clips below each other, as one with the clips side by side."""
  with Image.open(file) as image:
    pixels = np.asarray(image)
  pixels = np.pad(pixels, ((0, gap), (0, gap), (0, 0)), constant_values=255)
  if len(pixels) % clips:
    return pixels
  return np.concatenate(np.split(pixels, clips), axis=1)


def _mark(axes, run):
  """A numbered line where each finding began."""
  for i, finding in enumerate(findings(run), 1):
    axes.axvline(finding.since, color=COLOURS[finding.severity], lw=1, ls=":")
    axes.annotate(
      str(i), (finding.since, 1 - 0.07 * (i - 1)), xycoords=("data", "axes fraction"),
      xytext=(2, -8), textcoords="offset points", fontsize=7, color=COLOURS[finding.severity],
    )  # fmt: skip
  axes.tick_params(which="both", labelsize=7)
  axes.grid(alpha=0.2)
  axes.set_xlim(0, run.diagnosis.history.step)
  if axes.get_legend_handles_labels()[0]:
    axes.legend(fontsize=6, ncols=2, framealpha=0.6)
  else:
    axes.text(0.5, 0.5, "not logged", transform=axes.transAxes, ha="center", color="0.6")


def _curve(axes, history, name, label, **style):
  """A metric as means of about a hundred windows."""
  steps, means = history.windows(name, least=1, most=100)
  if len(means) and np.any(means > 0):
    axes.plot(steps, means, label=label, lw=1.2, **style)
    axes.set_yscale("log", nonpositive="mask")


def _by_time(axes, history, metric, roles):
  """A metric by time bin: colours are times, line styles are roles."""
  for role, line in zip(roles, ("-", "--", ":", "-.") * 4, strict=False):
    bins = [k for k in range(16) if f"{role}/{metric}_t{k}" in history]
    for k in bins:
      where = {0: " (clean)", bins[-1]: " (noise)"}.get(k, "")
      colour = plt.cm.viridis(0.9 * k / max(bins[-1], 1))
      label = f"{role} {metric} t{k}{where}"
      _curve(axes, history, f"{role}/{metric}_t{k}", label, color=colour, ls=line)


def _losses(axes, history):
  axes.set_title("loss", fontsize=9)
  for role in history.roles():
    _curve(axes, history, f"{role}/loss", role)


def _losses_by_time(axes, history):
  axes.set_title("loss by time", fontsize=9)
  _by_time(axes, history, "loss", history.roles())


def _gaps(axes, history):
  axes.set_title("score gap to the teacher, tangents, by time", fontsize=9)
  _by_time(axes, history, "gap", history.roles())
  _by_time(axes, history, "tangent_norm", history.roles())


def _gradients(axes, history):
  axes.set_title("gradient and tangent norms", fontsize=9)
  for role in history.roles():
    _curve(axes, history, f"{role}/grad_norm", f"{role} gradient")
    _curve(axes, history, f"{role}/tangent_norm", f"{role} tangent", ls="--")


def _samples(axes, history):
  axes.set_title("samples / real", fontsize=9)
  for measure, limit in (
    ("motion", LIMITS.static), ("diversity", LIMITS.alike), ("spread", LIMITS.alike),
    ("contrast", None),
  ):  # fmt: skip
    steps, values = history.series(f"probe/{measure}")
    _, real = history.series(f"probe/{measure}_real")
    if len(steps):
      ratio = np.clip(values / np.maximum(real, 1e-3), 0.02, 20)
      axes.plot(steps, ratio, "o-", ms=2, lw=1.2, label=measure)
      if limit:
        axes.axhspan(0.02, limit, color=COLOURS["collapse"], alpha=0.04)
  axes.axhline(1, color="0.5", lw=0.8)
  axes.set_yscale("log")
  axes.set_ylim(0.02, 20)


def _exposure(axes, history):
  axes.set_title("exposure: samples solid, real dashed", fontsize=9)
  for measure, colour in (("saturation", "C0"), ("clipped", "C1")):
    steps, values = history.series(f"probe/{measure}")
    _, real = history.series(f"probe/{measure}_real")
    if len(steps):
      axes.plot(steps, values, "o-", ms=2, lw=1.2, color=colour, label=measure)
      axes.plot(steps, real, "--", lw=0.8, color=colour)
  axes.set_ylim(0, 1)


# ------------------------------------------------------------------------------------------------
# HTML
# ------------------------------------------------------------------------------------------------

STYLE = """body{font:15px/1.5 sans-serif;max-width:1200px;margin:2em auto;padding:0 1em}
img{width:100%}li{margin:.6em 0}small{color:#777}h2{margin-bottom:0}"""


def html(runs, picture):
  """The page as one self-contained HTML file, with the picture inside."""
  parts = []
  for run in runs:
    severity, sentence = headline(run)
    parts.append(f'<h2 style="color:{COLOURS[severity]}">{escape.escape(sentence)}</h2><ol>')
    for f in findings(run):
      name = f'<b style="color:{COLOURS[f.severity]}">{f.name}</b> ({f.severity})'
      seen = f"{f.seen[:1].upper()}{f.seen[1:]}, since step {f.since}."
      words = "<br>".join(escape.escape(s) for s in (seen, f.cause, f"Try: {f.advice}"))
      parts.append(f"<li>{name}<br>{words}</li>")
    parts.append("</ol>" + "".join(f"<p>{escape.escape(s)}</p>" for s in passed(run)))
  image = base64.b64encode(picture.read_bytes()).decode()
  names = escape.escape(", ".join(run.name for run in runs))
  return (
    f'<!doctype html><html lang="en"><meta charset="utf-8"><title>{names}</title>'
    f"<style>{STYLE}</style>{''.join(parts)}"
    f'<img alt="curves and samples" src="data:image/png;base64,{image}">'
    "<small>Numbers in the curves are those of the findings; lines of windows of steps, dots are "
    "looks at samples.</small></html>\n"
  )
