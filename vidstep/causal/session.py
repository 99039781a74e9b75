"""A stream's own side on the host: what a person set, where the stream is, and what it yields."""

import dataclasses
import itertools
import operator
import threading
import time
from collections import deque
from typing import Any

import numpy as np


@dataclasses.dataclass(frozen=True)
class Stamps:
  """Moments of a chunk, seconds of `time.perf_counter`.

  Attributes:
    arrival: when the newest action in it arrived; None if no action came since the chunk before.
    dispatch: when its inputs were read and its computation was handed to the device.
    ready: when its pixels were computed.
    host: when they were in host memory: its frames can be shown from here on.
  """

  arrival: float | None
  dispatch: float
  ready: float
  host: float


@dataclasses.dataclass(frozen=True, eq=False)
class Chunk:
  """Frames of one session, made together.

  Attributes:
    frames: uint8 [T, H, W, 3] pixel frames.
    index: number of the chunk's first latent frame in the stream; context comes before 0.
    actions: float32 [c, A] that led into its latent frames, or None.
    steps: denoising steps made.
    stamps: when.
    pixel_index: number of the first pixel frame in the stream; `index` if a latent frame is one.
  """

  frames: np.ndarray
  index: int
  actions: np.ndarray | None
  steps: int
  stamps: Stamps
  pixel_index: int


@dataclasses.dataclass(frozen=True)
class Settings:
  """What a person chooses for a session, and may change at any time.

  Attributes:
    seed: of the noise; frame f draws from fold_in(key(seed), f) whatever happened before.
    times: falling times of the denoising steps, from 1 (noise), without the final 0.
    steps: how many of them are made.
    first_times: those of the first chunk, all of which are made; () for the same as the others.
    window: latent frames of the past that are read, besides sink and pinned ones.
    text: the prompt; "" for none.
  """

  seed: int
  times: tuple[float, ...]
  steps: int
  first_times: tuple[float, ...]
  window: int
  text: str

  def check(self, *, max_steps, max_window):
    """Raises ValueError, one sentence, unless an engine of these bounds can do this."""
    for name in ("seed", "steps", "window"):
      _integer(name, getattr(self, name))
    if not 0 <= self.seed < 2**32:
      raise ValueError(f"seed={self.seed} must be from 0 to 2^32 - 1.")
    for name, times in (("times", self.times), ("first_times", self.first_times)):
      if len(times) > max_steps:
        raise ValueError(
          f"{name} has {len(times)} steps but the engine was built for {max_steps}: shorten it, or "
          "build the Engine with max_steps."
        )
      falling = all(a > b for a, b in itertools.pairwise(times))
      if not falling or not all(0 < t <= 1 for t in times):
        raise ValueError(f"{name}={list(times)} must fall and lie in (0, 1], 1 being noise.")
    if not 1 <= self.steps <= len(self.times):
      raise ValueError(f"steps={self.steps} must be 1 to {len(self.times)}, the times it has.")
    if not 1 <= self.window <= max_window:
      raise ValueError(f"window={self.window} must be 1 to {max_window}, what the cache holds.")


@dataclasses.dataclass(frozen=True)
class Snapshot:
  """A stream at one moment: enough to go on from there, exactly.

  Attributes:
    row: the session's `vidstep.causal.programs.State`, batch 1, on the device.
    index: number of the next latent frame.
    settings: its `Settings`.
    action: float32 [A] that is held, or None.
  """

  row: Any
  index: int
  settings: Settings
  action: np.ndarray | None


class Session:
  """One endless stream of an `Engine`; made by `Engine.open`, `Engine.restore` and `fork`.

  All methods may be called from any thread, at any time. What they change holds from the next
  chunk that is dispatched; the chunk in flight is not touched.

  Attributes:
    name: unique in its engine; names the autosave file.
    index: number of the next latent frame to be dispatched.
    settings: the `Settings` now.
    opened: when it was asked for, seconds of `time.perf_counter`.
    closed: whether it has ended.
    error: None, or the sentence that says why the engine closed it.
  """

  def __init__(self, engine, name, settings, *, index=0, action=None, history=()):
    self._engine = engine
    self.name, self.settings, self.index, self.error = name, settings, index, None
    self._lock = threading.Lock()  # of what `act` writes: never held for longer than a copy
    shape = engine.action_shape
    self._action = np.zeros(shape, np.float32) if action is None and shape else action
    self._arrival = None
    self._row = None  # of the batch; None when paused or closed
    self._parked = None  # its cache while it is paused
    self._epoch = 0  # changes when the stream jumps: chunks in flight are then stale
    self._history = deque(history, maxlen=engine.history or None)
    self.closed = False
    self.opened = time.perf_counter()

  def __repr__(self):
    return f"Session({self.name!r}, index={self.index})"

  # ----------------------------------------------------------------------------------------------
  # Acting
  # ----------------------------------------------------------------------------------------------

  def act(self, action):
    """Sets the action that leads into the next frames; it is held until the next one.

    Args:
      action: [A], -1 up and +1 down for buttons; or [c, A], one for each frame of the next chunk,
        of which the last is held.

    Raises:
      ValueError: if it is not finite or its shape is another.
    """
    self._check_open()
    shape = self._engine.action_shape
    if shape is None:
      raise ValueError("This network knows no actions.")
    try:
      action = np.array(action, np.float32)
    except (TypeError, ValueError):
      raise ValueError(f"An action is {shape[-1]} numbers, got {action!r}.") from None
    if action.shape not in (shape, shape[1:]):
      raise ValueError(
        f"An action has shape {shape[1:]}, or {shape} for all frames of a chunk; got "
        f"{action.shape}."
      )
    if not np.isfinite(action).all():
      raise ValueError("An action must be finite.")
    with self._lock:
      self._action = np.broadcast_to(action, shape).copy()
      self._arrival = time.perf_counter()

  def prompt(self, text):
    """Changes the prompt: embeds it, and from the next chunk on the cache holds its keys.

    Raises:
      ValueError: if the network or the engine knows no text.
    """
    self._check_open()
    self._engine._prompt(self, text)

  def set(self, *, steps=None, window=None, seed=None, times=None):
    """Changes settings; those that are None stay. Nothing is compiled.

    Raises:
      ValueError: as `Settings.check`.
    """
    self._check_open()
    new = {"steps": steps, "window": window, "seed": seed}
    new = {k: _integer(k, v) for k, v in new.items() if v is not None}
    if times is not None:
      new["times"] = tuple(map(float, times))
      new.setdefault("steps", min(self.settings.steps, len(new["times"])))
    self._engine._set(self, new)

  # ----------------------------------------------------------------------------------------------
  # Time
  # ----------------------------------------------------------------------------------------------

  def fork(self, *, name=None):
    """A second session that goes on from the same state; both have futures of their own.

    Raises:
      RuntimeError: if the engine has no free row.
    """
    self._check_open()
    return self._engine._fork(self, name)

  def rewind(self, frames):
    """Goes back at least so many latent frames, to the nearest snapshot; later ones are dropped.

    Settings and the held action stay as they are, the prompt is that of then. With the same seed
    and the same actions the same frames come again, bit for bit.

    Returns:
      How many frames it went back.

    Raises:
      ValueError: if no snapshot is that old, saying how far it can go.
    """
    self._check_open()
    return self._engine._rewind(self, _integer("frames", frames))

  def pause(self):
    """Takes the session out of the batch; its row is free for others until `resume`."""
    self._check_open()
    self._engine._pause(self)

  def resume(self):
    """Puts a paused session back.

    Raises:
      RuntimeError: if the engine has no free row.
    """
    self._check_open()
    self._engine._resume(self)

  @property
  def paused(self):
    return self._parked is not None

  def save(self, path):
    """Writes the stream's whole state to one file, whole or not at all; see `Engine.restore`."""
    self._check_open()
    self._engine._save(self, path)

  def close(self):
    """Ends the session and frees its row; closing twice is no error."""
    self._engine._close(self)

  def _check_open(self):
    if self.closed:
      raise RuntimeError(self.error or f"Session {self.name} is closed.")

  def _read_action(self):
    """(actions [c, A], arrival or None) for a chunk; then the last of them is held."""
    with self._lock:
      actions, arrival, self._arrival = self._action, self._arrival, None
      if actions is not None:
        self._action = np.broadcast_to(actions[-1], actions.shape)
    return actions, arrival

  def _told(self, max_steps):
    """What the compiled step is told about this session's next chunk, besides actions."""
    own = self.settings
    first = self.index == 0 and own.first_times
    times = own.first_times if first else own.times[: own.steps]
    padded = np.zeros(max_steps, np.float32)
    padded[: len(times)] = times
    return {"seed": own.seed, "times": padded, "steps": len(times), "window": own.window}


def _integer(name, value):
  try:
    return operator.index(value)
  except TypeError:
    raise ValueError(f"{name}={value!r} must be a whole number.") from None
