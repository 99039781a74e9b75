"""Video files at another frame rate and size, read frame by frame."""

from collections.abc import Iterator
from pathlib import Path

import av
import numpy as np
from PIL import Image

SLACK = 1e-6  # seconds: container times are rounded


def frames_at(path: str | Path, rate: float) -> Iterator[np.ndarray]:
  """Frames uint8 [H, W, 3] of a video file at a constant rate.

  Frame j is what is on the screen at time j / rate after the first frame: frames are left out or
  shown again, never blended. Times are the file's own, so that a variable rate is no matter.

  Raises:
    ValueError: the file is no video that can be decoded, from the frame on where it is damaged.
  """
  try:
    with av.open(str(path)) as container:
      stream = container.streams.video[0]
      stream.thread_type = "AUTO"
      duration = 1 / float(stream.average_rate or 30)
      shown, start, time, number = None, None, 0.0, 0
      for index, frame in enumerate(container.decode(stream)):
        now = index * duration if frame.time is None else frame.time
        start = now if start is None else start
        time = now - start
        while shown is not None and number / rate < time - SLACK:
          yield shown.to_ndarray(format="rgb24")
          number += 1
        shown = frame
      while shown is not None and number / rate < time + duration - SLACK:
        yield shown.to_ndarray(format="rgb24")
        number += 1
  except (av.FFmpegError, IndexError) as error:
    raise ValueError(f"{path} cannot be decoded as a video ({error}).") from error


def cover(frame: np.ndarray, height: int, width: int) -> np.ndarray:
  """The largest centred part of a uint8 frame [H, W, 3] with the wanted aspect, resized.

  Shrinking averages areas (a box filter), enlarging is bicubic.

  Returns:
    uint8 [height, width, 3].
  """
  image = Image.fromarray(np.ascontiguousarray(frame))
  scale = max(height / image.height, width / image.width)
  wide, high = width / scale, height / scale
  left, top = (image.width - wide) / 2, (image.height - high) / 2
  filter_ = Image.Resampling.BOX if scale < 1 else Image.Resampling.BICUBIC
  box = (left, top, left + wide, top + high)
  return np.asarray(image.resize((width, height), filter_, box=box))
