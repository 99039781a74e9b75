"""Pixels in and out of files, and pictures with labels."""

from xml.etree import ElementTree

import av
import numpy as np
import pytest
from PIL import Image

from vidstep.data import video_io


def moving_square(frames=10, height=64, width=48):
  video = np.full((frames, height, width, 3), (40, 90, 160), np.uint8)
  for f in range(frames):
    video[f, 20:40, 2 * f + 4 : 2 * f + 20] = (220, 200, 60)
  return video


def test_floats_and_bytes_are_each_others_inverse():
  values = np.arange(256, dtype=np.uint8)
  np.testing.assert_array_equal(video_io.to_uint8(video_io.to_float(values)), values)
  assert video_io.to_float(values).min() == -1 and video_io.to_float(values).max() == 1
  np.testing.assert_array_equal(video_io.to_uint8(np.float32([-3, 0, 3])), [0, 128, 255])


def test_resizing_averages_areas():
  frame = np.random.default_rng(0).integers(0, 256, (24, 32, 3), dtype=np.uint8)
  expected = frame.reshape(8, 3, 8, 4, 3).mean(axis=(1, 3))
  assert np.abs(video_io.fit_square(frame, 8) - expected).max() <= 1
  centre = frame[:, 4:28].reshape(8, 3, 8, 3, 3).mean(axis=(1, 3))
  assert np.abs(video_io.fit_square(frame, 8, crop=True) - centre).max() <= 1
  assert video_io.fit_square(frame, 64).shape == (64, 64, 3)


def test_mp4_comes_back_nearly_as_it_went(tmp_path):
  video = moving_square(height=63, width=47)  # odd sides are extended by one
  video_io.save_video(tmp_path / "deep" / "a.mp4", video, 8.75)
  back, fps = video_io.read_video(tmp_path / "deep" / "a.mp4")
  assert fps == 8.75 and back.shape == (10, 64, 48, 3)
  error = np.mean((back[:, :63, :47].astype(float) - video) ** 2)
  assert 10 * np.log10(255**2 / error) > 30


@pytest.mark.parametrize("suffix", ["webp", "gif"])
def test_animated_pictures_hold_every_frame(tmp_path, suffix):
  video_io.save_video(tmp_path / f"a.{suffix}", moving_square(), 10)
  with Image.open(tmp_path / f"a.{suffix}") as image:
    assert image.n_frames == 10 and image.size == (48, 64)


def written(folder, form, **said):
  """(the sentence, the XMP packet) that a file holds, read by others."""
  path = folder / f"a b.{form}"
  if form == "png":
    video_io.save_strip(path, {"x": moving_square(3)[None]}, **said)
  else:
    video_io.save_video(path, moving_square(3), 8, **said)
  assert [p.name for p in folder.iterdir()] == [path.name]
  if form == "mp4":
    with av.open(str(path)) as container:
      tags = dict(container.metadata)
      assert sum(1 for _ in container.decode(video=0)) == 3
    assert tags.get("description") == tags.get("comment")
    return tags.get("comment"), boxes(path.read_bytes()).get(XMP_IN_MP4)
  with Image.open(path) as image:
    packet = image.info.get("xmp", image.info.get("XML:com.adobe.xmp"))
    return image.info.get("comment", image.info.get("Description")), packet


XMP_IN_MP4 = bytes.fromhex("BE7ACFCB97A942E89C71999491E3AFAC")


def boxes(data):
  """Type, or UUID, of every outermost box of an MP4 -> its content."""
  out = {}
  while data:
    size, kind = int.from_bytes(data[:4], "big"), data[4:8]
    assert 8 <= size <= len(data)
    head = 24 if kind == b"uuid" else 8
    out[data[8:24] if kind == b"uuid" else kind] = data[head:size]
    data = data[size:]
  return out


@pytest.mark.parametrize("form", ["mp4", "webp", "gif", "png"])
@pytest.mark.parametrize("composite", [False, True])
def test_generated_files_say_so(tmp_path, form, composite):
  said, packet = written(tmp_path, form, made_by="vidstep <wan>", composite=composite)
  said = said.decode() if isinstance(said, bytes) else said
  how = "Partly AI-generated (beside recorded pixels)" if composite else "AI-generated"
  assert said is None if form == "webp" else said == f"{how}, made by vidstep <wan>"
  if form == "gif":
    return
  packet = packet.decode() if isinstance(packet, bytes) else packet
  tree = ElementTree.fromstring(packet.strip("\ufeff"))
  find = lambda space, name: tree.find(f".//{{{space}}}{name}").text
  source = find("http://iptc.org/std/Iptc4xmpExt/2008-02-29/", "DigitalSourceType")
  term = "compositeWithTrainedAlgorithmicMedia" if composite else "trainedAlgorithmicMedia"
  assert source == f"http://cv.iptc.org/newscodes/digitalsourcetype/{term}"
  assert find("http://ns.adobe.com/xap/1.0/", "CreatorTool") == "vidstep <wan>"
  description = find("http://www.w3.org/1999/02/22-rdf-syntax-ns#", "li")
  assert description == f"{how}, made by vidstep <wan>"


@pytest.mark.parametrize("form", ["mp4", "webp", "gif", "png"])
def test_recorded_files_say_nothing(tmp_path, form):
  assert written(tmp_path, form) == (None, None)


def test_bad_videos_are_told_in_a_sentence(tmp_path):
  with pytest.raises(ValueError, match="to_uint8 converts"):
    video_io.save_video(tmp_path / "a.mp4", np.zeros((2, 8, 8, 3), np.float32), 8)
  with pytest.raises(ValueError, match=r"ends in \.mp4, \.webp or \.gif"):
    video_io.save_video(tmp_path / "a.mpeg", moving_square(2), 8)
  (tmp_path / "bad.mp4").write_bytes(b"this is no video" * 100)
  with pytest.raises(ValueError, match=r"bad\.mp4 cannot be .* remove or repair it"):
    video_io.read_video(tmp_path / "bad.mp4")


def test_a_grid_has_a_labelled_row_per_key_and_a_clip_per_column():
  rng = np.random.default_rng(0)
  clips = {label: rng.integers(0, 256, (3, 5, 8, 8, 3), dtype=np.uint8) for label in ("real", "me")}
  frames = video_io.grid(clips, columns=2, target=16)
  gap = video_io.GAP
  left = frames.shape[2] - 2 * (16 + gap)
  assert frames.shape == (5, 2 * (16 + gap) + gap, left + 2 * (16 + gap), 3)
  for row, video in enumerate(clips.values()):
    for column in range(2):
      top, start = gap + row * (16 + gap), left + column * (16 + gap)
      shown = frames[:, top : top + 16 : 2, start : start + 16 : 2]
      np.testing.assert_array_equal(shown, video[column])
    assert (frames[0, top : top + 16, :left] < 128).any()  # ink
  np.testing.assert_array_equal(frames[0, :, :left], frames[4, :, :left])


def test_grids_of_unlike_clips_are_refused():
  a, b = np.zeros((1, 4, 8, 8, 3), np.uint8), np.zeros((1, 5, 8, 8, 3), np.uint8)
  with pytest.raises(ValueError, match="same T, H and W"):
    video_io.grid({"a": a, "b": b})
  with pytest.raises(ValueError, match="Expected uint8 clips"):
    video_io.grid({"a": a.astype(np.float32)})
  with pytest.raises(ValueError, match="Expected uint8 clips"):
    video_io.grid({})


def test_a_strip_shows_time_to_the_right(tmp_path):
  video = np.zeros((2, 6, 8, 8, 3), np.uint8)
  video[1] = 40 * np.arange(6, dtype=np.uint8)[:, None, None, None]
  video_io.save_strip(tmp_path / "s.png", {"clip": video}, clip=1, every=2, target=8)
  picture = np.asarray(Image.open(tmp_path / "s.png"))
  step = 8 + video_io.GAP
  shown = [picture[video_io.GAP + 4, picture.shape[1] - step * n + 4, 0] for n in (3, 2, 1)]
  assert shown == [0, 80, 160]
