"""Interactive worlds that can be recorded: ViZDoom scenarios and Gymnasium environments.

A world is anything with `controls`, `frame_rate`, `reset(seed) -> frame`, `step(action) -> frame or
None`, `clearance()` and `close()`. Frames are uint8 [size, size, 3]; None says that the episode is
over. Actions use the encoding of `controls`, so what was recorded can be played as it is stored.
"""

import contextlib
import os
import tempfile
from collections.abc import Sequence
from typing import Protocol

import numpy as np

from vidstep.data.controls import Control, per_control
from vidstep.data.video_io import fit_square

DOOM_TICS_PER_SECOND = 35
# A Doom delta button takes degrees (turn, look) or map units (move) per tic; 10 is a brisk mouse.
DOOM_DELTA_LIMIT = 10.0
DOOM_UNITS_PER_DEPTH = 7.0  # map units per level of the depth buffer, measured by running at a wall

SOME_BUTTONS = ("TURN_LEFT", "TURN_RIGHT", "MOVE_FORWARD", "MOVE_BACKWARD", "ATTACK", "USE")


class World(Protocol):
  """What `episodes.record` needs of a world."""

  controls: tuple[Control, ...]
  frame_rate: float

  def reset(self, seed: int) -> np.ndarray: ...

  def step(self, action: np.ndarray) -> np.ndarray | None: ...

  def clearance(self) -> tuple[float, float, float] | None: ...

  def close(self) -> None: ...


class DoomWorld:
  """A ViZDoom scenario, rendered clean and resized to a square.

  The engine draws 4:3 at the smallest of its resolutions with at least twice the wanted height (no
  HUD, crosshair, messages or full-screen damage flashes: they are not the world); area averaging
  then brings it to `size` x `size`. The picture is squeezed, not cropped: the 90 degree view of the
  engine fills the width. The scenario's own time limit is lifted; death and exits still end an
  episode. Any number of buttons may be down at once.

  Args:
    scenario: name of a `.cfg` in `vizdoom.scenarios_path`, such as "health_gathering".
    size: height and width of the frames.
    frame_skip: an action is held for this many tics (35 a second), one frame is seen after them.
    buttons: names such as "TURN_LEFT", instead of the scenario's own, so that several scenarios
      share one set of controls; None keeps its own.

  Raises:
    ImportError: vizdoom is not installed.
    ValueError: no such scenario or button, or a size beyond the engine's largest picture.
  """

  def __init__(
    self,
    scenario: str = "health_gathering",
    size: int = 64,
    frame_skip: int = 4,
    buttons: Sequence[str] | None = None,
  ):
    try:
      import vizdoom
    except ImportError as error:
      raise ImportError(
        "Recording Doom needs the package vizdoom: pip install 'vidstep[doom]' (or record with "
        "--source=folder)."
      ) from error
    config = os.path.join(vizdoom.scenarios_path, f"{scenario}.cfg")
    if not os.path.exists(config):
      names = sorted(n[:-4] for n in os.listdir(vizdoom.scenarios_path) if n.endswith(".cfg"))
      raise ValueError(f"ViZDoom has no scenario {scenario!r}; choose one of {', '.join(names)}.")
    resolutions = {
      120: vizdoom.ScreenResolution.RES_160X120,
      240: vizdoom.ScreenResolution.RES_320X240,
      480: vizdoom.ScreenResolution.RES_640X480,
      960: vizdoom.ScreenResolution.RES_1280X960,
    }
    height = next((h for h in resolutions if h >= 2 * size), None)
    if height is None:
      raise ValueError(f"Doom frames can be 480 pixels wide at most, not {size}: lower --size.")

    for name in buttons or ():
      if name not in vizdoom.Button.__members__:
        raise ValueError(f"Doom has no button {name!r}; some it has: {', '.join(SOME_BUTTONS)}.")

    self._size, self._skip = size, frame_skip
    self._game = game = vizdoom.DoomGame()
    game.load_config(config)
    if buttons:
      game.set_available_buttons([vizdoom.Button.__members__[name] for name in buttons])
    game.set_window_visible(False)
    game.set_mode(vizdoom.Mode.PLAYER)
    game.set_screen_format(vizdoom.ScreenFormat.RGB24)
    game.set_screen_resolution(resolutions[height])
    game.set_depth_buffer_enabled(True)
    game.set_episode_timeout(0)
    for layer in ("hud", "crosshair", "messages", "screen_flashes"):
      getattr(game, f"set_render_{layer}")(False)
    # The engine leaves `_vizdoom.ini` and `_vizdoom/` wherever it starts: give it a place of its
    # own, for as long as it lives.
    self._home = tempfile.TemporaryDirectory(prefix="vizdoom-")
    game.set_doom_config_path(os.path.join(self._home.name, "vizdoom.ini"))
    with contextlib.chdir(self._home.name):
      game.init()
    self._is_delta = [vizdoom.is_delta_button(b) for b in game.get_available_buttons()]
    self.frame_rate = DOOM_TICS_PER_SECOND / frame_skip
    self.controls = tuple(
      Control("axis", (button.name,), -DOOM_DELTA_LIMIT, DOOM_DELTA_LIMIT)
      if delta
      else Control("button", (button.name,))
      for button, delta in zip(game.get_available_buttons(), self._is_delta, strict=True)
    )

  def _frame(self) -> np.ndarray | None:
    state = self._game.get_state()
    return None if state is None else fit_square(state.screen_buffer, self._size)

  def reset(self, seed: int) -> np.ndarray:
    """Start the episode of this seed and return its first frame."""
    self._game.set_seed(seed)
    self._game.new_episode()
    return self._frame()

  def step(self, action: np.ndarray) -> np.ndarray | None:
    """Hold `action` for `frame_skip` tics; the frame after them, or None at the end."""
    self._game.make_action(
      [
        float(a) if delta else float(a > 0) for a, delta in zip(action, self._is_delta, strict=True)
      ],
      self._skip,
    )
    return None if self._game.is_episode_finished() else self._frame()

  def clearance(self) -> tuple[float, float, float] | None:
    """Free distance (left, ahead, right) at eye height in map units; None after the end.

    The middle fifth of the picture is ahead; its nearer quarter counts, so that pillars do.
    """
    state = self._game.get_state()
    if state is None:
      return None
    height, width = state.depth_buffer.shape
    depth = state.depth_buffer[height * 5 // 12 : height * 7 // 12 : 4]
    parts = np.split(depth, [width * 2 // 5, width * 3 // 5], axis=1)
    quantiles = (0.5, 0.25, 0.5)
    left, ahead, right = (
      DOOM_UNITS_PER_DEPTH * float(np.quantile(part, q))
      for part, q in zip(parts, quantiles, strict=True)
    )
    return left, ahead, right

  def close(self) -> None:
    self._game.close()
    self._home.cleanup()


class GymWorld:
  """A Gymnasium environment whose frames are its pixel observations or its `rgb_array` rendering.

  Arcade games (`ALE/...`) run without sticky actions, so that an action is what was pressed; a
  frame is the brighter of the last two, as those games draw sprites on alternate frames.

  Args:
    env: a Gymnasium id, such as "ALE/Boxing-v5" or "CartPole-v1".
    size: height and width of the frames (the picture is squeezed to a square).
    frame_skip: every action is repeated for this many environment steps.

  Raises:
    ImportError: gymnasium, or the package behind the environment, is not installed.
    ValueError: unknown environment, no pixels to be had, or actions that are no vector.
  """

  def __init__(self, env: str, size: int = 64, frame_skip: int = 4):
    try:
      import gymnasium
    except ImportError as error:
      raise ImportError("Recording games needs gymnasium: pip install 'vidstep[doom]'.") from error
    self._arcade = env.startswith("ALE/")
    options = {}
    if self._arcade:
      import ale_py

      ale_py.ALEInterface.setLoggerMode(ale_py.LoggerMode.Error)  # no banner
      gymnasium.register_envs(ale_py)
      options = {"frameskip": 1, "repeat_action_probability": 0.0}
    try:
      self._env = gymnasium.make(env, render_mode="rgb_array", **options)
    except gymnasium.error.Error as error:
      raise ValueError(f"Gymnasium cannot make {env!r} with pixel frames: {error}") from error
    space = self._env.observation_space
    shape = getattr(space, "shape", None) or ()
    self._seen = len(shape) == 3 and shape[-1] == 3 and space.dtype == np.uint8
    self._size, self._skip = size, frame_skip
    self.controls = _controls(self._env)
    rate = 60 if self._arcade else self._env.metadata.get("render_fps") or 30
    self.frame_rate = rate / frame_skip

  def _pixels(self, observation) -> np.ndarray:
    frame = observation if self._seen else self._env.render()
    if not (isinstance(frame, np.ndarray) and frame.ndim == 3 and frame.shape[-1] == 3):
      raise ValueError(f"{self._env.spec.id} has no RGB frames; choose one that renders rgb_array.")
    return frame

  def reset(self, seed: int) -> np.ndarray:
    """Start the episode of this seed and return its first frame."""
    observation, _ = self._env.reset(seed=seed)
    return fit_square(self._pixels(observation), self._size)

  def step(self, action: np.ndarray) -> np.ndarray | None:
    """Repeat `action` for `frame_skip` steps; the frame after them, or None at the end."""
    native = _native(self._env.action_space, self.controls, action)
    last = None
    for i in range(self._skip):
      observation, _, terminated, truncated, _ = self._env.step(native)
      if terminated or truncated:
        return None
      if i >= self._skip - (2 if self._arcade else 1):
        frame = self._pixels(observation)
        last = frame if last is None else np.maximum(last, frame)
    return fit_square(last, self._size)

  def clearance(self) -> None:
    """Unknown: these worlds show pictures only."""
    return None

  def close(self) -> None:
    self._env.close()


def _controls(env) -> tuple[Control, ...]:
  """The controls of a Gymnasium action space (Discrete, MultiBinary, MultiDiscrete or Box)."""
  space, kind = env.action_space, type(env.action_space).__name__
  if kind == "Discrete":
    meanings = getattr(env.unwrapped, "get_action_meanings", None)
    names = meanings() if meanings else [f"action_{i}" for i in range(space.n)]
    return (Control("choice", tuple(names)),)
  if kind == "MultiBinary" and np.ndim(space.n) == 0:
    return tuple(Control("button", (f"button_{i}",)) for i in range(space.n))
  if kind == "MultiDiscrete" and space.nvec.ndim == 1:
    return tuple(
      Control("choice", tuple(f"choice_{i}_{j}" for j in range(n)))
      for i, n in enumerate(space.nvec)
    )
  if kind == "Box" and len(space.shape) == 1:
    bounds = zip(np.maximum(space.low, -1e3), np.minimum(space.high, 1e3), strict=True)
    return tuple(
      Control("axis", (f"axis_{i}",), float(low), float(high))
      for i, (low, high) in enumerate(bounds)
    )
  raise ValueError(f"{env.spec.id} has the action space {space}, which is no vector of controls.")


def _native(space, controls, action: np.ndarray):
  """A stored action vector as the environment's own action."""
  kind = type(space).__name__
  if kind == "Discrete":
    return int(space.start) + int(np.argmax(action))
  if kind == "MultiBinary":
    return (action > 0).astype(space.dtype)
  if kind == "MultiDiscrete":
    return np.array([np.argmax(part) for part in per_control(action, controls)], space.dtype)
  return action.astype(space.dtype)
