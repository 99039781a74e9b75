"""The door of every metric: two forms of video pass, everything else gets one sentence."""

import numpy as np
import pytest

from vidstep.metrics.clips import check_clips, check_pair, in_batches, to_bytes, to_unit


def _video(*shape, dtype=np.uint8):
  return np.zeros(shape, dtype)


@pytest.mark.parametrize(
  ("video", "sentence"),
  [
    (_video(2, 8, 8, 3), "N, T, H, W, 3"),
    (_video(2, 4, 8, 8, 1), "N, T, H, W, 3"),
    (_video(0, 4, 8, 8, 3), "nothing to measure"),
    (_video(2, 1, 8, 8, 3), "T >= 2"),
    (_video(2, 4, 8, 8, 3, dtype=np.int32), "uint8"),
    (_video(2, 4, 8, 8, 3, dtype=np.float32) + 1.5, r"in \[-1, 1\]"),
    (_video(2, 4, 8, 8, 3, dtype=np.float32) + np.nan, "finite"),
  ],
)
def test_wrong_clips_raise_one_sentence(video, sentence):
  with pytest.raises(ValueError, match=sentence):
    check_clips(video, frames=2)


def test_pairs_must_have_one_shape():
  with pytest.raises(ValueError, match="one shape"):
    check_pair(_video(2, 4, 8, 8, 3), _video(2, 5, 8, 8, 3))


def test_bytes_and_floats_of_one_picture_agree(rng):
  video = rng.integers(0, 256, (2, 3, 8, 8, 3), dtype=np.uint8)
  floats = np.asarray(to_unit(video))
  assert floats.min() >= -1 and floats.max() <= 1
  np.testing.assert_allclose(to_bytes(floats), video, atol=1e-4)
  np.testing.assert_allclose(to_bytes(video), video)
  assert check_clips(floats.astype(np.float16)).dtype == np.float32


@pytest.mark.parametrize("count", [1, 3, 8, 9])
def test_batches_have_one_shape_and_lose_no_row(count):
  shapes = set()

  def double(x):
    shapes.add(x.shape)
    return x * 2

  x = np.arange(count * 2.0).reshape(count, 2)
  np.testing.assert_array_equal(in_batches(double, (x,), 8), x * 2)
  assert len(shapes) == 1
