"""Motion, saturation, contrast, clipping and warp error on clips whose numbers are known."""

import colorsys

import numpy as np
import pytest

from vidstep.metrics.motion import (
  clipped,
  contrast,
  motion_magnitude,
  saturation,
  warp_error,
)


def test_motion_is_the_mean_change_of_bytes_and_zero_for_a_still():
  ramp = np.zeros((1, 4, 8, 8, 3), np.uint8) + np.array([0, 3, 9, 5], np.uint8).reshape(
    1, 4, 1, 1, 1
  )
  np.testing.assert_allclose(motion_magnitude(ramp), [[3, 6, 4]], rtol=1e-5)
  half = ramp.copy()
  half[:, :, :4] = 0  # half of the picture rests
  np.testing.assert_allclose(motion_magnitude(half), [[1.5, 3, 2]], rtol=1e-5)
  np.testing.assert_array_equal(motion_magnitude(np.repeat(ramp[:, :1], 4, axis=1)), 0)


@pytest.mark.parametrize("fn", [motion_magnitude, saturation, contrast, clipped])
def test_bytes_and_floats_give_one_number(fn, rng):
  video = rng.integers(0, 256, (3, 4, 8, 8, 3), dtype=np.uint8)
  floats = (video / 127.5 - 1).astype(np.float32)
  np.testing.assert_allclose(fn(video), fn(floats), rtol=1e-4, atol=1e-6)


def test_saturation_is_that_of_hsv(rng):
  video = rng.integers(0, 256, (1, 2, 5, 5, 3), dtype=np.uint8)
  video[0, 0, 0, 0] = 0  # black has no hue and no saturation
  expected = [
    np.mean([colorsys.rgb_to_hsv(*(p / 255))[1] for p in frame.reshape(-1, 3)])
    for frame in video[0]
  ]
  np.testing.assert_allclose(saturation(video)[0], expected, rtol=1e-4)


def test_contrast_is_the_deviation_of_luma(rng):
  video = rng.integers(0, 256, (1, 2, 6, 6, 3), dtype=np.uint8)
  luma = video.astype(np.float64) @ [0.299, 0.587, 0.114]
  np.testing.assert_allclose(contrast(video)[0], luma[0].std(axis=(1, 2)), rtol=1e-4)


def test_clipped_counts_the_last_level_at_either_end():
  video = np.array([0, 1, 2, 128, 253, 254, 255, 100], np.uint8).repeat(3).reshape(1, 1, 1, 8, 3)
  np.testing.assert_allclose(clipped(video), 0.5)


def _texture(rng, size):
  cv2 = pytest.importorskip("cv2")
  return cv2.GaussianBlur(rng.integers(0, 256, (size, size, 3), dtype=np.uint8), (0, 0), 3)


def test_warp_error_forgives_motion_and_sees_flicker(rng):
  texture = _texture(rng, 80)
  pan = np.stack([texture[8:72, 8 + 2 * t : 72 + 2 * t] for t in range(4)])[None]
  flicker = np.clip(pan + np.array([0, 12, 0, 12]).reshape(1, 4, 1, 1, 1), 0, 255).astype(np.uint8)
  raw = np.mean((np.diff(pan / 255.0, axis=1)) ** 2)
  moved, flickered = warp_error(pan), warp_error(flicker)
  assert moved.coverage[0] > 0.7 and moved.error[0] < 0.1 * raw
  assert flickered.error[0] > 5 * moved.error[0]
  still = warp_error(np.repeat(pan[:, :1], 3, axis=1))
  assert still.error[0] == 0 and still.coverage[0] == 1


def test_too_little_to_follow_raises():
  pytest.importorskip("cv2")
  with pytest.raises(ValueError, match="16x16"):
    warp_error(np.zeros((1, 2, 8, 8, 3), np.uint8))
  for fn in (motion_magnitude, warp_error):
    with pytest.raises(ValueError, match="T >= 2"):
      fn(np.zeros((1, 1, 16, 16, 3), np.uint8))
