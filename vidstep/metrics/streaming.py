"""How well a stream streams: latency, intervals, jitter, misses, action-to-photon, memory.

Let frame i be presentable (decoded, in host memory) at p_i. All frames of a chunk are so at once.

    time to first frame   p_1 - request; cold with building and compiling, warm without
    chunk latency         p(last frame of the chunk) - (its inputs were read)
    frame interval        d_i = p_i - p_{i-1}: 0 within a chunk, a burst; and the time between
                          chunks over their frames, the amortised interval that FPS is made of
    jitter                |d_i - d_{i-1}|
    deadline misses       share of chunks that come later than their frames' playing time after
                          the chunk before: a player that holds one chunk runs dry
    action-to-photon      p(first frame made with the action) - its arrival
    FPS                   (n - 1) / (p_n - p_1);  real-time factor: FPS / frame rate
"""

import dataclasses
import os
import pathlib
from collections import deque

import numpy as np

QUANTILES = (50, 90, 95, 99)


class Recorder:
  """Collects the chunks of streams; `report` says what they amount to at that moment.

  All frames here are pixel frames.

  Args:
    frame_rate: frames a second that the video is meant to be shown at.
    keep: chunks that are remembered, the latest of each session; None: all.
    skip: first chunks of each session that are left out of everything but time to first frame.
  """

  def __init__(self, frame_rate, *, keep=None, skip=2):
    self.frame_rate, self._keep, self._skip = float(frame_rate), keep, skip
    self._first, self._seen, self._rows = {}, {}, {}

  def add(self, session, chunk):
    """Books a chunk of a session."""
    name, stamps = session.name, chunk.stamps
    if name not in self._rows:
      self._first[name] = stamps.host - session.opened
      self._rows[name] = deque(maxlen=self._keep)
    self._seen[name] = self._seen.get(name, 0) + 1
    if self._seen[name] > self._skip:
      arrival = np.nan if stamps.arrival is None else stamps.arrival
      row = (stamps.dispatch, stamps.ready, stamps.host, arrival, len(chunk.frames))
      self._rows[name].append(row)

  def forget(self, session):
    """Drops what was booked of a session; for a server whose sessions come and go."""
    for table in (self._first, self._seen, self._rows):
      table.pop(session.name, None)

  def series(self):
    """name -> float64 [chunks, 5]: dispatch, ready, host, arrival (nan: none), frames."""
    return {k: np.array(v, np.float64).reshape(-1, 5) for k, v in self._rows.items()}

  def report(self, **facts) -> "StreamReport":
    """What was measured so far, pooled over sessions.

    Args:
      **facts: more fields of `StreamReport`.

    Raises:
      ValueError: if no session has three chunks yet.
    """
    series = [rows for rows in self.series().values() if len(rows) >= 3]
    if not series:
      raise ValueError("A report needs at least three chunks of a session, after those skipped.")
    pool = lambda parts: np.concatenate([np.asarray(p) for p in parts])
    gaps = [np.diff(rows[:, 2]) for rows in series]
    counts = [rows[1:, 4] for rows in series]
    bursts = [_bursts(gap, count) for gap, count in zip(gaps, counts, strict=True)]
    fps = [c.sum() / g.sum() for g, c in zip(gaps, counts, strict=True)]
    gap, count = pool(gaps), pool(counts)
    rows = pool(series)
    acted = rows[~np.isnan(rows[:, 3])]
    late = gap > count / self.frame_rate * (1 + 1e-9)
    amortised = summary(gap / count)
    return StreamReport(
      frame_rate=self.frame_rate,
      frames=int(rows[:, 4].sum()),
      sessions=len(series),
      first_frame={"warm": summary(list(self._first.values()))},
      chunk_latency=summary(rows[:, 2] - rows[:, 0]),
      compute=summary(rows[:, 1] - rows[:, 0]),
      to_host=summary(rows[:, 2] - rows[:, 1]),
      frame_interval=summary(pool(bursts)),
      amortised_interval=amortised,
      jitter=summary(pool([np.abs(np.diff(b)) for b in bursts])),
      misses={"count": int(late.sum()), "rate": float(late.mean())},
      action_to_photon=summary(acted[:, 2] - acted[:, 3]) if len(acted) else None,
      fps=float(np.mean(fps)),
      fps_p95=1 / amortised["p95"],
      real_time_factor=float(np.mean(fps)) / self.frame_rate,
      **facts,
    )


@dataclasses.dataclass(frozen=True)
class StreamReport:
  """One stream, or several beside each other, in numbers; all times in seconds.

  Times with quantiles are dicts {"p50", "p90", "p95", "p99", "mean", "max", "count"}.

  Attributes:
    frame_rate: pixel frames a second that the video is meant for.
    frames: pixel frames counted, of all sessions.
    sessions: streams.
    first_frame: {"warm": quantiles over sessions}, and "cold" if it was measured.
    chunk_latency, frame_interval, amortised_interval, jitter, action_to_photon: see above.
    compute, to_host: the two parts of the chunk latency: until the pixels are computed, and the
      copy of them.
    misses: {"count", "rate"}.
    fps: of a session, their mean. fps_p95: 1 / p95 of the amortised interval.
    real_time_factor: fps / frame_rate.
    cache_bytes: of one session; snapshots come on top.
    stages: stage -> quantiles, each alone and waited for; they overlap in the stream.
    memory: {"first", "last"} tenth of the run, mean resident bytes, and "samples".
    compilations: programs compiled after the warm-up.
    about: what was run: device, network, steps, window ..
  """

  frame_rate: float
  frames: int
  sessions: int
  first_frame: dict
  chunk_latency: dict
  compute: dict
  to_host: dict
  frame_interval: dict
  amortised_interval: dict
  jitter: dict
  misses: dict
  action_to_photon: dict | None
  fps: float
  fps_p95: float
  real_time_factor: float
  cache_bytes: int | None = None
  stages: dict = dataclasses.field(default_factory=dict)
  memory: dict | None = None
  compilations: int | None = None
  about: dict = dataclasses.field(default_factory=dict)

  def table(self) -> str:
    """Markdown: times in milliseconds, then what is not a time."""
    rows = [("time to first frame, warm", self.first_frame["warm"])]
    rows += [
      ("chunk latency", self.chunk_latency),
      (". until computed", self.compute),
      (". copied to the host", self.to_host),
      ("frame interval", self.frame_interval),
      ("amortised interval", self.amortised_interval),
      ("jitter", self.jitter),
    ]
    if self.action_to_photon:
      rows.append(("action-to-photon", self.action_to_photon))
    rows += [(f"stage alone: {name}", stage) for name, stage in self.stages.items()]
    lines = ["| ms | p50 | p95 | p99 | max | mean |", "|---|---|---|---|---|---|"]
    for name, q in rows:
      numbers = (f"{1e3 * q[k]:.2f}" for k in ("p50", "p95", "p99", "max", "mean"))
      lines.append(f"| {name} | {' | '.join(numbers)} |")
    facts = [
      ("pixel frames, sessions", f"{self.frames}, {self.sessions}"),
      ("FPS of a session; at p95", f"{self.fps:.1f}; {self.fps_p95:.1f}"),
      (f"real-time factor at {self.frame_rate:g} frames a second", f"{self.real_time_factor:.2f}"),
      ("deadline misses", f"{self.misses['count']} ({self.misses['rate']:.2%})"),
    ]
    if "cold" in self.first_frame:
      facts.append(("time to first frame, cold", f"{self.first_frame['cold']:.2f} s"))
    if self.cache_bytes is not None:
      facts.append(("cache and codec of a session", _mib(self.cache_bytes)))
    if self.memory is not None:
      first, last = _mib(self.memory["first"]), _mib(self.memory["last"])
      facts.append(("resident memory, first and last tenth", f"{first}, {last}"))
    if self.compilations is not None:
      facts.append(("compiled after the warm-up", str(self.compilations)))
    facts += [(str(k), str(v)) for k, v in self.about.items()]
    lines += ["", "| | |", "|---|---|", *(f"| {name} | {value} |" for name, value in facts)]
    return "\n".join(lines) + "\n"


class Memory:
  """Resident memory over a run."""

  def __init__(self):
    self.samples = []

  def sample(self):
    self.samples.append(resident_bytes())

  def summary(self) -> dict:
    """{"first", "last": mean of the first and last tenth, "samples": at most 200 of them}.

    Raises:
      ValueError: for fewer than 10 samples.
    """
    if len(self.samples) < 10:
      raise ValueError(f"Memory needs at least 10 samples, got {len(self.samples)}.")
    tenth = len(self.samples) // 10
    mean = lambda part: float(np.mean(part))
    shown = self.samples[:: -(-len(self.samples) // 200)]
    first, last = mean(self.samples[:tenth]), mean(self.samples[-tenth:])
    return {"first": first, "last": last, "samples": shown}


def resident_bytes() -> int:
  """Resident memory of this process now; where the system tells only the peak, that."""
  try:
    pages = int(pathlib.Path("/proc/self/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE")
  except OSError:
    import resource  # absent on Windows
    import sys

    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit


def summary(seconds) -> dict:
  """Quantiles, mean, max and count of times, for JSON."""
  seconds = np.asarray(seconds, np.float64)
  quantiles = np.percentile(seconds, QUANTILES)
  table = {f"p{q}": float(v) for q, v in zip(QUANTILES, quantiles, strict=True)}
  return table | {
    "mean": float(seconds.mean()),
    "max": float(seconds.max()),
    "count": len(seconds),
  }


def plot(series, path, *, frame_rate, title=""):
  """Draws chunk latencies over time, and their distribution, as a PNG.

  Args:
    series: of `Recorder.series`.
    path: file.
    frame_rate: draws a line at the playing time of a chunk.
    title: of the picture.
  """
  from matplotlib.figure import Figure

  figure = Figure(figsize=(10, 3.4), layout="constrained")
  over_time, spread = figure.subplots(1, 2, width_ratios=(4, 1), sharey=True)
  series = {name: rows for name, rows in series.items() if len(rows)}
  start = min(rows[0, 0] for rows in series.values())
  every = np.concatenate([rows[:, 2] - rows[:, 0] for rows in series.values()]) * 1e3
  for name, rows in series.items():
    milliseconds = 1e3 * (rows[:, 2] - rows[:, 0])
    over_time.plot(rows[:, 2] - start, milliseconds, ".", ms=2, alpha=0.6, label=name)
  budget = 1e3 * next(iter(series.values()))[0, 4] / frame_rate
  over_time.axhline(budget, color="0.5", lw=1, ls="--")
  over_time.annotate(
    f"one chunk at {frame_rate:g} frames a second", (0.01, budget), color="0.4", va="bottom",
    xycoords=("axes fraction", "data"), fontsize=8,
  )  # fmt: skip
  over_time.set(xlabel="seconds", ylabel="chunk latency, ms", title=title)
  over_time.set_ylim(0, 1.15 * max(budget, np.percentile(every, 99.5)))
  spread.hist(every, bins=60, orientation="horizontal", color="0.4", range=over_time.get_ylim())
  for q in (50, 95, 99):
    value = np.percentile(every, q)
    spread.axhline(value, lw=0.8, color="C3")
    spread.annotate(f"p{q} {value:.1f}", (0.98, value), xycoords=("axes fraction", "data"),
                    ha="right", va="bottom", fontsize=7, color="C3")  # fmt: skip
  spread.set(xlabel="chunks")
  spread.set_xscale("symlog")
  pathlib.Path(path).parent.mkdir(parents=True, exist_ok=True)
  figure.savefig(path, dpi=110)


def _bursts(gaps, counts):
  """Intervals between frames: the gap in front of the first of a chunk, 0 in front of the rest."""
  intervals = np.zeros(int(counts.sum()))
  firsts = np.concatenate([[0], np.cumsum(counts[:-1])]).astype(int)
  intervals[firsts] = gaps
  return intervals


def _mib(count):
  return f"{count / 2**20:.2f} MiB"
