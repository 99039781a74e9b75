"""Videos that are written while they are made."""

import av
import numpy as np
import pytest

from vidstep.data.live_video import LiveVideo


def read(path):
  with av.open(str(path)) as video:
    return np.stack([f.to_ndarray(format="rgb24") for f in video.decode(video=0)]), video.metadata


def test_a_video_holds_all_frames_and_says_what_made_it(tmp_path):
  frames = np.linspace(0, 255, 40).astype(np.uint8)[:, None, None, None]
  frames = np.broadcast_to(frames, (40, 15, 31, 3))  # odd sides
  video = LiveVideo(tmp_path / "a" / "x.mp4", 16, made_by="a toy")
  for start in range(0, 40, 5):
    video.add(frames[start : start + 5])
  video.close()
  got, metadata = read(tmp_path / "a" / "x.mp4")
  assert got.shape == (40, 16, 32, 3) and "made by a toy" in metadata["comment"]
  assert np.abs(np.int32(got[:, :15, :31]) - frames).max() < 12
  assert b"trainedAlgorithmicMedia" in (tmp_path / "a" / "x.mp4").read_bytes()


def test_what_is_cut_off_can_be_watched_so_far(tmp_path):
  rng = np.random.default_rng(0)
  video = LiveVideo(tmp_path / "x.mp4", 10)
  for _ in range(80):
    video.add(rng.integers(0, 256, (2, 16, 16, 3), np.uint8))
  whole = (tmp_path / "x.mp4").read_bytes()
  (tmp_path / "cut.mp4").write_bytes(whole)
  video.close()
  assert len(read(tmp_path / "cut.mp4")[0]) >= 10
  assert len(read(tmp_path / "x.mp4")[0]) == 160


def test_bad_files_are_told(tmp_path):
  with pytest.raises(ValueError, match=r"name in \.mp4"):
    LiveVideo(tmp_path / "x.gif", 16)
  (tmp_path / "folder.mp4").mkdir()
  video = LiveVideo(tmp_path / "folder.mp4", 16)
  with pytest.raises(OSError, match="cannot be written"):
    for _ in range(100):
      video.add(np.zeros((1, 16, 16, 3), np.uint8))
    video.close()


def test_nothing_added_is_no_file(tmp_path):
  LiveVideo(tmp_path / "x.mp4", 16).close()
  assert not (tmp_path / "x.mp4").exists()
