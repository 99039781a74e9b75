"""Who plays while a world is recorded: a random player, and an explorer who keeps moving.

A policy is `policy(frame, clearance, controls, rng) -> action [A]`, called once per step with the
frame it sees and the world's `clearance` (free distance to the left, ahead and to the right, or
None where a world does not tell); `reset()` before every episode. A random player mostly stares at
walls, and a model trained on that learns walls; hence the explorer.
"""

from collections.abc import Callable, Sequence
from functools import partial

import numpy as np

from vidstep.data.controls import Control, one_hot, sample

# Extra buttons and how often they are pressed while exploring.
EXTRAS = {"ATTACK": 0.2, "SPEED": 0.2, "USE": 0.1, "JUMP": 0.05, "MOVE_BACKWARD": 0.02}


class RandomPolicy:
  """Every control drawn anew, uniformly and independently, at every step."""

  def reset(self) -> None:
    pass

  def __call__(self, frame, clearance, controls, rng) -> np.ndarray:
    return np.concatenate([sample(control, rng) for control in controls])


class ExplorePolicy:
  """Runs forward, holds what it presses for several steps, turns away before it hits a wall.

  Buttons are understood by their Doom names: forward most of the time, short turns and sidesteps
  between straight stretches, now and then a shot. A wall nearer than `far` ahead makes it turn to
  the side that is more open, nearer than `near` on the spot, and it keeps turning the same way
  until the way is free, which is how it leaves corners. A picture that stands still, mean |frame
  difference| (0..255) below `stuck`, counts as a wall: worlds need not tell distances. Choices and
  axes without such names are held for several steps; doing nothing (NOOP) is not chosen.

  Args:
    near, far: distances in Doom's map units; a player runs about 8 of them a tic.
    stuck: mean |frame difference| below which nothing moves.
    draw: what to hold next where the way is free, and for how many steps:
      draw(controls, rng) -> (names of buttons, steps).
  """

  def __init__(
    self,
    near: float = 80.0,
    far: float = 190.0,
    stuck: float = 0.2,
    draw: Callable[..., tuple[set[str], int]] | None = None,
  ):
    self._near, self._far, self._stuck, self._draw = near, far, stuck, draw or _explore
    self.reset()

  def reset(self) -> None:
    self._last, self._action, self._away = None, None, None
    self._left, self._spot = 0, False

  def __call__(
    self,
    frame: np.ndarray,
    clearance: tuple[float, float, float] | None,
    controls: Sequence[Control],
    rng: np.random.Generator,
  ) -> np.ndarray:
    left, ahead, right = clearance or (0.0, np.inf, 0.0)
    if self._still(frame):
      ahead = 0.0
    self._left -= 1
    # Once turning, it takes more room to be free than it took to be blocked: no dithering.
    blocked = ahead < self._far * (1.0 if self._away is None else 1.3)
    spot = ahead < self._near
    if blocked and (self._away is None or spot != self._spot or self._left <= 0):
      if self._away is None:
        sides = ["TURN_LEFT", "TURN_RIGHT"]
        self._away = str(rng.choice(sides)) if left == right else sides[int(right > left)]
      self._spot, self._left = spot, int(rng.integers(2, 5))
      self._action = _press(_away_keys(self._away, spot, controls), controls, rng)
    elif not blocked and (self._left <= 0 or (self._away is not None and clearance is not None)):
      down, self._left = self._draw(controls, rng)
      self._away = None
      self._action = _press(down, controls, rng)
    return self._action

  def _still(self, frame: np.ndarray) -> bool:
    last, self._last = self._last, frame.astype(np.int16)
    return last is not None and np.abs(self._last - last).mean() < self._stuck


def _names(controls: Sequence[Control]) -> set[str]:
  return {control.names[0] for control in controls if control.kind == "button"}


def _away_keys(turn: str, spot: bool, controls: Sequence[Control]) -> set[str]:
  """Keys that lead away from a wall; who cannot turn sidesteps."""
  if turn not in _names(controls):
    turn = turn.replace("TURN", "MOVE")
  return {turn} if spot else {turn, "MOVE_FORWARD"}


def _explore(controls: Sequence[Control], rng: np.random.Generator) -> tuple[set[str], int]:
  """An explorer's next keys: mostly forward, with short turns."""
  names = _names(controls)
  down = {name for name, chance in EXTRAS.items() if rng.random() < chance}
  runs = "MOVE_FORWARD" in names and rng.random() < 0.95
  if runs:
    down = (down - {"MOVE_BACKWARD"}) | {"MOVE_FORWARD"}
  # Who cannot run has only turning and sidestepping to move with.
  if rng.random() < (0.4 if runs else 0.85):
    down.add(str(rng.choice(["TURN_LEFT", "TURN_RIGHT"])))
  if rng.random() < (0.15 if {"TURN_LEFT", "TURN_RIGHT"} & names else 0.9):
    down.add(str(rng.choice(["MOVE_LEFT", "MOVE_RIGHT"])))
  turns = bool({"TURN_LEFT", "TURN_RIGHT"} & down)
  return down, int(rng.integers(1, 4) if turns else rng.integers(2, 8))


def _steer(controls: Sequence[Control], rng: np.random.Generator) -> tuple[set[str], int]:
  """Every way of steering, held long enough to be seen: left, right or neither, running or not."""
  names, down = _names(controls), set()
  turn = str(rng.choice(["TURN_LEFT", "TURN_RIGHT", "none"], p=(0.35, 0.35, 0.3)))
  if turn != "none":
    down.add(turn)
  if rng.random() < (0.5 if turn != "none" else 0.8):
    down.add("MOVE_FORWARD")
  return down & names, int(rng.integers(3, 9))


def _press(down: set[str], controls: Sequence[Control], rng: np.random.Generator) -> np.ndarray:
  """The action vector with these named buttons down; what has no such name is drawn."""
  return np.concatenate([_setting(control, down, rng) for control in controls])


def _setting(control: Control, down: set[str], rng: np.random.Generator) -> np.ndarray:
  name = control.names[0]
  if control.kind == "button" and name.isupper():
    return np.float32([1.0 if name in down else -1.0])
  if control.kind == "choice":
    useful = [i for i, name in enumerate(control.names) if name != "NOOP"]
    return one_hot(int(rng.choice(useful)), len(control.names))
  if control.kind == "axis":  # mostly near the middle of its range
    middle, reach = (control.low + control.high) / 2, (control.high - control.low) / 2
    return np.float32([middle + reach * np.clip(rng.normal() * 0.3, -1, 1)])
  return sample(control, rng)


POLICIES = {
  "explore": ExplorePolicy,
  "random": RandomPolicy,
  "steer": partial(ExplorePolicy, draw=_steer),
}
