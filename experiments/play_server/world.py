"""What the server must know about a world to offer it: keys, scenarios, bounds, how to make it."""

import dataclasses
from collections.abc import Callable
from typing import Any

import numpy as np

from experiments.play_server import keys
from vidstep.data.controls import Control


@dataclasses.dataclass(frozen=True)
class Scenario:
  """A place to start in.

  Attributes:
    name: what the page shows and sends back.
    text: its prompt; "" where the network knows no text.
  """

  name: str
  text: str = ""


@dataclasses.dataclass(frozen=True, eq=False)
class World:
  """A world that can be played.

  Attributes:
    title: shown above the picture.
    frame_rate: frames per second that it is played at.
    chunk: frames that are made together.
    size: (height, width) of a frame in pixels.
    controls: what an action vector is made of.
    scenarios: at least one.
    reads_text: whether the network is prompted.
    steps: (default, most) denoising steps.
    window: (default, most) latent frames of the past that are read.
    make_engine: (say) -> engine, slow; `say(sentence)` tells what it is doing.
    begin: (scenario name, seed) -> further arguments of `engine.open`, such as `context`.
    times: (steps) -> the falling times of that many denoising steps, from 1, without the final 0.
    make_game: (scenario name) -> the true game, a `vidstep.data.worlds.World`; None: there is none.
    about: what the page shows about the network, name -> text.
  """

  title: str
  frame_rate: float
  chunk: int
  size: tuple[int, int]
  controls: tuple[Control, ...]
  scenarios: tuple[Scenario, ...]
  reads_text: bool
  steps: tuple[int, int]
  window: tuple[int, int]
  make_engine: Callable[[Callable[[str], None]], Any]
  begin: Callable[[str, int], dict] = lambda scenario, seed: {}
  times: Callable[[int], tuple[float, ...]] = lambda steps: tuple(
    1 - i / steps for i in range(steps)
  )
  make_game: Callable[[str], Any] | None = None
  about: dict[str, str] = dataclasses.field(default_factory=dict)

  def describe(self) -> dict:
    """What a page is told of it, JSON."""
    return {
      "title": self.title,
      "frame_rate": self.frame_rate,
      "chunk": self.chunk,
      "size": list(self.size),
      "keys": keys.labels(self.controls),
      "scenarios": [dataclasses.asdict(scenario) for scenario in self.scenarios],
      "reads_text": self.reads_text,
      "steps": list(self.steps),
      "window": list(self.window),
      "game": self.make_game is not None,
      "about": self.about,
    }

  def scenario(self, name: str) -> Scenario:
    """The scenario of this name.

    Raises:
      ValueError: there is none.
    """
    for scenario in self.scenarios:
      if scenario.name == name:
        return scenario
    known = ", ".join(scenario.name for scenario in self.scenarios)
    raise ValueError(f"There is no scenario {name[:40]!a}: this world has {known}.")

  def action(self, down: list[str]) -> np.ndarray:
    """The action vector float32 [A] with these keys held."""
    return keys.action(down, self.controls)
