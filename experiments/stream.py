"""Streams a causal network without end, and reports how fast and how evenly.

  python -m experiments.stream --network=runs/world/sf:student:ema --frames=10000 --out=results/x
  python -m experiments.stream --config=configs/doom/stream_gpu.py --frames=3000 --require_fps=60
  python -m experiments.stream --model=wan2.1-t2v-1.3b --transformer=self_forcing_dmd.pt \\
    --prompt="a cat walks along a beach" --frames=480 --out=cat

The first streams a trained network from held-out contexts, the second an architecture with random
weights, for its speed alone, the third a causal student of Wan 2.1 (docs/streaming.md). --out gets
stream.md (the table), stream.json, latency.png and stream.mp4: with --video its last frames, of
Wan all of them, written while it streams. The command fails, after writing them, if something was
compiled after the warm-up, if memory grew, or if --require_fps was missed at p95.

Ticks follow each other without a pause unless --paced. Random actions come from a thread of their
own, at moments that know nothing of the ticks: action-to-photon then includes the wait for one.
"""

import dataclasses
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
from experiments import stream_wan, streams
from vidstep.causal.stages import measure_stages
from vidstep.data.live_video import LiveVideo
from vidstep.data.video_io import grid, save_video
from vidstep.files import write_json, write_text
from vidstep.metrics.latency import device_name
from vidstep.metrics.streaming import Memory, Recorder, plot

CONFIG = shared.define_config(common.stream)
OUT = shared.define_out("Folder for the report.", "stream")
NETWORK = flags.DEFINE_string("network", None, 'A causal network: "workdir:role:ema".')
MODEL = flags.DEFINE_string("model", None, "Wan: a release, a repository of the hub, or a folder.")
FRAMES = flags.DEFINE_integer("frames", 1000, "Pixel frames of each session.", lower_bound=20)
SESSIONS = flags.DEFINE_integer("sessions", 1, "Streams beside each other.", lower_bound=1)
STEPS = flags.DEFINE_integer("steps", None, "Denoising steps; default: the network's own.")
WINDOW = flags.DEFINE_integer("window", None, "Latent frames of the past; default: as in training.")
SINK = flags.DEFINE_integer("sink", None, "First ones kept for ever; default: as in training.")
ACTIONS = flags.DEFINE_string("actions", "random", "recorded, random, or a .npy file [T, A].")
PACED = flags.DEFINE_bool("paced", False, "Tick at the frame rate, as for a viewer.")
OVERLAP = flags.DEFINE_bool("overlap", None, "Decode behind the next chunk; default: unless paced.")
AUTOSAVE = flags.DEFINE_string("autosave", None, "Folder that streams are saved to as they go.")
VIDEO = flags.DEFINE_integer(
  "video", None, "How many of the last frames to write; -1: all. Default: none; of Wan all."
)
STAGES = flags.DEFINE_integer("stages", 30, "Runs of each stage alone; 0: not measured.")
REQUIRE_FPS = flags.DEFINE_float("require_fps", None, "Fail unless so many at p95.")

# Of Wan.
TRANSFORMER = flags.DEFINE_string(
  "transformer", None, "Another file for the transformer: a student."
)
LORA = flags.DEFINE_string("lora", None, "Low-rank factors to merge into it.")
TINY = flags.DEFINE_string("tiny_decoder", None, "File of TAEHV, to decode by.")
PROMPT = flags.DEFINE_string("prompt", None, "What is to be seen.")
PROMPTS = flags.DEFINE_string("prompts", None, 'File of "pixel frame<TAB>prompt" lines, from 0 on.')
SIZE = flags.DEFINE_string("size", None, "Height x width in pixels, such as 480x832.")
CHUNK = flags.DEFINE_list("chunk", ["3"], "Latent frames made together; or first,others.")
TIMES = flags.DEFINE_list("times", [], "Times of the denoising steps, falling from 1.")
FIRST_TIMES = flags.DEFINE_list("first_times", [], "Those of the first chunk, if they differ.")
SHIFT = flags.DEFINE_float("shift", None, "Without --times: shift of a grid of --steps steps.")
GUIDANCE = flags.DEFINE_float("guidance", 1.0, "Only 1, none: a student has it built in.")
SEED = flags.DEFINE_integer("seed", 0, "Of the noise of the first session.")
RECACHE = flags.DEFINE_bool("recache", False, "A new prompt computes the cache anew.")
DTYPE = flags.DEFINE_string("dtype", "bfloat16", "Of the transformer and its cache.")
VAE_DTYPE = flags.DEFINE_string("vae_dtype", "float32", "Of the decoder.")

PRESSES = 8.0  # random actions a second
OPENINGS = 5  # sessions opened and closed again for the time to first frame
STEADY = 100  # ticks from which on memory is judged
GROWTH = 0.02, 8 * 2**20  # of memory: whichever is more is not yet growth


def main(argv):
  del argv
  began = time.perf_counter()
  source, options, script = _source()
  overlap = not PACED.value if OVERLAP.value is None else OVERLAP.value
  engine = streams.make_engine(
    source, sessions=SESSIONS.value, overlap=overlap, autosave=AUTOSAVE.value, **options
  )
  seconds = engine.warmup()
  print(f"{source.name}: compiled in {seconds:.1f} s")

  recorder = Recorder(engine.frame_rate)
  cold = _openings(engine, source, recorder, 2 if script else OPENINGS) - began
  text = None if script else "a prompt"  # embedding a new one means reading UMT5 again
  stages = measure_stages(engine, runs=STAGES.value, text=text) if STAGES.value else {}
  recorded = _recorded(source)
  sessions = [
    streams.open_session(engine, source, clip=i, **({"seed": SEED.value + i} if script else {}))
    for i in range(SESSIONS.value)
  ]
  press = Presses(sessions, source.actions) if ACTIONS.value == "random" else None
  count = VIDEO.value if VIDEO.value is not None else -1 if script else 0
  memory, last = Memory(), deque(maxlen=math.ceil(max(count, 0) / engine.chunk_frames))
  out = pathlib.Path(OUT.value)
  live = _live(out, sessions, source) if count < 0 else {}
  before = engine.compilations()
  if press:
    press.start()
  try:
    told = {"recorded": recorded, "script": script, "paced": PACED.value}
    for chunks in ticks(engine, sessions, FRAMES.value, **told):
      for session, chunk in chunks.items():
        recorder.add(session, chunk)
        if session in live:
          live[session].add(chunk.frames)
      if last.maxlen and chunks:
        last.append(np.stack([chunk.frames for chunk in chunks.values()]))
      memory.sample()
  finally:
    if press:
      press.stop()
    for video in live.values():
      video.close()
  compiled = engine.compilations() - before
  broken = [s.error for s in sessions if s.error]
  steps = len(source.times)
  about = {
    "network": source.name,
    "parameters": f"{sum(a.size for a in jax.tree.leaves(source.params)) / 1e6:.3g}M",
    "pixels": " x ".join(map(str, engine.pixels[:2])),
    "denoising steps, forwards a chunk": f"{steps}, {steps + 1} with the cache write",
    "chunk": f"{engine.chunk} latent frames, {engine.chunk_frames} pixel frames",
    "cache": str(engine.network.policy),
    "ticks": f"{'paced' if PACED.value else 'one after the other'}, overlap {overlap}",
    "actions": ACTIONS.value if engine.action_shape else "none",
    "device": f"{device_name()}, jax {jax.__version__}",
    "date": datetime.date.today().isoformat(),
  }
  report = recorder.report(
    stages=stages, memory=memory.summary() if len(memory.samples) >= STEADY else None,
    compilations=compiled, cache_bytes=engine.session_bytes, about=about,
  )  # fmt: skip
  report.first_frame["cold"] = cold
  _write(out, report, recorder, {s.name for s in sessions}, last, count)
  for session in sessions:
    session.close()
  engine.close()
  print(f"{report.table()}\nin {out}")
  _judge(report, broken)


def ticks(engine, sessions, frames, *, recorded=None, script=None, paced=False):
  """Ticks until every session has made its frames; yields the chunks of each.

  Args:
    engine: an `Engine`.
    sessions: open ones.
    frames: pixel frames of each.
    recorded: [T, A] actions, one for each latent frame from the first on, over and over; None:
      others act.
    script: `stream_wan.Script` of prompts; each holds from the first chunk that begins at its frame
      or later.
    paced: wait for the playing time of a chunk between ticks.
  """
  interval, due = engine.chunk_frames / engine.frame_rate, time.perf_counter()
  later = frames - engine.pixel_index(engine.first_chunk)
  count = 1 + math.ceil(max(later, 0) / engine.chunk_frames) + engine.overlap
  for _ in tqdm(range(count), unit="tick", mininterval=1.0):
    if paced:
      time.sleep(max(due - time.perf_counter(), 0))
      due = max(due, time.perf_counter() - interval) + interval
    for session in sessions:
      if session.closed:
        continue
      if recorded is not None:
        numbers = np.arange(session.index, session.index + engine.chunk)
        session.act(recorded[numbers % len(recorded)])
      if script is not None:
        prompt = script.at(engine.pixel_index(session.index))
        if prompt != session.settings.text:
          session.prompt(prompt)
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
  """The `Source`, the options of its engine, and the `Script` of its prompts or None."""
  given = [flag for flag in (NETWORK, CONFIG, MODEL) if flag.value is not None]
  if len(given) != 1:
    raise ValueError(
      "Give --network=workdir:role:ema, or --config=configs/doom/stream_gpu.py for an architecture "
      "with random weights, or --model=wan2.1-t2v-1.3b for a student of Wan."
    )
  if MODEL.value:
    return _wan()
  if NETWORK.value:
    source = streams.trained(NETWORK.value, steps=STEPS.value)
    return source, {"window": WINDOW.value, "sink": SINK.value}, None
  config = CONFIG.value.to_dict()
  source = streams.random_weights(config, steps=STEPS.value)
  given = lambda flag, key: config[key] if flag.value is None else flag.value
  options = {"window": given(WINDOW, "window"), "sink": given(SINK, "sink")}
  return source, options | {"dtype": config["cache_dtype"], "history": config["history"]}, None


def _wan():
  """`_source` of a student of Wan."""
  if GUIDANCE.value != 1:
    raise NotImplementedError(
      f"--guidance={GUIDANCE.value:g}: only 1 is streamed; a student has its guidance built in."
    )
  if (PROMPT.value is None) == (PROMPTS.value is None):
    raise ValueError('Give --prompt="what is to be seen", or --prompts=file of them.')
  if PROMPT.value is not None:
    script = stream_wan.Script((0,), (PROMPT.value,))
  else:
    script = stream_wan.read_script(PROMPTS.value)
  chunk = _numbers("chunk", CHUNK.value, int)
  if len(chunk) not in (1, 2):
    raise ValueError(f"--chunk={','.join(CHUNK.value)} must be one number, or two: first,others.")
  source = stream_wan.wan(
    MODEL.value, script, transformer=TRANSFORMER.value, lora=LORA.value, tiny_decoder=TINY.value,
    size=None if SIZE.value is None else shared.parse_size(SIZE.value),
    chunk=chunk[0] if len(chunk) == 1 else chunk,
    times=_numbers("times", TIMES.value), first_times=_numbers("first_times", FIRST_TIMES.value),
    steps=STEPS.value, shift=SHIFT.value, dtype=DTYPE.value, vae_dtype=VAE_DTYPE.value,
  )  # fmt: skip
  options = {"window": WINDOW.value, "sink": SINK.value, "recache": RECACHE.value, "history": 0}
  options |= {"positions": "capped" if SINK.value else "relative", "dtype": DTYPE.value}
  return source, options, script


def _numbers(name, values, kind=float):
  try:
    return tuple(map(kind, values))
  except ValueError:
    raise ValueError(f"--{name}={','.join(values)} must be numbers, with commas between.") from None


def _live(out, sessions, source):
  """A video of each session, written while it streams."""
  name = lambda i: "stream.mp4" if len(sessions) == 1 else f"stream-{i}.mp4"
  made = {"made_by": source.name}
  return {s: LiveVideo(out / name(i), source.frame_rate, **made) for i, s in enumerate(sessions)}


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


def _openings(engine, source, recorder, count):
  """Opens sessions for their first frame alone; returns when the very first one was there."""
  first = None
  for i in range(count):
    session = streams.open_session(engine, source, clip=i)
    chunks = {}
    while session not in chunks:
      chunks = engine.tick()
    recorder.add(session, chunks[session])
    first = chunks[session].stamps.host if first is None else first
    session.close()
    engine.tick()  # lands what is in flight
  return first


def _write(out, report, recorder, names, last, count):
  write_text(out / "stream.md", report.table())
  write_json(out / "stream.json", dataclasses.asdict(report))
  series = {k: v for k, v in recorder.series().items() if k in names}
  title = f"{report.fps:.0f} FPS, {report.fps_p95:.0f} at p95"
  plot(series, out / "latency.png", frame_rate=report.frame_rate, title=title)
  if last:
    shown = grid({"": np.concatenate(last, axis=1)[:, -count:]}, columns=4)
    save_video(out / "stream.mp4", shown, report.frame_rate, made_by="vidstep")


def _judge(report, broken):
  """Raises ValueError, one sentence, for a stream that is not what a stream must be."""
  if broken:
    raise ValueError(broken[0])
  if report.compilations:
    raise ValueError(
      f"{report.compilations} programs were compiled after the warm-up; none may be."
    )
  memory = report.memory or {"first": 0, "last": 0}
  grown = memory["last"] - memory["first"]
  if grown > max(GROWTH[0] * memory["first"], GROWTH[1]):
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
