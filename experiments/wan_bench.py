"""Times the causal Wan 1.3B, random weights, end to end: every row of Causal-rCM's Table 4.

  python -m experiments.wan_bench --out=results/wan/h200
  python -m experiments.wan_bench --out=runs/wan_bench --tiny      # on a CPU, in seconds
  python -m experiments.wan_bench --out=results/wan --floor        # what no program can beat

832 x 480, 81 frames, batch 1, the VAE's decoding and the copy of the pixels to the host included.
Each row is made as a stream (frames a second), chunk by chunk (latencies) and call by call (where
the time goes, and the part of its roofline that every stage reaches). Attention is the fastest of
the implementations that agree with `xla` on this device. Rows come in order of importance and are
written as they are done; --minutes ends the run before a loan does. --out gets wan.json, wan.md and
wan.png, with --floor roofline.md.
"""

import datetime
import os
import pathlib
import shlex
import sys
import time

os.environ.setdefault("XLA_PYTHON_CLIENT_PREALLOCATE", "false")  # others run beside: see below

import jax
import jax.numpy as jnp
from absl import flags

from experiments import flags as shared
from experiments import wan_bench_attention as attention
from experiments import wan_bench_report as report
from experiments.wan_bench_clip import Clip
from experiments.wan_bench_decode import DECODERS, time_decode
from experiments.wan_bench_floor import Floor
from experiments.wan_bench_programs import Programs, dit_shapes, draw, functions, make_size
from experiments.wan_bench_rows import ROWS as TABLE
from vidstep.files import write_text
from vidstep.metrics.latency import device_name
from vidstep.metrics.machines import machine as find_machine

OUT = shared.define_out("Folder for the results.")
ROWS = shared.define_rows(f"Of {', '.join(TABLE)}; left out, all.")
DECODER = flags.DEFINE_enum("decoder", "wan", ["wan", "tiny", "none"], "What makes pixels.")
ATTENTION = flags.DEFINE_string("attention", None, "Left out, the fastest that is right.")
MINUTES = flags.DEFINE_float("minutes", 9.0, "Nothing new is begun after these.", lower_bound=0.0)
CLIPS = flags.DEFINE_integer("clips", 5, "Clips of a row made as a stream, at most.", lower_bound=1)
MACHINE = flags.DEFINE_string("machine", None, "Whose peaks; left out, this device's if known.")
TINY = flags.DEFINE_bool("tiny", False, "Something small of the same shape.")
FLOOR = flags.DEFINE_bool("floor", False, "Only count what the roofline allows.")

MACHINES = ("h100-1", "h200-1")


def main(argv):
  """Runs what the flags say."""
  del argv
  begin = time.monotonic()
  if not OUT.value:
    raise ValueError("Where to? Give --out=results/wan/h200.")
  size, rows = make_size(DECODER.value, TINY.value), _rows(ROWS.value or [])
  if FLOOR.value:
    count_floors(size, rows, OUT.value)
    return
  machine = _machine(MACHINE.value)
  left = lambda: 60 * MINUTES.value - (time.monotonic() - begin)
  result = {"about": _about(size), "attention": [], "decoding": [], "rows": [], "not_run": {}}
  bench = Bench(size, machine, left, result, OUT.value)
  for row in rows:
    bench.run(row)
  bench.try_decoders(rows[0].chunk)
  bench.try_experimental(rows[0].chunk)
  result["about"]["minutes"] = (time.monotonic() - begin) / 60
  report.write(result, OUT.value)
  print(report.markdown(result))


class Bench:
  """Runs rows while there is time; programs and weights of a chunk size serve all of its rows.

  Args:
    size: what is timed.
    machine: whose peaks, or None.
    left: () -> seconds until the end.
    result: what is filled and written.
    out: folder.
  """

  def __init__(self, size, machine, left, result, out):
    self.size, self.machine, self.left, self.result, self.out = size, machine, left, result, out
    self._clips, self._floors, self._slowest = {}, {}, {}
    self._params = None

  def run(self, row):
    """One row, or the reason why not; the files are written after it."""
    need = 0.0 if row.chunk in self._clips else self._slowest.get("compile", 0.0)
    need += 3 * self._slowest.get("clip", 0.0)
    if self.left() <= need:
      self._skip(row, f"{max(self.left(), 0):.0f} s are left, it needs about {need:.0f}")
      return
    try:
      clip = self._prepare(row)
    except NotImplementedError as error:
      self._skip(row, str(error))
      return
    played = clip.play(row)  # memory is taken, programs are loaded
    clips, chunked, samples = [], [], {}
    while len(clips) < CLIPS.value and (not clips or self.left() > 3 * clips[-1]):
      clips.append(clip.play(row)["seconds"])
    self._slowest["clip"] = max(self._slowest.get("clip", 0.0), *clips)
    for by in ("stage", "chunk", "chunk"):
      if self.left() < clips[-1]:
        break
      played = clip.play(row, by=by)
      samples = played["stages"] or samples
      chunked += [played["chunks"]] if by == "chunk" else []
    stages = report.stage_table(samples, clip.programs, self._floors[row.chunk], self.machine)
    done = report.row_summary(row, self.size.pixel_frames, clips, chunked, stages)
    done["finite"] = all(bool(jnp.isfinite(x).all()) for x in played["latents"])
    done["peak_bytes"] = (jax.devices()[0].memory_stats() or {}).get("peak_bytes_in_use")
    self.result["rows"].append(done)
    report.write(self.result, self.out)
    print(f"{row.name}: {done['fps']:.2f} FPS, published {row.fps}", flush=True)

  def try_decoders(self, chunk):
    """Other ways to decode a chunk beside the one that rows take, while there is time."""
    if self.size.vae is None or chunk not in self._clips:
      return
    for name, at_once, options in DECODERS:
      if self.left() <= self._slowest["compile"] + 20:
        self.result["not_run"][f"decoding, {name}"] = "no time is left"
        continue
      decode = time_decode(self.size, chunk, self._clips[chunk].vae, at_once or chunk, options)
      self.result["decoding"].append({"name": name, "chunk": chunk} | decode)
    report.write(self.result, self.out)

  def try_experimental(self, chunk):
    """Kernels never run on their hardware, each in a process of its own, while there is time."""
    tried = {r["implementation"] for r in self.result["attention"]}
    for name in attention.candidates():
      if name in tried or ATTENTION.value:
        continue
      if jax.default_backend() != "gpu" or self.left() < 40:
        why = "no GPU" if jax.default_backend() != "gpu" else "no time left"
        record = {"implementation": name, "chunk": chunk, "refused": why}
      else:
        record = attention.try_apart(name, chunk, TINY.value, min(self.left() - 10, 120))
      self.result["attention"].append(record)

  def _prepare(self, row):
    if self._params is None:
      self._params = jax.block_until_ready(draw(dit_shapes(self.size)))
    begin = time.monotonic()
    if row.chunk not in self._clips:
      name = self._attention(row.chunk)
      programs = Programs(self.size, row.chunk, name, noisy=row.noisy)
      others = [clip.vae for clip in self._clips.values()]
      self._clips[row.chunk] = Clip(programs, self._params, *others[:1])
      self._floors[row.chunk] = Floor(self.size, row.chunk)
    clip = self._clips[row.chunk]
    clip.programs.add(functions(self.size, row.chunk, clip.programs.attention, noisy=row.noisy))
    seconds = time.monotonic() - begin
    self._slowest["compile"] = max(self._slowest.get("compile", 0.0), seconds)
    return clip

  def _attention(self, chunk):
    if ATTENTION.value:
      return ATTENTION.value
    records = attention.try_all(self.size, chunk)
    self.result["attention"] += records
    report.write(self.result, self.out)
    name = attention.best(records)
    if name is None:
      raise NotImplementedError("no attention runs here; the table says why")
    return name

  def _skip(self, row, why):
    self.result["not_run"][row.name] = why
    report.write(self.result, self.out)


def count_floors(size, rows, out):
  """Writes roofline.md: the least time of every row on `MACHINES`."""
  floors = {chunk: Floor(size, chunk) for chunk in {row.chunk for row in rows}}
  tables = {
    name: {row.name: floors[row.chunk].seconds(row, find_machine(name)) for row in rows}
    for name in MACHINES
  }
  write_text(pathlib.Path(out) / "roofline.md", report.floors(tables, size.pixel_frames))


def _rows(names):
  unknown = sorted(set(names) - set(TABLE))
  if unknown:
    raise ValueError(f"There are no rows {', '.join(unknown)}: choose from {', '.join(TABLE)}.")
  return [row for name, row in TABLE.items() if not names or name in names]


def _machine(name):
  if name:
    return find_machine(name)
  kind = jax.devices()[0].device_kind.lower()
  known = [m for m in MACHINES if m.removesuffix("-1") in kind]
  return find_machine(known[0]) if known else None


def _about(size):
  h, w = (8 * n for n in size.latent)
  return {
    "command": "python -m experiments.wan_bench " + shlex.join(sys.argv[1:]),
    "device": device_name(),
    "date": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
    "versions": f"jax {jax.__version__}, Python {sys.version.split()[0]}",
    "what": f"{w} x {h}, {size.pixel_frames} frames, batch 1, bfloat16, decoder {DECODER.value}",
    "frames": size.frames,
  }


if __name__ == "__main__":
  shared.run(main)
