"""How a player's input becomes a vector: buttons, choices and axes, one float per column.

Encoding, the same everywhere: per button -1 is up and +1 is down; one choice out of n becomes a
one-hot in {-1, +1}; an axis keeps its value. The all-zero vector is no input of any world: it is
the *null action* (unknown, first frame of an episode, or dropped for guidance).
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class Control:
  """One thing that can be operated independently of the others.

  Attributes:
    kind: "button" (one column in {-1, +1}), "choice" (a one-hot over `names`, in {-1, +1}) or
      "axis" (one column in [low, high]).
    names: one name per column.
    low, high: range of an axis; unused otherwise.
  """

  kind: str
  names: tuple[str, ...]
  low: float = -1.0
  high: float = 1.0


def column_names(controls: Sequence[Control]) -> list[str]:
  """Names of the columns of an action vector, in order."""
  return [name for control in controls for name in control.names]


def null_action(controls: Sequence[Control]) -> np.ndarray:
  """The all-zero float32 vector [A]: leads into the first frame of an episode."""
  return np.zeros(len(column_names(controls)), np.float32)


def one_hot(index: int, n: int) -> np.ndarray:
  """Float32 [n]: +1 at `index`, -1 elsewhere."""
  return np.where(np.arange(n) == index, 1.0, -1.0).astype(np.float32)


def sample(control: Control, rng: np.random.Generator) -> np.ndarray:
  """A uniformly random setting of one control, float32 [number of its columns]."""
  if control.kind == "choice":
    return one_hot(int(rng.integers(len(control.names))), len(control.names))
  if control.kind == "axis":
    return np.float32([rng.uniform(control.low, control.high)])
  return np.float32([rng.choice([-1.0, 1.0])])


def per_control(action: np.ndarray, controls: Sequence[Control]) -> list[np.ndarray]:
  """Cut an action vector [A] into one piece per control."""
  edges = np.cumsum([len(control.names) for control in controls])[:-1]
  return np.split(np.asarray(action), edges)
