"""The synthetic world against its own description, in NumPy."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from vidstep.data import synthetic

play = jax.jit(synthetic.rollout, static_argnums=2)


def expected_positions(position, velocity, actions):
  """The rules once more, shape by shape and axis by axis, in float64."""
  low, high = 0.12, 0.88
  position, velocity = np.float64(position), np.float64(velocity)
  track = [position.copy()]
  for left, right, up, down in np.maximum(actions[1:], 0):
    push = 0.06 * np.array([right - left, down - up])
    position[0] = np.clip(position[0] + push, low, high)
    for shape in (1, 2):
      for axis in (0, 1):
        place = position[shape, axis] + velocity[shape, axis]
        if not low <= place <= high:
          velocity[shape, axis] *= -1
          place = 2 * (low if place < low else high) - place
        position[shape, axis] = place
    track.append(position.copy())
  return np.stack(track)


def test_ground_truth_follows_the_actions(key):
  actions = synthetic.random_actions(key, 60)
  states, video = play(key, actions, 16)
  expected = expected_positions(states.position[0], states.velocity[0], np.asarray(actions))
  np.testing.assert_allclose(states.position, expected, atol=1e-4)
  assert video.shape == (60, 16, 16, 3) and video.dtype == jnp.uint8
  shifted = np.roll(np.asarray(actions), 1, axis=0)
  wrong = expected_positions(states.position[0], states.velocity[0], shifted)
  assert np.abs(states.position - wrong).max() > 0.01


@pytest.mark.parametrize(
  ("button", "direction"), [("LEFT", (-1, 0)), ("RIGHT", (1, 0)), ("UP", (0, -1)), ("DOWN", (0, 1))]
)
def test_each_button_moves_the_player_its_way_and_nothing_else(key, button, direction):
  start = jax.jit(synthetic.init)(key)
  start = start._replace(position=start.position.at[0].set(0.5))
  action = jnp.asarray([1.0 if name == button else -1.0 for name in synthetic.BUTTONS])
  step = jax.jit(synthetic.step)
  moved, idle = step(start, action), step(start, jnp.zeros(4))
  np.testing.assert_allclose(
    moved.position[0] - start.position[0], 0.06 * np.float32(direction), atol=1e-6
  )
  np.testing.assert_array_equal(idle.position[0], start.position[0])
  np.testing.assert_array_equal(moved.position[1:], idle.position[1:])


def test_the_picture_shows_the_player_where_the_truth_says(key):
  states, video = play(key, synthetic.random_actions(key, 20), 64)
  for f in (0, 7, 19):
    x, y = (np.asarray(states.position[f, 0]) * 64).astype(int)
    np.testing.assert_allclose(
      np.asarray(video[f, y, x]) / 255, np.asarray(states.colour[f, 0]), atol=0.01
    )


def test_clips_are_a_function_of_seed_split_and_number():
  options = {"clips": 6, "frames": 5, "size": 16}
  clips = synthetic.SyntheticClips("train", **options)
  again = synthetic.SyntheticClips("train", **options | {"clips": 4})
  for i in range(4):
    np.testing.assert_array_equal(clips[i]["video"], again[i]["video"])
  for other in (
    synthetic.SyntheticClips("test", **options),
    synthetic.SyntheticClips("train", **options | {"seed": 1}),
  ):
    assert not any(
      (clips[i]["video"] == other[j]["video"]).all() for i in range(6) for j in range(6)
    )
  assert not clips[0]["actions"][0].any() and (np.abs(clips[0]["actions"][1:]) == 1).all()
  assert clips[2]["position"].shape == (5, 3, 2)


def test_an_unknown_split_is_refused():
  with pytest.raises(ValueError, match="splits train and test"):
    synthetic.SyntheticClips("validation")
