"""The true game, stepped in a thread of its own by the actions that the world model was given."""

import contextlib
import queue
import threading
from collections.abc import Callable

import numpy as np

WAITING = 8  # actions that may wait; a game that is slower than the stream skips the rest


class Game(threading.Thread):
  """Plays until `stop()`; an episode that ends is followed by the next one.

  Args:
    make: () -> the game, a `vidstep.data.worlds.World`; called in this thread.
    seed: of the first episode; the next ones count on.
    show: show(frame uint8 [H, W, 3], number), called in this thread.
    fail: fail(sentence), called in this thread when the game cannot go on.
  """

  def __init__(self, make: Callable, seed: int, show: Callable, fail: Callable):
    super().__init__(name="game", daemon=True)
    self._make, self._seed, self._show, self._fail = make, seed, show, fail
    self._actions: queue.Queue = queue.Queue(WAITING)
    self._over = threading.Event()

  def act(self, action: np.ndarray) -> None:
    """Steps the game once by `action` [A]; dropped where too many wait."""
    with contextlib.suppress(queue.Full):
      self._actions.put_nowait(action)

  def restart(self, seed: int) -> None:
    """Starts the episode of this seed, after the actions that wait."""
    with contextlib.suppress(queue.Full):
      self._actions.put(seed, timeout=1.0)

  def stop(self) -> None:
    """Ends the game; returns at once."""
    self._over.set()

  def run(self):
    try:
      game = self._make()
    except Exception as error:
      self._fail(f"The game did not start: {error}")
      return
    try:
      self._play(game)
    except Exception as error:
      self._fail(f"The game ended: {error or type(error).__name__}")
    finally:
      game.close()

  def _play(self, game):
    seed, number = self._seed, 0
    self._show(game.reset(seed), number)
    while not self._over.is_set():
      try:
        action = self._actions.get(timeout=0.2)
      except queue.Empty:
        continue
      if isinstance(action, int):
        seed, number, frame = action, 0, game.reset(action)
      else:
        frame, number = game.step(action), number + 1
      if frame is None:
        seed += 1
        frame = game.reset(seed)
      self._show(frame, number)
