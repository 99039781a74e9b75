"""Videos at another rate and size: which frame is shown when, and which part of it."""

from fractions import Fraction

import av
import numpy as np
import pytest
from mutation import assert_caught, mutant

from vidstep.data import resample
from vidstep.data.video_io import save_video

LEVELS = 20 * np.arange(12)


@pytest.fixture(scope="module")
def steady(tmp_path_factory):
  """12 grey frames at 24 a second, each 20 levels brighter than the one before."""
  path = tmp_path_factory.mktemp("videos") / "steady.mp4"
  save_video(
    path, np.broadcast_to(LEVELS[:, None, None, None], (12, 16, 16, 3)).astype("uint8"), 24
  )
  return path


def shown(path, rate, module=resample):
  """Number of the frame that is shown at each time."""
  return [round(float(frame.mean()) / 20) for frame in module.frames_at(path, rate)]


def check_rates(path, module):
  assert shown(path, 24, module) == list(range(12))
  for rate in (48, 30, 16, 10, 7.5):
    times = np.arange(np.ceil(12 / 24 * rate - 1e-9)) / rate
    assert shown(path, rate, module) == np.floor(times * 24 + 1e-6).astype(int).tolist()


def test_at_each_time_the_frame_on_the_screen_is_shown(steady):
  check_rates(steady, resample)
  late = mutant(resample, "number / rate < time - SLACK", "number / rate < time - 0.5 / rate")
  assert_caught(check_rates, steady, late)
  cut = mutant(resample, "time + duration - SLACK", "time - SLACK")
  assert_caught(check_rates, steady, cut)


def test_a_variable_rate_goes_by_the_times_of_the_file(tmp_path):
  path, times = tmp_path / "v.mkv", [0, 100, 150, 500, 900]  # milliseconds
  with av.open(str(path), "w") as container:
    stream = container.add_stream("ffv1", rate=1000)
    stream.width = stream.height = 16
    stream.pix_fmt = "yuv420p"
    stream.time_base = stream.codec_context.time_base = Fraction(1, 1000)
    for number, time in enumerate(times):
      frame = av.VideoFrame.from_ndarray(np.full((16, 16, 3), 20 * number, np.uint8), "rgb24")
      frame.pts = time
      container.mux(stream.encode(frame))
    container.mux(stream.encode())
  assert shown(path, 10)[:10] == [0, 1, 2, 2, 2, 3, 3, 3, 3, 4]


def test_what_cannot_be_read_is_told_in_a_sentence(steady, tmp_path):
  broken = tmp_path / "broken.mp4"
  broken.write_bytes(steady.read_bytes()[:200])
  with pytest.raises(ValueError, match="cannot be decoded as a video"):
    list(resample.frames_at(broken, 16))


def check_cover(cover):
  frame = np.zeros((40, 100, 3), np.uint8)
  frame[..., 0] = np.arange(100)  # column
  frame[..., 1] = 5 * np.arange(40)[:, None]
  got = cover(frame, 20, 20).astype(float)  # the middle 40 columns, 2 x 2 pixels to one
  assert got.shape == (20, 20, 3)
  np.testing.assert_allclose(got[0, :, 0], 30 + 2 * np.arange(20) + 0.5, atol=0.51)
  np.testing.assert_allclose(got[:, 0, 1], 10 * np.arange(20) + 2.5, atol=0.51)
  assert cover(frame, 10, 50).shape == (10, 50, 3)
  np.testing.assert_allclose(cover(frame, 10, 50)[0, 0, 1] / 5, 10 + 0.5, atol=1.1)  # rows 10..30
  enlarged = cover(frame, 80, 200)
  assert enlarged.shape == (80, 200, 3) and (np.diff(enlarged[0, :, 0].astype(int)) >= 0).all()


def test_the_centre_is_kept_and_areas_are_averaged():
  check_cover(resample.cover)
  corner = mutant(resample, "left, top = (image.width - wide) / 2", "left, top = (0 * image.width)")
  assert_caught(check_cover, corner.cover)
  squeezed = mutant(resample, "box=box", "box=None")
  assert_caught(check_cover, squeezed.cover)
