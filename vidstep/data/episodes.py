"""Episodes: recorded from a world, replayed to check them, cut into clips, dealt into splits."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np

from vidstep.data.controls import null_action
from vidstep.data.worlds import World


@dataclass(frozen=True)
class Episode:
  """One uninterrupted recording.

  Attributes:
    video: uint8 [T, H, W, 3].
    actions: float32 [T, A]; actions[f] leads INTO frame f, actions[0] is the null action.
    index: number of the episode within its dataset.
    seed: seed of the world that, with `actions`, reproduces `video` exactly (-1: none).
    scenario: scenario, environment or file that it comes from.
    caption: text that describes it, or None.
  """

  video: np.ndarray
  actions: np.ndarray
  index: int
  seed: int
  scenario: str
  caption: str | None = None


def episode_seed(seed: int, index: int, attempt: int = 0) -> int:
  """A 31-bit seed for one episode, the same in whatever order episodes are recorded."""
  return int(np.random.SeedSequence([seed, index, attempt]).generate_state(1)[0] >> 1)


def record(
  world: World,
  policy: Callable,
  *,
  frames: int,
  seed: int,
  index: int = 0,
  scenario: str = "",
  caption: str | None = None,
  on_frame: Callable[[], None] = lambda: None,
) -> Episode:
  """Play one episode and keep what was seen and pressed.

  The action that `policy` chooses on seeing frame f-1 is stored at f: it leads into that frame.

  Args:
    world: where to play.
    policy: who plays, see `policies`.
    frames: stop after this many frames; fewer come back when the episode ends by itself.
    seed: seeds the world and the policy's draws.
    index, scenario, caption: stored with the episode.
    on_frame: called after every frame (progress bars).
  """
  rng = np.random.default_rng(seed)
  policy.reset()
  video, actions = [world.reset(seed)], [null_action(world.controls)]
  on_frame()
  while len(video) < frames:
    action = policy(video[-1], world.clearance(), world.controls, rng)
    frame = world.step(action)
    if frame is None:
      break
    video.append(frame)
    actions.append(np.asarray(action, np.float32))
    on_frame()
  return Episode(np.stack(video), np.stack(actions), index, seed, scenario, caption)


def replay(world: World, seed: int, actions: np.ndarray) -> np.ndarray:
  """Frames uint8 [T', H, W, 3] of playing stored actions [T, A] from the start of an episode.

  actions[0] is the null action of the first frame and is not played. T' < T if the episode ends
  early, which it does not for the actions that were recorded with this seed.
  """
  video = [world.reset(seed)]
  for action in actions[1:]:
    frame = world.step(action)
    if frame is None:
      break
    video.append(frame)
  return np.stack(video)


def cut(episode: Episode, length: int, stride: int | None = None) -> Iterator[dict]:
  """Clips of `length` frames every `stride` frames (default: side by side); the tail is dropped.

  The first action of a clip that starts inside an episode is the one that led into its first
  frame: it is kept.

  Yields:
    dicts of video uint8 [length, H, W, 3], actions float32 [length, A], episode, start, seed,
    scenario and, where the episode has one, caption.
  """
  for start in range(0, len(episode.video) - length + 1, stride or length):
    window = slice(start, start + length)
    clip = {
      "video": episode.video[window],
      "actions": episode.actions[window],
      "episode": episode.index,
      "start": start,
      "seed": episode.seed,
      "scenario": episode.scenario,
    }
    yield clip if episode.caption is None else clip | {"caption": episode.caption}


def split_episodes(episodes: int, test_fraction: float, seed: int) -> dict[str, list[int]]:
  """Deal episode numbers into "train" and "test" so that no episode is in both.

  Raises:
    ValueError: too few episodes for both splits to have one.
  """
  n = max(1, round(episodes * test_fraction))
  if not 0 < test_fraction < 1 or episodes - n < 1:
    raise ValueError(
      f"{episodes} episode(s) with a test fraction of {test_fraction} leave a split empty: record "
      "at least 2 episodes and choose a fraction between 0 and 1."
    )
  order = np.random.default_rng([seed, episodes]).permutation(episodes)
  return {"train": sorted(order[n:].tolist()), "test": sorted(order[:n].tolist())}


def motion(video: np.ndarray) -> float:
  """Mean |frame_t - frame_{t-1}| of a uint8 video [..., T, H, W, 3], on the scale 0..255."""
  return float(np.abs(np.diff(video.astype(np.int16), axis=-4)).mean())
