"""Pixels in and out: resize, read video files, write MP4 / WebP / GIF / PNG, labelled grids."""

from collections.abc import Iterator, Mapping
from pathlib import Path

import av
import numpy as np
from PIL import Image, ImageDraw, ImageFont

from vidstep.data import provenance
from vidstep.files import whole

PAPER, INK = (255, 255, 255), (20, 20, 20)
GAP = 4


def to_float(video: np.ndarray) -> np.ndarray:
  """uint8 0..255 to float32 in [-1, 1]."""
  return np.asarray(video, np.float32) / np.float32(127.5) - np.float32(1)


def to_uint8(video: np.ndarray) -> np.ndarray:
  """Floats in [-1, 1] to uint8 0..255, clipped and rounded."""
  video = (np.asarray(video, np.float32) + 1) * 127.5
  return np.clip(np.rint(video), 0, 255).astype(np.uint8)


def fit_square(frame: np.ndarray, size: int, *, crop: bool = False) -> np.ndarray:
  """Bring a uint8 frame [H, W, 3] to [size, size, 3] by area averaging.

  Every pixel of the result is the mean of the area that it covers (a box filter), so that nothing
  flickers when things move. `crop` cuts the centre square out first; otherwise the picture is
  squeezed.
  """
  image = Image.fromarray(np.ascontiguousarray(frame))
  box = None
  if crop:
    side = min(image.size)
    left, top = (image.width - side) // 2, (image.height - side) // 2
    box = (left, top, left + side, top + side)
  enlarges = size > (min(image.size) if crop else image.height)
  filter_ = Image.Resampling.BILINEAR if enlarges else Image.Resampling.BOX
  return np.asarray(image.resize((size, size), filter_, box=box))


def read_frames(path: str | Path) -> Iterator[np.ndarray]:
  """Frames uint8 [H, W, 3] of a video file, one after the other.

  Raises:
    ValueError: the file is no video that can be decoded.
  """
  try:
    with av.open(str(path)) as container:
      for frame in container.decode(video=0):
        yield frame.to_ndarray(format="rgb24")
  except (av.FFmpegError, IndexError) as error:
    raise ValueError(
      f"{path} cannot be decoded as a video ({error}); remove or repair it."
    ) from error


def read_video(path: str | Path) -> tuple[np.ndarray, float]:
  """A whole video file as (uint8 [T, H, W, 3], frames per second)."""
  return np.stack(list(read_frames(path))), frame_rate(path)


def frame_rate(path: str | Path) -> float:
  """Frames per second that a video file states (30 where it states none)."""
  try:
    with av.open(str(path)) as container:
      return float(container.streams.video[0].average_rate or 30)
  except (av.FFmpegError, IndexError) as error:
    raise ValueError(
      f"{path} cannot be opened as a video ({error}); remove or repair it."
    ) from error


def save_video(
  path: str | Path, frames: np.ndarray, fps: float, *, made_by: str = "", composite: bool = False
) -> None:
  """Write frames uint8 [T, H, W, 3] as `.mp4` (H.264, yuv420p), animated `.webp` or `.gif`.

  H.264 wants even sides: an odd one is extended by repeating its last row or column.

  Args:
    path: the file; whole or not at all.
    frames: what to write.
    fps: frames per second.
    made_by: the model that generated the video; the file's metadata then says so, see
      `vidstep.data.provenance`. Empty for recorded videos.
    composite: some of the pixels are recorded.

  Raises:
    ValueError: frames of another shape or dtype, or an unknown suffix.
  """
  frames = np.asarray(frames)
  if frames.dtype != np.uint8 or frames.ndim != 4 or frames.shape[-1] != 3 or not len(frames):
    raise ValueError(
      f"save_video wants uint8 [T, H, W, 3], not {frames.dtype} {list(frames.shape)}; "
      "to_uint8 converts floats in [-1, 1]."
    )
  path = Path(path)
  if path.suffix not in (".mp4", ".webp", ".gif"):
    raise ValueError(f"Cannot write {path.name}: use a name that ends in .mp4, .webp or .gif.")
  with whole(path) as partial:
    if path.suffix == ".mp4":
      _save_mp4(partial, frames, fps, provenance.sentence(made_by, composite) if made_by else "")
      if made_by:
        provenance.tag_mp4(partial, made_by, composite)
    else:
      images = [Image.fromarray(frame) for frame in frames]
      options = {"quality": 85} if path.suffix == ".webp" else {}
      if made_by:
        options |= provenance.picture_options(path.suffix, made_by, composite)
      images[0].save(
        partial,
        format=path.suffix[1:],
        save_all=True,
        append_images=images[1:],
        duration=round(1000 / fps),
        loop=0,
        **options,
      )


def _save_mp4(path: Path, frames: np.ndarray, fps: float, comment: str) -> None:
  height, width = frames.shape[1:3]
  frames = np.pad(frames, ((0, 0), (0, height % 2), (0, width % 2), (0, 0)), mode="edge")
  with av.open(str(path), "w", format="mp4") as container:
    if comment:
      container.metadata["comment"] = container.metadata["description"] = comment
    stream = container.add_stream("libx264", rate=_fraction(fps), options={"crf": "18"})
    stream.height, stream.width = frames.shape[1:3]
    stream.pix_fmt = "yuv420p"
    for frame in frames:
      container.mux(stream.encode(av.VideoFrame.from_ndarray(frame, format="rgb24")))
    container.mux(stream.encode())


def _fraction(fps: float):
  from fractions import Fraction

  return Fraction(fps).limit_denominator(1000)


def _font(size: int = 13) -> ImageFont.ImageFont:
  return ImageFont.load_default(size)


def _enlarge(video: np.ndarray, scale: int) -> np.ndarray:
  """Nearest-neighbour upscaling of [..., H, W, 3] by a whole number."""
  return video.repeat(scale, axis=-3).repeat(scale, axis=-2)


def _scale_for(size: int, target: int) -> int:
  return max(1, round(target / size))


def _label_column(labels: list[str], row_height: int) -> np.ndarray:
  """A column of labels, one per row of pictures, uint8 [rows * (row_height + GAP), W, 3]."""
  font = _font()
  lines = [label.split("\n") for label in labels]
  widest = max(font.getlength(line) for rows in lines for line in rows)
  image = Image.new("RGB", (int(widest) + 4 * GAP, len(labels) * (row_height + GAP)), PAPER)
  draw = ImageDraw.Draw(image)
  for i, label in enumerate(labels):
    middle = i * (row_height + GAP) + row_height / 2
    draw.multiline_text((2 * GAP, middle), label, INK, font=font, anchor="lm", spacing=2)
  return np.asarray(image)


def _check_clips(clips: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
  clips = {label: np.asarray(video) for label, video in clips.items()}
  shapes = {label: video.shape for label, video in clips.items()}
  if not clips or any(v.dtype != np.uint8 or v.ndim != 5 for v in clips.values()):
    raise ValueError(f"Expected uint8 clips [N, T, H, W, 3] per label, not {shapes}.")
  if len({shape[1:] for shape in shapes.values()}) != 1:
    raise ValueError(f"Clips in one picture need the same T, H and W, not {shapes}.")
  return clips


def grid(clips: Mapping[str, np.ndarray], *, columns: int = 8, target: int = 128) -> np.ndarray:
  """Clips side by side: a labelled row per key, one clip per column.

  Args:
    clips: label -> uint8 [N, T, H, W, 3]; one T, H and W for all. A label may have line breaks.
    columns: show at most this many clips of each.
    target: enlarge (nearest) so that a clip is about this many pixels high.

  Returns:
    frames uint8 [T, H', W', 3], to hand to `save_video`.

  Raises:
    ValueError: no clips, another dtype or rank, or shapes that differ.
  """
  clips = _check_clips(clips)
  columns = min(columns, max(len(video) for video in clips.values()))
  frames, height, width = next(iter(clips.values())).shape[1:4]
  scale = _scale_for(height, target)
  height, width = height * scale, width * scale
  labels = _label_column(list(clips), height)
  canvas = np.full(
    (frames, len(labels) + GAP, labels.shape[1] + columns * (width + GAP), 3), PAPER, np.uint8
  )
  canvas[:, GAP:, : labels.shape[1]] = labels
  for row, video in enumerate(clips.values()):
    for column, clip in enumerate(_enlarge(video[:columns], scale)):
      top, left = GAP + row * (height + GAP), labels.shape[1] + column * (width + GAP)
      canvas[:, top : top + height, left : left + width] = clip
  return canvas


def strip(
  clips: Mapping[str, np.ndarray], *, clip: int = 0, every: int = 1, target: int = 96
) -> np.ndarray:
  """A film strip of one clip: a labelled row per key, time to the right.

  Args:
    clips: label -> uint8 [N, T, H, W, 3] (or [T, H, W, 3]); the same T, H and W for all.
    clip: which of the N clips is shown.
    every: show every n-th frame.
    target: enlarge (nearest) so that a frame is about this many pixels high.

  Returns:
    uint8 [H', W', 3].
  """
  videos = {}
  for label, video in clips.items():
    video = np.asarray(video)
    videos[label] = video if video.ndim == 4 else video[clip]
  # A strip is a grid whose columns are moments instead of clips.
  moments = {label: video[::every, None] for label, video in videos.items()}
  count = max((len(video) for video in moments.values()), default=0)
  return grid(moments, columns=count, target=target)[0]


def save_strip(
  path: str | Path, clips: Mapping[str, np.ndarray], *, made_by="", composite=False, **options
) -> None:
  """Write `strip(clips, **options)` as a PNG; `made_by` and `composite` as in `save_video`."""
  save_picture(path, strip(clips, **options), made_by=made_by, composite=composite)


def save_picture(path: str | Path, pixels: np.ndarray, *, made_by="", composite=False) -> None:
  """Write uint8 [H, W, 3] as a PNG; `made_by` and `composite` as in `save_video`."""
  Path(path).parent.mkdir(parents=True, exist_ok=True)
  options = provenance.picture_options(".png", made_by, composite) if made_by else {}
  Image.fromarray(pixels).save(path, **options)
