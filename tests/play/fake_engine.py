"""A double of the streaming engine: a texture that moves as the keys say, without a network.

The interface is that of `vidstep.causal.streaming`: open, tick, and sessions that act, fork,
rewind, save. What a frame shows is a function of (seed, position) alone, and an action changes the
position, so tests can tell whether an action reached the picture.
"""

import json
import pathlib
import threading
import time
import types

import numpy as np

from vidstep.causal.session import Chunk, Stamps

HISTORY = 64


class FakeSession:
  def __init__(self, engine, **settings):
    self.engine, self.settings = engine, types.SimpleNamespace(**settings)
    self.index, self.past, self.arrival = 0, [(0.0, 0.0)], None
    self.action = np.zeros(engine.action_shape[1], np.float32)
    self.paused = self.closed = False
    self.error = None

  def act(self, action):
    if self.closed:
      raise RuntimeError("Session is closed.")
    assert action.shape == self.action.shape and action.dtype == np.float32
    self.action, self.arrival = action, time.perf_counter()

  def prompt(self, text):
    self.settings.text = text

  def set(self, **new):
    new = {k: v for k, v in new.items() if v is not None}
    if new.get("steps", 1) > self.engine.max_steps:
      raise ValueError(f"steps={new['steps']} must be 1 to {self.engine.max_steps}.")
    vars(self.settings).update(new)

  def fork(self):
    other = self.engine.open(**vars(self.settings))
    other.index, other.past, other.action = self.index, list(self.past), self.action
    return other

  def rewind(self, frames):
    with self.engine.lock:
      if frames >= len(self.past):
        raise ValueError(f"It can go back {len(self.past) - 1} frames at most, not {frames}.")
      del self.past[-frames:]
      self.index -= frames
    return frames

  def pause(self):
    with self.engine.lock:
      self.paused = True

  def resume(self):
    self.engine.need_row()
    self.paused = False

  def save(self, path):
    told = {"settings": vars(self.settings), "index": self.index, "at": self.past[-1]}
    pathlib.Path(path).write_text(json.dumps(told))

  def close(self):
    self.closed = True
    with self.engine.lock:
      self.engine.open_sessions.pop(self, None)

  def next_frames(self):
    """Held buttons 0..3 are left, right, up, down; more steps make the picture brighter."""
    frames = []
    for _ in range(self.engine.chunk):
      left, right, up, down = (float(a > 0) for a in self.action[:4])
      x, y = self.past[-1]
      self.past = [*self.past[-HISTORY:], (x + 3 * (right - left), y + 3 * (down - up) + 0.1)]
      frames.append(self.engine.draw(self.settings, *self.past[-1]))
    self.index += len(frames)
    return np.stack(frames)


class FakeEngine:
  """See the module; `delay` is how long a tick takes, in seconds."""

  def __init__(self, *, sessions=4, chunk=1, size=48, max_steps=4, frame_rate=60.0, delay=0.0):
    self.sessions, self.chunk, self.size, self.max_steps = sessions, chunk, size, max_steps
    self.frame_rate, self.delay, self.action_shape = frame_rate, delay, (chunk, 5)
    self.open_sessions, self.lock = {}, threading.Lock()

  @property
  def free(self):
    return self.sessions - sum(not session.paused for session in self.open_sessions)

  def need_row(self):
    if self.free < 1:
      raise RuntimeError(f"All {self.sessions} rows of the engine are taken: close a session.")

  def open(self, *, seed=0, context=None, text="", times=(1.0,), steps=1, window=8):
    with self.lock:
      self.need_row()
      session = FakeSession(self, seed=seed, text=text, times=times, steps=steps, window=window)
      self.open_sessions[session] = None
    return session

  def restore(self, path):
    told = json.loads(pathlib.Path(path).read_text())
    session = self.open(**told["settings"])
    session.index, session.past = told["index"], [tuple(told["at"])]
    return session

  def tick(self):
    dispatch = time.perf_counter()
    with self.lock:
      playing = [session for session in self.open_sessions if not session.paused]
      chunks = {session: self._chunk(session, dispatch) for session in playing}
    time.sleep(self.delay)
    return chunks

  def _chunk(self, session, dispatch):
    arrival, session.arrival = session.arrival, None
    first, frames = session.index, session.next_frames()
    now = time.perf_counter() + self.delay
    stamps = Stamps(arrival, dispatch, now, now)
    actions = np.repeat(session.action[None], self.chunk, axis=0)
    return Chunk(frames, first, actions, session.settings.steps, stamps, first)

  def draw(self, settings, x, y):
    """Coloured tiles that scroll to (x, y): uint8 [size, size, 3]."""
    i = np.arange(self.size)
    row, column = (i[:, None] + int(y)) // 12, (i[None] + int(x)) // 12
    hue = (np.int64(row) * 92821 + column * 68917 + settings.seed * 7919) % 251
    tiles = np.stack([60 + hue % 130, 30 + hue * 3 % 120, 60 + hue * 7 % 110], -1)
    return (tiles + 10 * settings.steps).astype(np.uint8)
