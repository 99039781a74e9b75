"""The shapes that are timed: Wan, the Doom model, and small ones that two cores can run.

Kernels know no masks by name, so those that are timed are written here, rules over two fields of a
token: its chunk, and whether it is noisy. `tests/test_bench.py` holds them to `vidstep.masks`.
"""

import dataclasses
import functools
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from pallas_kernels.attention import HostArray, Mask

FRAMES = 21  # latent frames of a Wan clip
WAN_TOKENS = 1560  # tokens of one: 480 x 832 pixels are 60 x 104 latents, patches of 2 x 2
TEXT = 512
# Tokens of a frame at about 4k, 8k and 16k packed tokens: a 16th, an 8th and a 4th of Wan's.
SMALL_TOKENS = {"4k": 98, "8k": 195, "16k": 390}


@dataclasses.dataclass(frozen=True)
class Shape:
  """One attention call.

  Attributes:
    name: what `--shapes` calls it.
    family: shapes of one family are timed in turns and compared with its full mask.
    batch: samples.
    heads: heads.
    dim: head dim.
    build: makes the mask, which knows the lengths.
  """

  name: str
  family: str
  batch: int
  heads: int
  dim: int
  build: Callable[[], Mask]

  @functools.cached_property
  def mask(self) -> Mask:
    """Who attends to whom."""
    return self.build()

  @functools.cached_property
  def pairs(self) -> int:
    """Attended pairs of a query and a key, over batch and heads."""
    return self.mask.pairs() * self.batch // self.mask.batch * self.heads

  @property
  def density(self) -> float:
    """The share of all pairs that is attended."""
    return self.pairs / (self.batch * self.heads * self.mask.q_len * self.mask.k_len)


# --- rules over (chunk, noisy) ----------------------------------------------------------------
def causal(q: Sequence[Any], k: Sequence[Any]) -> Any:
  """Own chunk and earlier ones."""
  return k[0] <= q[0]


def teacher_forcing(q: Sequence[Any], k: Sequence[Any]) -> Any:
  """Clean sees clean up to its own chunk; noisy sees its own chunk and clean before it."""
  (q_chunk, q_noisy), (k_chunk, k_noisy) = q, k
  clean = (q_noisy == 0) & (k_noisy == 0) & (k_chunk <= q_chunk)
  past = (q_noisy == 1) & (k_noisy == 0) & (k_chunk < q_chunk)
  own = (q_noisy == 1) & (k_noisy == 1) & (k_chunk == q_chunk)
  return clean | past | own


@dataclasses.dataclass(frozen=True)
class CausalWindow:
  """Causal, the last `size` chunks only, and always the first `sink`."""

  size: int
  sink: int

  def __call__(self, q: Sequence[Any], k: Sequence[Any]) -> Any:
    return (k[0] <= q[0]) & ((k[0] > q[0] - self.size) | (k[0] < self.sink))


# --- masks ------------------------------------------------------------------------------------
def full(q_len: int, k_len: int | None = None) -> Mask:
  """Everyone attends to everyone."""
  return Mask(q_len, q_len if k_len is None else k_len)


def by_chunk(rule: Callable, frames: int, tokens: int, chunk: int = 1) -> Mask:
  """A rule over `frames` noisy frames in chunks."""
  chunks = np.arange(frames) // chunk
  return _mask(rule, chunks, np.ones_like(chunks), tokens)


def packed(frames: int, tokens: int, chunk: int) -> Mask:
  """Teacher forcing over `[clean | noisy]`, the last clean chunk left out: nothing reads it."""
  chunks = np.arange(frames) // chunk
  clean = chunks[chunks != chunks[-1]]
  noisy = np.concatenate([np.zeros_like(clean), np.ones_like(chunks)])
  return _mask(teacher_forcing, np.concatenate([clean, chunks]), noisy, tokens)


def _mask(rule: Callable, chunks: np.ndarray, noisy: np.ndarray, tokens: int) -> Mask:
  fields = np.repeat(np.stack([chunks, noisy])[None].astype(np.int32), tokens, axis=2)
  info = HostArray(fields)
  return Mask(fields.shape[2], fields.shape[2], rule, info, info)


# --- the list ---------------------------------------------------------------------------------
def _wan(family: str, heads: int) -> list[Shape]:
  clip = FRAMES * WAN_TOKENS
  masks = {
    "": lambda: full(clip),
    "-causal-c3": lambda: by_chunk(causal, FRAMES, WAN_TOKENS, 3),
    "-tf-c1": lambda: packed(FRAMES, WAN_TOKENS, 1),
    "-tf-c3": lambda: packed(FRAMES, WAN_TOKENS, 3),
    "-cache": lambda: full(3 * WAN_TOKENS, clip),  # the last chunk of a stream against its cache
    "-text": lambda: full(clip, TEXT),
  }
  return [Shape(family + name, family, 1, heads, 128, build) for name, build in masks.items()]


def _small(size: str, tokens: int) -> list[Shape]:
  frames = 2 * FRAMES - 1  # as many as teacher forcing by frames packs
  family = f"small-{size}"
  masks = {
    "full": lambda: full(frames * tokens),
    "causal-c1": lambda: by_chunk(causal, frames, tokens),
    "causal-c3": lambda: by_chunk(causal, frames, tokens, 3),
    "window": lambda: by_chunk(CausalWindow(4, 1), frames, tokens),
    "tf-c1": lambda: packed(FRAMES, tokens, 1),
    "tf-c3": lambda: packed(FRAMES, tokens, 3),
  }
  return [Shape(f"{family}-{name}", family, 1, 1, 128, build) for name, build in masks.items()]


_ALL = [
  *_wan("wan-1.3b", 12),
  *_wan("wan-14b", 40),
  # configs/doom/teacher.py, "cpu" and "gpu": all tokens of a batch of clips.
  Shape("doom-cpu", "doom-cpu", 8, 3, 64, lambda: full(8 * 16)),
  Shape("doom-gpu", "doom-gpu", 64, 10, 64, lambda: full(16 * 64)),
  *(shape for size, tokens in SMALL_TOKENS.items() for shape in _small(size, tokens)),
]
SHAPES = {shape.name: shape for shape in _ALL}
