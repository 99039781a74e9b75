"""Real worlds: what was recorded can be played again, and nothing is left behind."""

import os

import numpy as np
import pytest

from vidstep.data import controls, episodes, worlds
from vidstep.data.policies import ExplorePolicy, RandomPolicy


@pytest.fixture(scope="module")
def doom():
  pytest.importorskip("vizdoom")
  world = worlds.DoomWorld("health_gathering", size=32, frame_skip=4)
  yield world
  world.close()


def assert_replays(world, seed, frames=40):
  episode = episodes.record(world, RandomPolicy(), frames=frames, seed=seed)
  assert len(episode.video) == frames and not episode.actions[0].any()
  episodes.record(world, RandomPolicy(), frames=5, seed=seed + 1)  # leave another state behind
  np.testing.assert_array_equal(episodes.replay(world, seed, episode.actions), episode.video)
  early = np.concatenate([episode.actions[1:], episode.actions[-1:]])
  late = np.concatenate([episode.actions[:1], episode.actions[:-1]])
  for shifted in (early, late):
    again = episodes.replay(world, seed, shifted)
    assert again.shape != episode.video.shape or (again != episode.video).any()


def test_doom_replays_exactly_and_not_when_shifted_by_one(doom):
  assert controls.column_names(doom.controls) == ["TURN_LEFT", "TURN_RIGHT", "MOVE_FORWARD"]
  assert doom.frame_rate == 8.75
  assert_replays(doom, seed=3)


def test_several_doom_buttons_act_at_once(doom):
  def last(*down):
    names = controls.column_names(doom.controls)
    action = np.float32([1.0 if name in down else -1.0 for name in names])
    return episodes.replay(doom, 0, np.stack([action] * 10))[-1]

  frames = [last(), last("MOVE_FORWARD"), last("TURN_LEFT"), last("MOVE_FORWARD", "TURN_LEFT")]
  for i, a in enumerate(frames):
    for b in frames[:i]:
      assert np.abs(a.astype(int) - b).mean() > 1


def walls(world, policy, frames=100):
  """Share of frames with a wall within reach of the nose, and mean motion."""
  near = []

  class Watch:
    reset = policy.reset

    def __call__(self, frame, clearance, *rest):
      near.append(clearance[1] < 70)
      return policy(frame, clearance, *rest)

  seen = [episodes.record(world, Watch(), frames=frames, seed=seed).video for seed in (1, 2, 3)]
  return np.mean(near), np.mean([episodes.motion(video) for video in seen])


def test_the_explorer_sees_the_room_where_the_random_player_stares_at_walls(doom):
  explored, moved = walls(doom, ExplorePolicy())
  stared, _ = walls(doom, RandomPolicy())
  assert explored < 0.15 < 0.3 < stared
  assert moved > 5


def test_doom_leaves_nothing_in_the_working_directory(tmp_path, monkeypatch):
  pytest.importorskip("vizdoom")
  monkeypatch.chdir(tmp_path)
  world = worlds.DoomWorld("basic", size=32)
  episodes.record(world, RandomPolicy(), frames=4, seed=0)
  world.close()
  assert os.getcwd() == str(tmp_path) and os.listdir(tmp_path) == []


def test_delta_buttons_are_axes_and_replay():
  pytest.importorskip("vizdoom")
  world = worlds.DoomWorld("deathmatch", size=32)
  try:
    kinds = {control.names[0]: control.kind for control in world.controls}
    assert kinds["TURN_LEFT_RIGHT_DELTA"] == "axis" and kinds["ATTACK"] == "button"
    assert_replays(world, seed=1, frames=12)
  finally:
    world.close()


def test_unknown_scenarios_and_sizes_are_told_in_a_sentence():
  pytest.importorskip("vizdoom")
  with pytest.raises(ValueError, match=r"no scenario 'nowhere'; choose one of .*health_gathering"):
    worlds.DoomWorld("nowhere")
  with pytest.raises(ValueError, match="480 pixels"):
    worlds.DoomWorld("basic", size=500)


def test_a_missing_package_names_the_extra(monkeypatch):
  monkeypatch.setitem(__import__("sys").modules, "vizdoom", None)
  with pytest.raises(ImportError, match=r"pip install 'vidstep\[doom\]'"):
    worlds.DoomWorld()
  monkeypatch.setitem(__import__("sys").modules, "gymnasium", None)
  with pytest.raises(ImportError, match=r"pip install 'vidstep\[doom\]'"):
    worlds.GymWorld("CartPole-v1")


def test_atari_replays_exactly_and_not_when_shifted_by_one():
  pytest.importorskip("ale_py")
  world = worlds.GymWorld("ALE/Boxing-v5", size=32, frame_skip=3)
  try:
    assert world.frame_rate == 20 and world.controls[0].names[:2] == ("NOOP", "FIRE")
    assert_replays(world, seed=3)
  finally:
    world.close()


RENDERING = {"render_modes": ["rgb_array"], "render_fps": 12}


def make_gym(space):
  gymnasium = pytest.importorskip("gymnasium")

  class Echo(gymnasium.Env):
    """Renders a sum of the actions it was given; ends after 6 steps."""

    metadata = RENDERING

    def __init__(self, render_mode=None):
      self.observation_space = gymnasium.spaces.Discrete(1)
      self.action_space, self.render_mode = space, render_mode

    def reset(self, *, seed=None, options=None):
      self.count, self.value = 0, seed % 100
      return 0, {}

    def step(self, action):
      assert self.action_space.contains(action)
      self.count += 1
      self.value += float(np.sum(action)) + self.count
      return 0, 0.0, self.count >= 6, False, {}

    def render(self):
      return np.full((8, 8, 3), int(self.value) % 256, np.uint8)

  gymnasium.register("vidstep/Echo-v0", entry_point=Echo)
  try:
    return worlds.GymWorld("vidstep/Echo-v0", size=8, frame_skip=1)
  finally:
    del gymnasium.registry["vidstep/Echo-v0"]


def spaces():
  from gymnasium.spaces import Box, Discrete, MultiBinary, MultiDiscrete

  return {
    "discrete": (Discrete(3, start=2), ["action_0", "action_1", "action_2"]),
    "binary": (MultiBinary(2), ["button_0", "button_1"]),
    "multi": (MultiDiscrete([2, 3]), [f"choice_{i}_{j}" for i in (0, 1) for j in range(2 + i)]),
    "box": (Box(-2, 9, (2,), np.float32), ["axis_0", "axis_1"]),
  }


@pytest.mark.parametrize("kind", ["discrete", "binary", "multi", "box"])
@pytest.mark.parametrize("policy", [RandomPolicy, ExplorePolicy])
def test_every_vector_of_actions_that_gymnasium_knows_replays(kind, policy):
  pytest.importorskip("gymnasium")
  space, names = spaces()[kind]
  world = make_gym(space)
  assert controls.column_names(world.controls) == names and world.frame_rate == 12
  episode = episodes.record(world, policy(), frames=20, seed=4)
  assert episode.video.shape == (6, 8, 8, 3)  # the sixth step ends it
  np.testing.assert_array_equal(episodes.replay(world, 4, episode.actions), episode.video)
  world.close()


def test_environments_without_pixels_or_vectors_are_refused():
  gymnasium = pytest.importorskip("gymnasium")
  with pytest.raises(ValueError, match="Gymnasium cannot make 'Nothing-v0'"):
    worlds.GymWorld("Nothing-v0")
  with pytest.raises(ValueError, match="no vector of controls"):
    make_gym(gymnasium.spaces.Text(3))
