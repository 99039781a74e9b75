"""What one page shall be told: short replies in order, and of every stream the newest picture only.

A page acknowledges pictures by their serial number. While too many are under way nothing more is
sent and newer pictures replace older ones here, so a slow reader sees fewer frames, never old ones,
and costs a fixed amount of memory.
"""

import asyncio
import collections
import io
import time
from typing import NamedTuple

import numpy as np
from PIL import Image

from experiments.play_server import protocol

REPLIES = 64  # a page that lets half as many lie is not heard, with all of them it is closed


class Frame(NamedTuple):
  """One frame to be shown at `due` (seconds of time.perf_counter)."""

  due: float
  pixels: np.ndarray
  number: int
  input_id: int
  latency: float
  photon: float


class Outbox:
  """Between those who have something to show and the socket of one page.

  Args:
    quality: of the JPEGs, 1 to 95.
    ahead: pictures of each stream that may be under way without being acknowledged.
    keep: frames of a stream that may wait for their time to be shown.
  """

  def __init__(self, quality: int = 95, ahead: int = 6, keep: int = 64):
    self._quality, self._ahead, self._keep = quality, ahead, keep
    self._replies: collections.deque[str] = collections.deque()
    self._frames: dict[str, collections.deque[Frame]] = {}
    self._news, self._room = asyncio.Event(), asyncio.Event()
    self._sent = self._acked = 0
    self.acked_at = time.monotonic()
    self.dropped = 0

  def reply(self, message: str) -> None:
    """Queues a text message.

    Raises:
      ConnectionError: the page reads nothing of what it is told.
    """
    if len(self._replies) >= REPLIES:
      raise ConnectionError("The page does not read what it is told.")
    self._replies.append(message)
    self._news.set()

  async def room(self) -> None:
    """Waits while many replies lie here unread: who does not listen is not heard."""
    while len(self._replies) >= REPLIES // 2:
      self._room.clear()
      await self._room.wait()

  def show(self, stream: str, frames: list[Frame]) -> None:
    """Adds frames of a stream; those that nobody fetched in time are dropped."""
    waiting = self._frames.setdefault(stream, collections.deque())
    waiting.extend(frames)
    while len(waiting) > self._keep:
      waiting.popleft()
      self.dropped += 1
    self._news.set()

  def forget(self, stream: str) -> None:
    """Drops what waits of a stream that is no more."""
    self._frames.pop(stream, None)

  def acknowledge(self, serial: int) -> None:
    """The page has seen all pictures up to this one."""
    if self._acked < serial <= self._sent:
      self._acked = serial
      self.acked_at = time.monotonic()
      self._news.set()

  @property
  def stalled(self) -> float:
    """Seconds for which pictures have waited for an acknowledgement; 0 if none is under way."""
    return time.monotonic() - self.acked_at if self._acked < self._sent else 0.0

  async def next(self) -> list[str | bytes]:
    """Waits for something to send and takes it."""
    while True:
      self._news.clear()
      messages = [*self._replies, *self._due_pictures()]
      self._replies.clear()
      self._room.set()
      if messages:
        return messages
      due = min((f[0].due for f in self._frames.values() if f), default=None)
      late = None if due is None or self._full() else max(due - time.perf_counter(), 0.0)
      try:
        await asyncio.wait_for(self._news.wait(), late)
      except TimeoutError:
        continue

  def _full(self):
    return self._sent - self._acked >= self._ahead * max(len(self._frames), 1)

  def _due_pictures(self):
    now, messages = time.perf_counter(), []
    for stream, waiting in self._frames.items():
      newest = None
      while waiting and waiting[0].due <= now and not self._full():
        self.dropped += newest is not None
        newest = waiting.popleft()
      if newest is not None:
        messages.append(self._encode(stream, newest))
    return messages

  def _encode(self, stream, frame):
    if self._acked == self._sent:
      self.acked_at = time.monotonic()  # from here on it may be waited for
    self._sent += 1
    return protocol.picture(
      stream, self._sent, frame.number, frame.input_id, frame.latency, frame.photon,
      jpeg(frame.pixels, self._quality),
    )  # fmt: skip


def jpeg(pixels: np.ndarray, quality: int) -> bytes:
  """A uint8 frame [H, W, 3] as JPEG, colour at full resolution: these frames are small."""
  out = io.BytesIO()
  Image.fromarray(pixels).save(out, "JPEG", quality=quality, subsampling=0)
  return out.getvalue()
