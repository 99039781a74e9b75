"""A video file that is written while its frames are made, and can be watched while it grows."""

import queue
import threading
from fractions import Fraction
from pathlib import Path

import av
import numpy as np

from vidstep.data import provenance

WAITING = 4  # chunks that may wait for the encoder


class LiveVideo:
  """A fragmented .mp4 (H.264, a fragment a second) of a stream without an end.

  A thread encodes; at most `WAITING` chunks wait for it, then `add` does. Memory is constant, and
  of a process that is killed all but the last second is there.

  Args:
    path: file that ends in .mp4.
    fps: pixel frames per second.
    made_by: the model that generates the video, see `vidstep.data.provenance`; "" for none.

  Raises:
    ValueError: for another suffix.
  """

  def __init__(self, path, fps, *, made_by=""):
    self._path, self._fps, self._made_by = (
      Path(path),
      Fraction(fps).limit_denominator(1000),
      made_by,
    )
    if self._path.suffix != ".mp4":
      raise ValueError(f"Cannot write {self._path.name} while it streams: use a name in .mp4.")
    self._path.parent.mkdir(parents=True, exist_ok=True)
    self._chunks, self._error = queue.Queue(WAITING), None
    self._thread = threading.Thread(target=self._run, name=f"video {self._path.name}", daemon=True)
    self._thread.start()

  def add(self, frames: np.ndarray):
    """Hands over the next frames, uint8 [T, H, W, 3].

    Raises:
      OSError: if the file cannot be written.
    """
    self._check()
    self._chunks.put(frames)

  def close(self):
    """Ends the video and waits until it is written.

    Raises:
      OSError: if the file cannot be written.
    """
    self._chunks.put(None)
    self._thread.join()
    self._check()

  def _check(self):
    if self._error is not None:
      raise OSError(f"{self._path} cannot be written ({self._error}).") from self._error

  def _run(self):
    try:
      self._write()
    except Exception as error:
      self._error = error
      while self._chunks.get() is not None:  # nobody is to wait for an encoder that is gone
        pass

  def _write(self):
    frames = self._chunks.get()
    if frames is None:
      return
    growing = {"movflags": "frag_keyframe+empty_moov", "flush_packets": "1"}
    with av.open(str(self._path), "w", options=growing) as file:
      if self._made_by:
        told = provenance.sentence(self._made_by)
        file.metadata["comment"] = file.metadata["description"] = told
      second = max(1, round(self._fps))
      stream = file.add_stream(
        "libx264", rate=self._fps, options={"crf": "18", "preset": "veryfast", "g": str(second)}
      )
      height, width = frames.shape[1:3]
      stream.height, stream.width, stream.pix_fmt = (
        height + height % 2,
        width + width % 2,
        "yuv420p",
      )
      pad = ((0, height % 2), (0, width % 2), (0, 0))
      while frames is not None:
        for frame in frames:
          frame = np.pad(frame, pad, mode="edge")  # H.264 wants even sides
          file.mux(stream.encode(av.VideoFrame.from_ndarray(frame, format="rgb24")))
        frames = self._chunks.get()
      file.mux(stream.encode())
    if self._made_by:
      provenance.tag_mp4(self._path, self._made_by)
