"""The rows of Causal-rCM's Table 4 (arXiv 2606.25473), and what each does chunk by chunk."""

import dataclasses

FIRST = (1.0, 15 / 16, 5 / 6, 5 / 8)  # every row takes four steps for its first chunk


@dataclasses.dataclass(frozen=True)
class Row:
  """One way of making a clip.

  Attributes:
    name: for --rows and for tables.
    chunk: latent frames made together.
    times: falling times of the steps of all chunks but the first, without the final 0.
    noisy: whether later chunks read what the last step computed on its way (noisy context), which
      spares the forward that writes the cache; that of the first chunk is written clean.
    fps: published frames a second, of 81 at 832 x 480 on one H100 (80 GB, SXM), decoding included.
    first: published seconds to the pixels of the first chunk.
    second: published seconds of the second chunk.
  """

  name: str
  chunk: int
  times: tuple[float, ...]
  noisy: bool
  fps: float
  first: float
  second: float

  def steps(self, index: int) -> tuple[float, ...]:
    """Times of the steps of a chunk."""
    return self.times if index else FIRST

  def chunks(self, frames: int) -> int:
    """How many chunks make so many latent frames; the last one may be shorter nowhere.

    Raises:
      ValueError: for frames that chunks do not divide.
    """
    if frames % self.chunk:
      raise ValueError(f"{frames} latent frames are no whole chunks of {self.chunk}.")
    return frames // self.chunk

  def writes(self, index: int, chunks: int) -> bool:
    """Whether a forward of its own writes a chunk to the cache; nobody reads the last one."""
    return index < chunks - 1 and (index == 0 or not self.noisy)

  def forwards(self, frames: int) -> int:
    """Network calls of a clip."""
    n = self.chunks(frames)
    return sum(len(self.steps(i)) + self.writes(i, n) for i in range(n))


TWO, NOISY, ONE = (1.0, 5 / 6), (1.0, 5 / 8), (1.0,)
# In the order in which they are run: what a short loan must bring comes first.
ROWS = {
  row.name: row
  for row in (
    Row("chunk-1", 3, ONE, False, 25.6, 0.57, 0.41),
    Row("frame-1", 1, ONE, False, 15.9, 0.40, 0.23),
    Row("chunk-4", 3, FIRST, False, 17.4, 0.57, 0.64),
    Row("frame-4", 1, FIRST, False, 8.3, 0.40, 0.46),
    Row("chunk-2", 3, TWO, False, 22.2, 0.57, 0.49),
    Row("frame-2", 1, TWO, False, 12.2, 0.40, 0.31),
    Row("chunk-2-noisy", 3, NOISY, True, 25.6, 0.57, 0.41),
    Row("frame-2-noisy", 1, NOISY, True, 15.9, 0.40, 0.23),
  )
}
