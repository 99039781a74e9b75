"""From the keys a player holds to a world's action vector, and which keys mean anything in it."""

from collections.abc import Collection, Sequence

import numpy as np

from vidstep.data.controls import Control, one_hot

# Names of columns that a key presses: Doom's buttons first, then arcade words.
NAMES = {
  "up": ("MOVE_FORWARD", "UP"),
  "down": ("MOVE_BACKWARD", "DOWN"),
  "left": ("TURN_LEFT", "LEFT"),
  "right": ("TURN_RIGHT", "RIGHT"),
  "strafe_left": ("MOVE_LEFT",),
  "strafe_right": ("MOVE_RIGHT",),
  "fire": ("ATTACK", "FIRE"),
  "use": ("USE",),
  "run": ("SPEED",),
  "jump": ("JUMP",),
}
# Where a world cannot turn, the arrows sidestep (Doom's "take cover" has no turning).
INSTEAD = {"left": "strafe_left", "right": "strafe_right", "up": "jump"}
# An axis that a pair of keys pulls to its ends: substrings of its name.
AXES = {("left", "right"): ("LEFT_RIGHT", "TURN", "axis_0"), ("down", "up"): ("FORWARD", "axis_1")}


def labels(controls: Sequence[Control]) -> dict[str, str]:
  """The keys that do something in a world -> what they do, in words."""
  found = {}
  for key in NAMES:
    said = _label(key, controls)
    if said:
      found[key] = said
  return found


def action(down: Collection[str], controls: Sequence[Control]) -> np.ndarray:
  """The action vector float32 [A] with these keys held; what nothing presses is up, or at rest.

  Args:
    down: keys out of `protocol.KEYS`.
    controls: of the world.
  """
  return np.concatenate([_setting(control, down, controls) for control in controls] or [_NONE])


_NONE = np.zeros(0, np.float32)


def _presses(key, controls):
  """Names of columns that a key presses in this world."""
  buttons = {c.names[0] for c in controls if c.kind == "button"}
  own = [name for name in NAMES[key] if name in buttons]
  if not own and key in INSTEAD:
    own = [name for name in NAMES[INSTEAD[key]] if name in buttons]
  return own


def _label(key, controls):
  pressed = _presses(key, controls)
  if pressed:
    return pressed[0].replace("_", " ").capitalize()
  for control in controls:
    if control.kind == "choice" and _chosen({key}, control) != _chosen(set(), control):
      return control.names[_chosen({key}, control)].replace("_", " ").capitalize()
    if control.kind == "axis" and _pull({key}, control):
      return ("Less " if _pull({key}, control) < 0 else "More ") + control.names[0].lower()
  return None


def _setting(control, down, controls):
  if control.kind == "button":
    held = any(control.names[0] in _presses(key, controls) for key in down)
    return np.float32([1.0 if held else -1.0])
  if control.kind == "choice":
    return one_hot(_chosen(down, control), len(control.names))
  pull = _pull(down, control)
  middle, reach = (control.low + control.high) / 2, (control.high - control.low) / 2
  rest = 0.0 if control.low <= 0.0 <= control.high else middle
  return np.float32([middle + reach * pull if pull else rest])


def _chosen(down, control):
  """Which of a choice's names fits the held keys best; the first (arcade: NOOP) for none.

  Arcade names are words run together ("UPRIGHTFIRE"). Plain numbered choices take the arrows in
  order: left, right, up, down.
  """
  words = {word for key in down for word in NAMES[key]} & {"UP", "DOWN", "LEFT", "RIGHT", "FIRE"}
  best, score = 0, 0
  for i, name in enumerate(control.names):
    rest, hits = name, 0
    for word in ("RIGHT", "LEFT", "DOWN", "FIRE", "UP"):
      if word in rest:
        rest, hits = rest.replace(word, ""), hits + (1 if word in words else -9)
    if hits > score:
      best, score = i, hits
  if score or any(word in name for name in control.names for word in ("UP", "LEFT", "FIRE")):
    return best
  order = [key for key in ("left", "right", "up", "down") if key in down]
  index = ("left", "right", "up", "down").index(order[0]) if order else 0
  return min(index, len(control.names) - 1)


def _pull(down, control):
  """-1, 0 or 1: where the held keys pull an axis."""
  for (less, more), parts in AXES.items():
    if any(part in control.names[0] for part in parts):
      return (more in down) - (less in down)
  return 0
