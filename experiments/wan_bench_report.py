"""Results of the bench for people: tables, and a picture of where the time goes."""

import pathlib

import numpy as np

from experiments.markdown import table
from experiments.wan_bench_rows import ROWS, Row
from vidstep.files import whole, write_json, write_text

STAGES = ("denoise", "denoise + write", "write", "decode, first", "decode", "to host")
# Heads of the tables.
ROW = (
  "row", "forwards", "FPS", "published", "ratio", "first chunk s", "second s",
  "steady chunk s (p95)", "floor FPS", "of it", "peak GiB", "finite",
)  # fmt: skip
STAGE = (
  "row", "stage", "calls", "ms p50 (p95)", "s in all", "TFLOP in all", "GB moved, a call",
  "least s", "bound", "of roofline", "of bandwidth", "attention",
)  # fmt: skip
ATTENTION = ("attention, reading half a cache", "chunk", "ms", "error against xla")
DECODING = ("decoding a chunk", "latents", "ms", "GB moved")
FLOOR = (
  "row", "forwards", "published FPS (H100)", "floor FPS", "published / floor", "denoise s",
  "write s", "decode s", "decode's share", "measured FPS",
)  # fmt: skip
COLORS = ("#4c72b0", "#7c9cd0", "#55a868", "#dd8452", "#dd8452", "#8c8c8c")


def stage_table(samples: dict, programs, floor, machine) -> dict:
  """What each stage took and what it must take.

      fraction = least / seconds      bandwidth = moved / p50 / bandwidth of the machine

  Args:
    samples: stage -> [(frames held, seconds)].
    programs: `Programs`.
    floor: `Floor`.
    machine: `Machine`, or None where the device is not known.

  Returns:
    stage -> {"calls", "p50", "p95", "seconds", "flops", "moved", "least", "bound", "fraction"}:
    seconds and operations of all calls together; `moved` bytes of one call as compiled, and
    "bandwidth", what share of the machine's that is; `least` seconds at the machine's peaks.
  """
  table = {}
  for name in STAGES:
    if name not in samples:
      continue
    held, seconds = zip(*samples[name], strict=True)
    row = {
      "calls": len(seconds),
      "p50": float(np.median(seconds)),
      "p95": float(np.percentile(seconds, 95)),
      "seconds": float(np.sum(seconds)),
    }
    if name in programs.stages:
      program, works = programs.stages[name], [floor.work(name, n) for n in held]
      row["attention"] = None if name.startswith("decode") else programs.attention
      row["flops"] = sum(work.flops for work in works)
      row["moved"], row["compile"] = program.moved, program.seconds
      if machine is not None:
        least = sum(work.seconds(machine) for work in works)
        compute = sum(work.compute(machine) for work in works)
        memory = sum(work.memory(machine) for work in works)
        row["least"], row["fraction"] = least, least / row["seconds"]
        row["bound"] = "compute" if compute > memory else "memory"
        if program.moved is not None:
          row["bandwidth"] = program.moved / row["p50"] / machine.chip.memory_bandwidth
    table[name] = row
  return table


def row_summary(row: Row, frames: int, clips: list, chunked: list, stages: dict) -> dict:
  """A row of the table.

      fps = pixel frames / median seconds of a clip, pixels on the host
      steady = median of a chunk's seconds over the last half of the chunks

  Args:
    row: the row.
    frames: pixel frames of a clip.
    clips: seconds of each clip made as a stream.
    chunked: for each clip made chunk by chunk, seconds of its chunks.
    stages: of `stage_table`.
  """
  seconds = float(np.median(clips))
  out = {"name": row.name, "seconds": seconds, "fps": frames / seconds, "clips": list(clips),
         "published": row.fps, "ahead": frames / seconds / row.fps, "stages": stages}  # fmt: skip
  if chunked and chunked[0]:
    late = np.concatenate([c[len(c) // 2 :] for c in chunked])
    own = 4 * row.chunk
    out |= {
      "first": float(np.median([c[0] for c in chunked])),
      "second": float(np.median([c[1] for c in chunked])),
      "steady": float(np.median(late)),
      "steady_p95": float(np.percentile(late, 95)),
      "steady_fps": own / float(np.median(late)),
    }
  least = [s["least"] for s in stages.values() if "least" in s]
  if least:
    out["floor_fps"], out["fraction"] = frames / sum(least), sum(least) / seconds
  return out


def write(result: dict, folder):
  """wan.json, wan.md and, once there is a row, wan.png; each whole or not at all."""
  folder = pathlib.Path(folder)
  write_json(folder / "wan.json", result)
  write_text(folder / "wan.md", markdown(result))
  if result["rows"]:
    plot(result["rows"], folder / "wan.png")


def markdown(result: dict) -> str:
  """Everything, as a page."""
  about = result["about"]
  lines = ["# A clip of causal Wan 1.3B, random weights", "", f"`{about['command']}`", ""]
  lines += [f"{about['device']}, {about['date']}, {about['versions']}; {about['what']}.", ""]
  if result["rows"]:
    lines += [
      "Frames a second of a whole clip, decoding and the copy to the host included; published: on "
      "one H100, without that copy. A chunk's seconds run from the pixels before it to its own, "
      "the write of the cache between them included. Stages are each waited for; their least: "
      "operations at the peak or necessary bytes at the bandwidth, whichever is longer.",
      "",
      table(ROW, [_row(r, about["frames"]) for r in result["rows"]]),
      "",
      table(STAGE, [_stage(r["name"], *s) for r in result["rows"] for s in r["stages"].items()]),
      "",
    ]
  if result["attention"]:
    lines += [table(ATTENTION, map(_attention, result["attention"])), ""]
  if result["decoding"]:
    lines += [table(DECODING, map(_decoding, result["decoding"])), ""]
  if result["not_run"]:
    lines += [f"- {name}: not run, {why}" for name, why in result["not_run"].items()] + [""]
  return "\n".join(lines)


def _row(r, latents):
  published = ROWS[r["name"]]
  get = lambda key, form: format(r[key], form) if key in r else "-"
  return (
    r["name"],
    published.forwards(latents),
    f"**{r['fps']:.1f}**",
    f"{r['published']:.1f}",
    f"{r['ahead']:.2f}",
    f"{get('first', '.2f')} ({published.first:.2f})",
    f"{get('second', '.2f')} ({published.second:.2f})",
    f"{get('steady', '.3f')} ({get('steady_p95', '.3f')})",
    get("floor_fps", ".0f"),
    get("fraction", ".0%"),
    "-" if not r.get("peak_bytes") else f"{r['peak_bytes'] / 2**30:.1f}",
    "yes" if r.get("finite") else "NO",
  )


def _stage(row, name, s):
  get = lambda key, form, scale=1.0: "-" if s.get(key) is None else format(s[key] * scale, form)
  return (
    row,
    name,
    s["calls"],
    f"{1e3 * s['p50']:.2f} ({1e3 * s['p95']:.2f})",
    f"{s['seconds']:.3f}",
    get("flops", ".1f", 1e-12),
    get("moved", ".2f", 1e-9),
    get("least", ".3f"),
    s.get("bound", "-"),
    get("fraction", ".0%"),
    get("bandwidth", ".0%"),
    s.get("attention") or "-",
  )


def _attention(r):
  if "seconds" not in r:
    why = "not run: " + r["refused"].replace("|", "/")
    return r["implementation"], r["chunk"], why, "-"
  error = "-" if r.get("error") is None else f"{r['error']:.1e}"
  return r["implementation"], r["chunk"], f"{1e3 * r['seconds']:.2f}", error


def _decoding(r):
  moved = "-" if r["moved"] is None else f"{r['moved'] / 1e9:.1f}"
  return r["name"], r["chunk"], f"{1e3 * r['seconds']:.2f}", moved


def plot(rows: list, path):
  """Stacked bars of seconds by stage, a mark where the published row stands."""
  from matplotlib.figure import Figure

  figure = Figure(figsize=(8, 1.2 + 0.45 * len(rows)), layout="constrained")
  axes = figure.subplots()
  names, seen = [r["name"] for r in rows], set()
  for i, r in enumerate(rows):
    left = 0.0
    for stage, color in zip(STAGES, COLORS, strict=True):
      width = r["stages"].get(stage, {}).get("seconds", 0.0)
      label = stage.removesuffix(", first")
      new = width and label not in seen
      axes.barh(i, width, left=left, color=color, label=label if new else None)
      seen |= {label} if width else set()
      left += width
    frames = r["fps"] * r["seconds"]
    axes.plot([frames / r["published"]] * 2, [i - 0.4, i + 0.4], color="black")
    axes.text(left, i, f" {r['fps']:.1f} FPS", va="center", fontsize=8)
  axes.set_yticks(range(len(rows)), names)
  axes.invert_yaxis()
  axes.set_xlabel("seconds of a clip, each call waited for; black: published, H100")
  axes.legend(fontsize=8)
  with whole(path) as partial:
    figure.savefig(partial, dpi=120, format="png")


def floors(tables: dict, frames: int) -> str:
  """The page of what no program can beat, measured columns "not run".

  Args:
    tables: machine -> row name -> stage -> least seconds.
    frames: pixel frames of a clip.
  """
  lines = [
    "# What the roofline allows",
    "",
    "`python -m experiments.wan_bench --floor --out=results/wan`: counted, not measured.",
    "Every call takes the longer of its matrix multiplies at the vendor's dense bf16 peak and of",
    "its bytes at the memory bandwidth: parameters, the frames in the cache, latents, pixels and",
    "the decoder's state, each once. Calls do not overlap; elementwise work, launches and the copy",
    "to the host are free. No program of these forwards is faster. All calls are bound by",
    "computing, so that an H100 and an H200 have one floor.",
    "",
  ]
  for name, rows in tables.items():
    cells = [_floor(row, stages, frames) for row, stages in rows.items()]
    lines += [f"## {name}", "", table(FLOOR, cells), ""]
  return "\n".join(lines)


def _floor(row, stages, frames):
  add = lambda *names: sum(stages.get(name, 0.0) for name in names)
  denoise, write = add("denoise", "denoise + write"), add("write")
  decode, total = add("decode, first", "decode"), sum(stages.values())
  fps, floor = ROWS[row].fps, frames / total
  return (
    row,
    ROWS[row].forwards(1 + (frames - 1) // 4),
    fps,
    f"{floor:.0f}",
    f"{fps / floor:.0%}",
    *(f"{x:.3f}" for x in (denoise, write, decode)),
    f"{decode / total:.0%}",
    "not run",
  )
