"""Who plays while a world is recorded: a random player, and an explorer who keeps moving.

A policy is `policy(frame, controls, rng) -> action [A]`, called once per step with the frame it
sees; `reset()` before every episode. A random player mostly stares at walls, and a model trained on
that learns to stand still; hence the explorer.
"""

from collections.abc import Sequence

import numpy as np

from vidstep.data.controls import Control, one_hot, sample


class RandomPolicy:
  """Every control drawn anew, uniformly and independently, at every step."""

  def reset(self) -> None:
    pass

  def __call__(
    self, frame: np.ndarray, controls: Sequence[Control], rng: np.random.Generator
  ) -> np.ndarray:
    return np.concatenate([sample(control, rng) for control in controls])


class ExplorePolicy:
  """Runs forward, holds what it presses for several steps, turns away when nothing moves.

  Buttons are understood by their Doom names: forward most of the time, short turns and sidesteps
  between straight stretches, now and then a shot. Choices and axes without such names are held for
  several steps; doing nothing (NOOP) is not chosen. Where the mean |frame difference| (0..255)
  stays below `stuck` although something is held, the player turns on the spot, always the same way
  round, until it has turned for some steps: that is how it leaves corners.
  """

  def __init__(self, stuck: float = 2.0):
    self._stuck = stuck
    self.reset()

  def reset(self) -> None:
    self._last, self._held, self._left = None, None, 0

  def __call__(
    self, frame: np.ndarray, controls: Sequence[Control], rng: np.random.Generator
  ) -> np.ndarray:
    moved = self._stuck + 1
    if self._last is not None:
      moved = np.abs(frame.astype(np.int16) - self._last).mean()
    self._last = frame.astype(np.int16)
    if self._held is not None and moved < self._stuck:
      self._held, self._left = _presses(controls, rng, escape=True), int(rng.integers(2, 6))
    elif self._left <= 0:
      self._held = _presses(controls, rng, escape=False)
      turning = any(len(c.names) == 1 and h > 0 for c, h in _turns(controls, self._held))
      self._left = int(rng.integers(1, 4) if turning else rng.integers(2, 8))
    self._left -= 1
    return self._held


def _turns(controls, action):
  """Pairs (control, value) of the turn buttons."""
  names = {"TURN_LEFT", "TURN_RIGHT"}
  column = 0
  for control in controls:
    if control.names[0] in names:
      yield control, action[column]
    column += len(control.names)


def _presses(controls: Sequence[Control], rng: np.random.Generator, *, escape: bool) -> np.ndarray:
  """Draw what to hold next; `escape` turns (or sidesteps) instead of running on."""
  names = {control.names[0] for control in controls if control.kind == "button"}
  can_run, can_turn = "MOVE_FORWARD" in names, "TURN_LEFT" in names or "TURN_RIGHT" in names
  down = set()
  if can_run and not (escape and can_turn) and rng.random() < 0.9:
    down.add("MOVE_FORWARD")
  elif rng.random() < 0.2:
    down.add("MOVE_BACKWARD")
  # Who cannot run has only turning and sidestepping to move with.
  if escape or rng.random() < (0.45 if can_run else 0.85):
    down.add(rng.choice(["TURN_LEFT", "TURN_RIGHT"]))
  if rng.random() < (0.9 if not can_turn else 0.2):
    down.add(rng.choice(["MOVE_LEFT", "MOVE_RIGHT"]))
  for name, chance in (("ATTACK", 0.2), ("SPEED", 0.2), ("USE", 0.1), ("JUMP", 0.05)):
    if rng.random() < chance:
      down.add(name)
  return np.concatenate([_setting(control, down, rng) for control in controls])


def _setting(control: Control, down: set[str], rng: np.random.Generator) -> np.ndarray:
  if control.kind == "button":
    known = control.names[0].isupper()
    if known:
      return np.float32([1.0 if control.names[0] in down else -1.0])
    return sample(control, rng)
  if control.kind == "choice":
    useful = [i for i, name in enumerate(control.names) if name != "NOOP"]
    return one_hot(int(rng.choice(useful)), len(control.names))
  # Most of the time an axis rests in the middle of its range or moves gently.
  middle, reach = (control.low + control.high) / 2, (control.high - control.low) / 2
  return np.float32([middle + reach * np.clip(rng.normal() * 0.3, -1, 1)])


POLICIES = {"explore": ExplorePolicy, "random": RandomPolicy}
