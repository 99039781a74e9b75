"""Kills a streaming engine again and again while it saves: what was saved must go on exactly.

  python tests/causal/kill_stream.py --kills=20 --out=results/streaming/kills.json

Every life of the engine restores its two streams from their autosaves, or opens them, streams as
fast as it can while it saves after every other chunk, and is ended by SIGKILL at a random moment.
After each death every file must restore, its stream must not have gone back behind what earlier
deaths left, and its next frames must be those of a stream that was never interrupted.
"""

import argparse
import itertools
import json
import os
import pathlib
import random
import signal
import subprocess
import sys
import time

import jax
import numpy as np
from toy_world import ToyNetwork, toy_params

from vidstep.causal.streaming import Engine
from vidstep.models.codec import pixel_codec

ROOT = pathlib.Path(__file__).parents[2]
SEEDS = {"a": 1, "b": 2}
AHEAD = 3  # frames compared after each restore


def make_engine(**options):
  return Engine(
    ToyNetwork(), toy_params(jax.random.key(0)), pixel_codec(), frame_shape=(8, 8, 3),
    frame_rate=10, sessions=2, max_steps=2, **options,
  )  # fmt: skip


def action(index):
  return np.float32([np.sin(index), np.cos(3 * index)])


def open_stream(engine, name):
  return engine.open(seed=SEEDS[name], times=(1.0, 0.5), name=name)


def live(folder):
  """Streams until killed."""
  folder = pathlib.Path(folder)
  engine = make_engine(autosave=folder, autosave_every=2)
  saved = lambda name: folder / f"{name}.stream"
  sessions = [
    engine.restore(saved(name)) if saved(name).exists() else open_stream(engine, name)
    for name in SEEDS
  ]
  for number in itertools.count():
    for session in sessions:
      session.act(action(session.index))
    engine.tick()
    if number == 4:  # by now each was handed to the writer in this life
      engine._writer.flush()
      print("streaming", flush=True)


class Reference:
  """Streams that nobody interrupts, as far as they are asked for."""

  def __init__(self):
    self.engine = make_engine(overlap=False, history=0)
    self._sessions = {name: open_stream(self.engine, name) for name in SEEDS}
    self._frames = {name: [] for name in SEEDS}

  def frames(self, name, start, count):
    while len(self._frames[name]) < start + count:
      for session in self._sessions.values():
        session.act(action(session.index))
      for session, chunk in self.engine.tick().items():
        self._frames[session.name] += list(chunk.frames)
    return np.stack(self._frames[name][start : start + count])


def survive(folder, kills, *, seed=0, longest=0.6):
  """Kills `kills` lives; returns what was found after each.

  Raises:
    AssertionError: if something that was saved is lost or goes on differently.
  """
  folder, rng = pathlib.Path(folder), random.Random(seed)
  reference, judge = Reference(), make_engine(overlap=False, history=0)
  reached, lives = dict.fromkeys(SEEDS, 0), []
  compiled = {"JAX_COMPILATION_CACHE_DIR": str(folder / "compiled")}  # by the first life for all
  compiled["JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS"] = "0"
  environment = os.environ | compiled | {"PYTHONPATH": str(ROOT), "XLA_FLAGS": ""}
  for _ in range(kills):
    child = subprocess.Popen(
      [sys.executable, __file__, "--live", str(folder)],
      stdout=subprocess.PIPE, text=True, env=environment,
    )  # fmt: skip
    try:
      assert child.stdout.readline() == "streaming\n", "the engine died of itself"
      wait = rng.uniform(0, longest)
      time.sleep(wait)
    finally:
      child.send_signal(signal.SIGKILL)
      child.wait()
      child.stdout.close()
    found = {"seconds": round(wait, 3), "torn": len(list(folder.glob("*.partial")))}
    for name in SEEDS:
      session = judge.restore(folder / f"{name}.stream")
      index = session.index
      assert session.name == name and index > reached[name], (name, index, reached)
      got = []
      for _ in range(AHEAD):
        session.act(action(session.index))
        got.append(judge.tick()[session].frames[0])
      session.close()
      np.testing.assert_array_equal(np.stack(got), reference.frames(name, index, AHEAD))
      reached[name] = found[name] = index
    lives.append(found)
  return lives


def main():
  parser = argparse.ArgumentParser(description=__doc__)
  parser.add_argument("--kills", type=int, default=20)
  parser.add_argument("--out", type=pathlib.Path)
  parser.add_argument("--live", help=argparse.SUPPRESS)
  args = parser.parse_args()
  if args.live:
    return live(args.live)
  import tempfile

  with tempfile.TemporaryDirectory() as folder:
    lives = survive(folder, args.kills)
  result = {"kills": len(lives), "lost": 0, "compared": 2 * AHEAD * len(lives), "lives": lives}
  text = json.dumps(result, indent=1)
  print(text)
  if args.out:
    args.out.parent.mkdir(parents=True, exist_ok=True)
    args.out.write_text(text + "\n")


if __name__ == "__main__":
  os.environ.setdefault("JAX_PLATFORMS", "cpu")
  main()
