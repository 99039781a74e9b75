"""Prompts of a dataset that is being made, embedded ahead of time."""

import hashlib
import json
from collections.abc import Callable, Sequence

import numpy as np

from vidstep.data.latents import with_padding, without_padding

AHEAD = 64  # items


def fingerprint(values) -> str:
  """Sixteen hexadecimal digits that JSON values share with their equals only."""
  return hashlib.sha256(json.dumps(values).encode()).hexdigest()[:16]


class Texts:
  """Embedded prompts of items, read ahead: a text encoder is large, and let go after each use.

  Args:
    embed: prompts -> float32 [N, L, Dt], zero beyond the end of each.
    prompt: item -> its prompt.
    count: number of items.
    negative: what guidance takes for no prompt.
  """

  def __init__(self, embed: Callable, prompt: Callable[[int], str], count: int, negative: str):
    self._embed, self.prompt, self._count, self.negative = embed, prompt, count, negative
    self._kept, self.tokens = {}, None

  def __call__(self, items: Sequence[int]) -> np.ndarray:
    """Float32 [N, L, Dt] of so many items."""
    self._read([self.prompt(item) for item in items], items)
    return np.stack([with_padding(self._kept[self.prompt(i)], self.tokens) for i in items])

  def null(self) -> np.ndarray:
    """Float32 [L, Dt] of the negative prompt."""
    self._read([self.negative], range(0))
    return with_padding(self._kept[self.negative], self.tokens)

  def _read(self, prompts, items):
    if all(prompt in self._kept for prompt in prompts):
      return
    ahead = range(items[0], min(self._count, items[0] + AHEAD)) if len(items) else ()
    wanted = dict.fromkeys([self.negative, *prompts, *(self.prompt(i) for i in ahead)])
    new = [prompt for prompt in wanted if prompt not in self._kept]
    embedded = self._embed(new)
    self.tokens = embedded.shape[1]
    kept = {p: self._kept[p] for p in wanted if p in self._kept}
    self._kept = kept | {p: without_padding(t) for p, t in zip(new, embedded, strict=True)}
