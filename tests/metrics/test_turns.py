"""Which way a picture moves tells which key was held."""

import numpy as np
import pytest

from vidstep.metrics.turns import fit_turns, horizontal_flow, under


def panning(speeds, size=32, frames=5, seed=0):
  """uint8 [N, T, size, size, 3]: a smooth texture moving right by `speed` pixels a frame."""
  rng = np.random.default_rng(seed)
  y, x = np.mgrid[:size, :size]
  video = np.zeros((len(speeds), frames, size, size, 3))
  for n, speed in enumerate(speeds):
    for (kx, ky), phase in zip(rng.uniform(0.2, 0.8, (6, 2)), rng.uniform(0, 6, 6), strict=True):
      for t in range(frames):
        video[n, t] += 18 * np.sin(kx * (x - speed * t) + ky * y + phase)[..., None]
  return (video + 128).clip(0, 255).astype(np.uint8)


def test_flow_is_the_speed_in_widths_of_the_picture():
  flow = horizontal_flow(panning((2, -2, 0, 1)))
  assert flow.shape == (4, 4)
  np.testing.assert_allclose(flow.mean(axis=1) * 32, (2, -2, 0, 1), atol=0.4)


def test_turns_learn_their_sign_from_real_frames_and_tell_new_ones():
  actions = np.full((2, 5, 2), -1.0)
  actions[0, :, 0] = actions[1, :, 1] = 1  # the first key turns left: the picture goes right
  actions[:, 0] = 0
  flow = horizontal_flow(panning((2, -1)))
  left, right = under(flow, actions, 0, 1), under(flow, actions, 1, 0)
  assert len(left) == len(right) == 4
  turns = fit_turns(left, right)
  assert turns.sign == 1 and fit_turns(right, left).sign == -1
  new = horizontal_flow(panning((2, 2, -1, -1), seed=1))
  assert turns.accuracy(new[:2], new[2:]) == 1
  assert turns.accuracy(new[2:], new[:2]) == 0
  assert turns.accuracy(new, new) == pytest.approx(0.5)


def test_both_keys_held_or_none_say_nothing():
  actions = np.ones((1, 3, 2))
  assert not len(under(np.zeros((1, 2)), actions, 0, 1))
  with pytest.raises(ValueError, match="Both keys must be pressed"):
    fit_turns(np.zeros(3), np.zeros(0))
