"""Engines on the toy world, warm, and ways to run their sessions."""

import jax
import numpy as np
from mutation import mutant
from toy_world import ToyNetwork, toy_params, toy_text

from vidstep.causal import streaming
from vidstep.models.codec import pixel_codec

SHAPE = (4, 4, 3)
CONTEXT = np.full((2, *SHAPE), 90, np.uint8)
TIMES = (1.0, 0.7, 0.4)


def build(module=streaming, *, seed=0, window=4, **options):
  options = {"sessions": 3, "overlap": True, "history": 4, "history_every": 2} | options
  return module.Engine(
    ToyNetwork(window=window),
    toy_params(jax.random.key(seed)),
    pixel_codec(),
    frame_shape=SHAPE,
    frame_rate=10,
    context_frames=2,
    max_steps=3,
    text=toy_text,
    **options,
  )


def variant(engine, old, new):
  """The same engine, the same compiled programs, with one piece of its host side broken."""
  broken = mutant(streaming, old, new)
  broken.Programs = lambda *_, **__: engine._programs
  return build(broken)


def wiggle(index):
  """An action that depends on the frame it leads into."""
  return np.float32([np.sin(index), np.cos(3 * index)])


def open_session(engine, **options):
  return engine.open(**({"context": CONTEXT, "times": TIMES} | options))


def run(engine, session, frames, *, act=wiggle, chunks=None):
  """The next frames [frames, H, W, 3] of a session, and every chunk if a list is given."""
  out, want = [], session.index + frames
  while len(out) < frames:
    if act is not None and session.index < want:
      session.act(act(session.index))
    for other, chunk in engine.tick().items():
      if other is session:
        out.append(chunk.frames)
        if chunks is not None:
          chunks.append(chunk)
  out = np.concatenate(out)
  assert len(out) == frames
  return out


def settle(engine):
  """Lets the chunk in flight land, without another one."""
  engine.overlap = False
  landed = engine.tick() if engine._flight else {}
  engine.overlap = True
  return landed


def frames_of(engine, session, count, act=wiggle):
  """`count` frames from here on, with nothing left in flight."""
  out = []
  while len(out) < count:
    session.act(act(session.index))
    engine.tick()  # dispatches; overlap returns the one before
    out += [c.frames for s, c in settle(engine).items() if s is session]
  return np.concatenate(out)
