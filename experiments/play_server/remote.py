"""A game in a process of its own: Doom's start would hold this one's interpreter for half a second.

Every player's stream would stand still meanwhile. It also survives a game that crashes.
"""

import contextlib
import multiprocessing
from collections.abc import Callable

import numpy as np


class RemoteGame:
  """A `vidstep.data.worlds.World` behind a pipe: `reset`, `step` and `close`.

  Args:
    build: builds the game there; importable by name, and so are its arguments.
    *arguments: of `build`.

  Raises:
    RuntimeError: the game could not be built, or has ended; with its own words.
  """

  def __init__(self, build: Callable, *arguments):
    context = multiprocessing.get_context("spawn")  # a fork of a process with threads may hang
    self._pipe, theirs = context.Pipe()
    self._process = context.Process(target=_serve, args=(theirs, build, arguments), daemon=True)
    self._process.start()
    theirs.close()
    self._answer()

  def reset(self, seed: int) -> np.ndarray:
    """The first frame of the episode of this seed."""
    return self._ask("reset", seed)

  def step(self, action: np.ndarray) -> np.ndarray | None:
    """The frame after an action; None at the end of the episode."""
    return self._ask("step", action)

  def close(self) -> None:
    """Ends the game and its process."""
    with contextlib.suppress(OSError):
      self._pipe.send(None)
    self._process.join(5)
    if self._process.is_alive():
      self._process.kill()
      self._process.join()
    self._pipe.close()

  def _ask(self, name, argument):
    self._pipe.send((name, argument))
    return self._answer()

  def _answer(self):
    try:
      error, value = self._pipe.recv()
    except (EOFError, OSError):
      raise RuntimeError("the game's process is gone.") from None
    if error:
      raise RuntimeError(error)
    return value


def _serve(pipe, build, arguments):
  """In the other process: does what it is asked until the pipe closes."""
  with contextlib.suppress(EOFError, OSError, KeyboardInterrupt):
    try:
      game = build(*arguments)
    except Exception as error:
      pipe.send((str(error) or type(error).__name__, None))
      return
    with contextlib.closing(game):
      pipe.send((None, None))
      while request := pipe.recv():
        try:
          pipe.send((None, getattr(game, request[0])(request[1])))
        except Exception as error:
          pipe.send((str(error) or type(error).__name__, None))
