"""Streams a causal network without end, and reports how fast and how evenly.

  python -m experiments.stream --network=runs/world/sf:student:ema --frames=10000 --out=results/x
  python -m experiments.stream --config=configs/doom/stream_gpu.py --frames=3000 --require_fps=60

The first streams a trained network from held-out contexts, the second an architecture with random
weights, for its speed alone. --out gets stream.md (the table), stream.json, latency.png and, with
--video, stream.mp4. The command fails, after writing them, if something was compiled after the
warm-up, if memory grew, or if --require_fps was missed at p95.

Ticks follow each other without a pause unless --paced. Random actions come from a thread of their
own, at moments that know nothing of the ticks: action-to-photon then includes the wait for one.
"""

import datetime
import math
import pathlib
import threading
import time
from collections import deque

import jax
import numpy as np
from absl import flags
from tqdm import tqdm

from configs import common
from experiments import flags as shared
from experiments import streams
from vidstep.causal.stages import measure_stages
from vidstep.data.video_io import grid, save_video
from vidstep.metrics.streaming import Memory, Recorder, plot

CONFIG = shared.define_config(common.stream)
OUT = shared.define_out("Folder for the report.", "stream")
NETWORK = flags.DEFINE_string("network", None, 'A causal network: "workdir:role:ema".')
FRAMES = flags.DEFINE_integer("frames", 1000, "Of each session.", lower_bound=100)
SESSIONS = flags.DEFINE_integer("sessions", 1, "Streams beside each other.", lower_bound=1)
STEPS = flags.DEFINE_integer("steps", None, "Denoising steps; default: the network's own.")
WINDOW = flags.DEFINE_integer("window", None, "Frames of the past; default: as in training.")
SINK = flags.DEFINE_integer("sink", None, "First frames kept for ever; default: as in training.")
ACTIONS = flags.DEFINE_string("actions", "random", "recorded, random, or a .npy file [T, A].")
PACED = flags.DEFINE_bool("paced", False, "Tick at the frame rate, as for a viewer.")
OVERLAP = flags.DEFINE_bool("overlap", None, "Decode behind the next chunk; default: unless paced.")
AUTOSAVE = flags.DEFINE_string("autosave", None, "Folder that streams are saved to as they go.")
VIDEO = flags.DEFINE_integer("video", 0, "How many of the last frames to write as stream.mp4.")
REQUIRE_FPS = flags.DEFINE_float("require_fps", None, "Fail unless so many at p95.")

PRESSES = 8.0  # random actions a second
OPENINGS = 5  # sessions opened and closed again for the time to first frame
GROWTH = 0.02, 8 * 2**20  # of memory: whichever is more is not yet growth


def main(argv):
  del argv
  began = time.perf_counter()
  source, options = _source()
  overlap = not PACED.value if OVERLAP.value is None else OVERLAP.value
  engine = streams.make_engine(
    source, sessions=SESSIONS.value, overlap=overlap, autosave=AUTOSAVE.value, **options
  )
  seconds = engine.warmup()
  print(f"{source.name}: compiled in {seconds:.1f} s")

  recorder = Recorder(engine.frame_rate)
  cold = _openings(engine, source, recorder) - began
  stages = measure_stages(engine)
  recorded = _recorded(source)
  sessions = [streams.open_session(engine, source, clip=i) for i in range(SESSIONS.value)]
  press = Presses(sessions, source.actions) if ACTIONS.value == "random" else None
  memory, last = Memory(), deque(maxlen=math.ceil(VIDEO.value / engine.chunk))
  before = engine.compilations()
  if press:
    press.start()
  try:
    for chunks in ticks(engine, sessions, FRAMES.value, recorded=recorded, paced=PACED.value):
      for session, chunk in chunks.items():
        recorder.add(session, chunk)
      if VIDEO.value and chunks:
        last.append(np.stack([chunk.frames for chunk in chunks.values()]))
      memory.sample()
  finally:
    if press:
      press.stop()
  compiled = engine.compilations() - before
  broken = [s.error for s in sessions if s.error]
  steps = len(source.times)
  about = {
    "network": source.name,
    "parameters": f"{sum(a.size for a in jax.tree.leaves(source.params)) / 1e6:.3g}M",
    "pixels": " x ".join(map(str, engine.pixels[:2])),
    "denoising steps, forwards a chunk": f"{steps}, {steps + 1} with the cache write",
    "chunk; cache": f"{engine.chunk} frames; {engine.network.policy}",
    "ticks": f"{'paced' if PACED.value else 'one after the other'}, overlap {overlap}",
    "actions": ACTIONS.value,
    "device": f"{jax.device_count()} x {jax.devices()[0].device_kind}, jax {jax.__version__}",
    "date": datetime.date.today().isoformat(),
  }
  report = recorder.report(
    stages=stages, memory=memory.summary(), compilations=compiled,
    cache_bytes=engine.session_bytes, about=about,
  )  # fmt: skip
  report.first_frame["cold"] = cold
  out = pathlib.Path(OUT.value)
  _write(out, report, recorder, {s.name for s in sessions}, last)
  for session in sessions:
    session.close()
  engine.close()
  print(f"{report.table()}\nin {out}")
  _judge(report, broken)


def ticks(engine, sessions, frames, *, recorded=None, paced=False):
  """Ticks until every session has made its frames; yields the chunks of each.

  Args:
    engine: an `Engine`.
    sessions: open ones.
    frames: of each.
    recorded: [T, A] actions, one for each frame from the first on, over and over; None: others act.
    paced: wait for the playing time of a chunk between ticks.
  """
  interval, due = engine.chunk / engine.frame_rate, time.perf_counter()
  count = math.ceil(frames / engine.chunk) + engine.overlap
  for _ in tqdm(range(count), unit="tick", mininterval=1.0):
    if paced:
      time.sleep(max(due - time.perf_counter(), 0))
      due = max(due, time.perf_counter() - interval) + interval
    if recorded is not None:
      for session in sessions:
        if not session.closed:
          numbers = np.arange(session.index, session.index + engine.chunk)
          session.act(recorded[numbers % len(recorded)])
    yield engine.tick()


class Presses(threading.Thread):
  """Presses keys at random moments: waits between them are exponential, PRESSES a second."""

  def __init__(self, sessions, actions):
    super().__init__(name="presses", daemon=True)
    self._sessions, self._actions = sessions, actions
    self._rng, self._ended = np.random.default_rng(0), threading.Event()

  def run(self):
    while self._actions is not None and not self._ended.wait(self._rng.exponential(1 / PRESSES)):
      for session in self._sessions:
        if not session.closed:
          session.act(self._actions[self._rng.integers(len(self._actions))])

  def stop(self):
    self._ended.set()
    self.join()


def _source():
  """The `Source` and the options of its cache."""
  if (NETWORK.value is None) == (CONFIG.value is None):
    raise ValueError(
      "Give --network=workdir:role:ema, or --config=configs/doom/stream_gpu.py for an architecture "
      "with random weights."
    )
  if NETWORK.value:
    source = streams.trained(NETWORK.value, steps=STEPS.value)
    return source, {"window": WINDOW.value, "sink": SINK.value}
  config = CONFIG.value.to_dict()
  source = streams.random_weights(config, steps=STEPS.value)
  given = lambda flag, key: config[key] if flag.value is None else flag.value
  options = {"window": given(WINDOW, "window"), "sink": given(SINK, "sink")}
  return source, options | {"dtype": config["cache_dtype"], "history": config["history"]}


def _recorded(source):
  """[T, A] to be acted out frame by frame, or None."""
  if ACTIONS.value == "random" or source.actions is None:
    return None
  if ACTIONS.value == "recorded":
    return source.actions
  if not pathlib.Path(ACTIONS.value).is_file():
    raise FileNotFoundError(
      f"--actions={ACTIONS.value}: choose recorded or random, or give a .npy file [T, A]."
    )
  actions = np.load(ACTIONS.value, allow_pickle=False)
  dim = source.actions.shape[1]
  if actions.ndim != 2 or actions.shape[1] != dim or not len(actions):
    raise ValueError(f"{ACTIONS.value} has shape {actions.shape}, this network wants [T, {dim}].")
  return actions.astype(np.float32)


def _openings(engine, source, recorder):
  """Opens sessions for their first frame alone; returns when the very first one was there."""
  first = None
  for i in range(OPENINGS):
    session = streams.open_session(engine, source, clip=i)
    chunks = {}
    while session not in chunks:
      chunks = engine.tick()
    recorder.add(session, chunks[session])
    first = chunks[session].stamps.host if first is None else first
    session.close()
    engine.tick()  # lands what is in flight
  return first


def _write(out, report, recorder, names, last):
  out.mkdir(parents=True, exist_ok=True)
  (out / "stream.md").write_text(report.table())
  (out / "stream.json").write_text(report.json() + "\n")
  series = {k: v for k, v in recorder.series().items() if k in names}
  title = f"{report.fps:.0f} FPS, {report.fps_p95:.0f} at p95"
  plot(series, out / "latency.png", frame_rate=report.frame_rate, title=title)
  if last:
    video = np.concatenate(last, axis=1)[:, -VIDEO.value :]
    shown = grid({"": video}, columns=4)
    save_video(out / "stream.mp4", shown, report.frame_rate, made_by="vidstep")


def _judge(report, broken):
  """Raises ValueError, one sentence, for a stream that is not what a stream must be."""
  first, last = report.memory["first"], report.memory["last"]
  grown = last - first
  if broken:
    raise ValueError(broken[0])
  if report.compilations:
    raise ValueError(
      f"{report.compilations} programs were compiled after the warm-up; none may be."
    )
  if grown > max(GROWTH[0] * first, GROWTH[1]):
    raise ValueError(
      f"Memory grew by {grown / 2**20:.1f} MiB from the first tenth of the stream to its last."
    )
  if REQUIRE_FPS.value and report.fps_p95 < REQUIRE_FPS.value:
    raise ValueError(
      f"{report.fps_p95:.1f} frames a second at p95, but --require_fps={REQUIRE_FPS.value:g}; the "
      "table says where the time goes."
    )


if __name__ == "__main__":
  shared.run(main)
