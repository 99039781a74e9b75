"""The thread that owns the engine: builds it, then ticks at the world's pace while anybody plays.

Sessions may be asked anything from any thread; this one alone ticks, and hands each session's
chunks to whoever plays it.
"""

import collections
import threading
import time
import traceback
from collections.abc import Callable
from typing import Any


class Follower:
  """Finds for each chunk of a session the newest input in it, and tells both.

  Args:
    publish: publish(chunk, number, photon, fresh), called in the engine's thread: number of the
      newest input that went into the chunk, seconds from its arrival until the first chunk with it
      was on the host, and whether that is this one.
  """

  def __init__(self, session, publish: Callable):
    self.session, self._publish = session, publish
    self._sent: collections.deque = collections.deque(maxlen=1024)  # (moment, number)
    self._number, self._photon = 0, 0.0

  def act(self, action, number: int) -> None:
    """Passes an action on; `number` is the page's own for it."""
    self._sent.append((time.perf_counter(), number))
    self.session.act(action)

  def __call__(self, chunk) -> None:
    arrival = chunk.stamps.arrival
    while arrival is not None and self._sent and self._sent[0][0] <= arrival:
      self._number = self._sent.popleft()[1]
    if arrival is not None:
      self._photon = chunk.stamps.host - arrival
    self._publish(chunk, self._number, self._photon, arrival is not None)


class Runner(threading.Thread):
  """Runs an engine until `stop()`.

  Args:
    make_engine: (say) -> engine, called in this thread; `say(sentence)` tells what it is doing.

  Attributes:
    state: "starting", "ready", "failed" or "stopped".
    stage: what it is doing, or what went wrong, in words; `since` when that began (monotonic).
    engine: the engine, once ready.
  """

  def __init__(self, make_engine: Callable):
    super().__init__(name="engine", daemon=True)
    self._make_engine, self._followers = make_engine, {}
    self._wake = threading.Event()
    self.state, self.stage, self.since = "starting", "Starting", time.monotonic()
    self.engine: Any = None

  def follow(self, follower: Follower) -> None:
    """From now on the follower is called with each chunk of its session."""
    self._followers = {**self._followers, follower.session: follower}  # never changed in place
    self._wake.set()

  def unfollow(self, session) -> None:
    """Nobody plays this session any more, or it is paused."""
    self._followers = {s: f for s, f in self._followers.items() if s is not session}

  def stop(self, patience: float = 5.0) -> bool:
    """Ends the thread after the tick it is in; nothing can end what is being compiled.

    Wait for it before the interpreter ends: a thread that comes back from XLA after that is ended
    inside of C++, which aborts the process.

    Args:
      patience: seconds to wait.

    Returns:
      Whether the thread is gone, or never began.
    """
    self.state, self.stage = "stopped", "The server was stopped."
    self._wake.set()
    if self.ident is not None:
      self.join(patience)
    return not self.is_alive()

  def run(self):
    try:
      self.engine = self._make_engine(self._tell)
      if self.state == "starting":
        self._tell("Ready")
        self.state = "ready"
      self._loop()
    except Exception as error:  # whatever it is: players are told in words, the server stays up
      traceback.print_exc()
      self.state, self.stage = "failed", f"The engine stopped: {error or type(error).__name__}"

  def _tell(self, stage):
    self.stage, self.since = stage, time.monotonic()

  def _loop(self):
    interval = self.engine.chunk / self.engine.frame_rate
    due = time.perf_counter()
    while self.state == "ready":
      if not self._followers:
        self._wake.wait(1.0)
        self._wake.clear()
        due = time.perf_counter()
        continue
      time.sleep(max(due - time.perf_counter(), 0.0))
      # Who falls behind goes on from now: no burst of frames to make up for it.
      due = max(due, time.perf_counter() - interval) + interval
      chunks = self.engine.tick()
      followers = self._followers
      for session, chunk in chunks.items():
        if session in followers:
          followers[session](chunk)
