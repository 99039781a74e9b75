"""Episodes: which action leads where, how clips are cut, how splits are dealt."""

import numpy as np
import pytest
from mutation import assert_caught, mutant

from vidstep.data import controls, episodes
from vidstep.data.policies import ExplorePolicy, RandomPolicy


class PointWorld:
  """A dot on a line of 16 pixels; RIGHT moves it by one. Ends after `last` steps."""

  controls = (controls.Control("button", ("RIGHT",)), controls.Control("button", ("OTHER",)))
  frame_rate = 1.0

  def __init__(self, last=100):
    self._last = last

  def _frame(self):
    frame = np.zeros((16, 16, 3), np.uint8)
    frame[:, self._x % 16] = 255
    return frame

  def reset(self, seed):
    self._x, self._n = seed % 16, 0
    return self._frame()

  def step(self, action):
    self._n += 1
    self._x += int(action[0] > 0)
    return None if self._n > self._last else self._frame()

  def clearance(self):
    return None

  def close(self):
    pass


def test_an_action_leads_into_its_frame_and_the_first_is_null():
  episode = episodes.record(PointWorld(), RandomPolicy(), frames=40, seed=5)
  assert episode.actions.dtype == np.float32 and set(np.unique(episode.actions)) == {-1, 0, 1}
  np.testing.assert_array_equal(episode.actions[0], 0)
  assert (episode.actions[1:] != 0).all()
  x = episode.video[:, 0, :, 0].argmax(axis=1)
  np.testing.assert_array_equal(np.diff(x) % 16, episode.actions[1:, 0] > 0)


def check_replay(record, replay=episodes.replay):
  episode = record(PointWorld(), RandomPolicy(), frames=40, seed=5)
  np.testing.assert_array_equal(replay(PointWorld(), 5, episode.actions), episode.video)


def test_replay_reproduces_the_frames_and_a_shift_by_one_does_not():
  check_replay(episodes.record)
  late = mutant(episodes, "np.stack(actions)", "np.roll(np.stack(actions), -1, axis=0)")
  assert_caught(check_replay, late.record)
  early = mutant(episodes, "in actions[1:]", "in actions[:-1]")
  assert_caught(check_replay, episodes.record, early.replay)
  episode = episodes.record(PointWorld(), RandomPolicy(), frames=40, seed=5)
  shifted = np.concatenate([episode.actions[1:], episode.actions[:1]])
  assert (episodes.replay(PointWorld(), 5, shifted) != episode.video).any()


def test_an_episode_that_ends_early_keeps_what_was_seen():
  episode = episodes.record(PointWorld(last=6), RandomPolicy(), frames=40, seed=0)
  assert len(episode.video) == len(episode.actions) == 7


def test_clips_keep_frames_and_actions_together():
  video = np.arange(11, dtype=np.uint8)[:, None, None, None] * np.ones((1, 2, 2, 3), np.uint8)
  actions = np.arange(11, dtype=np.float32)[:, None]
  episode = episodes.Episode(video, actions, 3, 7, "s", "words")
  clips = list(episodes.cut(episode, 4))
  assert [clip["start"] for clip in clips] == [0, 4]
  assert [clip["start"] for clip in episodes.cut(episode, 4, stride=3)] == [0, 3, 6]
  for clip in clips:
    np.testing.assert_array_equal(clip["video"][:, 0, 0, 0], clip["start"] + np.arange(4))
    np.testing.assert_array_equal(clip["actions"][:, 0], clip["start"] + np.arange(4))
    assert (clip["episode"], clip["seed"], clip["caption"]) == (3, 7, "words")


def check_split(split_episodes):
  for n in (2, 3, 10, 61):
    splits = split_episodes(n, 0.15, seed=1)
    assert sorted(splits["train"] + splits["test"]) == list(range(n))
    assert splits["train"] and splits["test"]


def test_no_episode_is_in_both_splits():
  check_split(episodes.split_episodes)
  leaky = mutant(episodes, "order[:n]", "order[: n + 1]")
  assert_caught(check_split, leaky.split_episodes)
  splits = episodes.split_episodes(61, 0.15, 1)
  assert episodes.split_episodes(61, 0.15, 1) == splits
  assert episodes.split_episodes(61, 0.15, 2) != splits


@pytest.mark.parametrize(("n", "fraction"), [(1, 0.5), (10, 0.0), (10, 1.0), (3, 0.9)])
def test_a_split_left_empty_is_refused(n, fraction):
  with pytest.raises(ValueError, match="leave a split empty"):
    episodes.split_episodes(n, fraction, 0)


def test_episode_seeds_do_not_depend_on_the_order_of_recording():
  seeds = [episodes.episode_seed(0, i, a) for i in range(50) for a in range(3)]
  assert len(set(seeds)) == 150 and max(seeds) < 2**31
  assert episodes.episode_seed(0, 7) == seeds[21]


def test_motion_is_the_mean_absolute_frame_difference():
  video = np.zeros((3, 2, 2, 3), np.uint8)
  video[1] = 200  # up by 200, down by 200: unsigned arithmetic would wrap
  assert episodes.motion(video) == 200.0


DOOM = tuple(
  controls.Control("button", (name,))
  for name in ("TURN_LEFT", "TURN_RIGHT", "MOVE_FORWARD", "ATTACK")
)


def play(policy, clearance, frames, steps=200):
  rng = np.random.default_rng(0)
  return np.stack([policy(frames(i), clearance, DOOM, rng) for i in range(steps)])


def noise(i):
  return np.random.default_rng(i).integers(0, 256, (8, 8, 3), dtype=np.uint8)


def test_the_explorer_runs_where_the_way_is_free_and_holds_its_keys():
  actions = play(ExplorePolicy(), (900.0, 900.0, 900.0), noise)
  assert (actions[:, 2] > 0).mean() > 0.85
  assert set(np.unique(actions)) == {-1, 1}
  changes = (np.diff(actions, axis=0) != 0).any(axis=1).mean()
  assert changes < 0.4  # a random player: 1 - 2**-4 = 0.94


def test_the_explorer_turns_to_the_open_side_of_a_wall_and_stops_at_it():
  left = play(ExplorePolicy(), (500.0, 150.0, 100.0), noise)
  assert (left[:, 0] > 0).all() and (left[:, 1] < 0).all() and (left[:, 2] > 0).all()
  right = play(ExplorePolicy(), (50.0, 30.0, 400.0), noise)
  assert (right[:, 1] > 0).all() and (right[:, 2] < 0).all()


def test_the_explorer_turns_when_the_picture_stops_changing():
  actions = play(ExplorePolicy(), None, lambda i: noise(0), steps=30)[1:]
  turning = actions[:, :2].max(axis=1) > 0
  assert turning.all() and (actions[:, 2] < 0).all()
  assert len(np.unique(actions[:, :2], axis=0)) == 1  # always the same way round


def test_null_is_no_setting_of_any_control():
  mixed = (controls.Control("choice", ("NOOP", "FIRE", "UP")), *DOOM)
  rng = np.random.default_rng(0)
  for policy in (RandomPolicy(), ExplorePolicy()):
    actions = np.stack([policy(noise(i), None, mixed, rng) for i in range(50)])
    assert (np.abs(actions) == 1).all()
    assert ((actions[:, :3] > 0).sum(axis=1) == 1).all()
  assert (actions[:, 0] < 0).all()  # the explorer never does nothing
  assert controls.null_action(mixed).shape == (7,) and not controls.null_action(mixed).any()
  assert [len(part) for part in controls.per_control(actions[0], mixed)] == [3, 1, 1, 1, 1]
