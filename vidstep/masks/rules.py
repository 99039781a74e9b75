"""Mask rules: static, hashable functions of a query's and a key's attributes.

A rule is called with fields that broadcast against each other, queries `[..., Nq, 1]` and keys
`[..., 1, Nk]`, and uses nothing but operators, so that one definition serves NumPy on the host,
XLA, and the inside of a kernel. `a & b` is the intersection.
"""

import dataclasses
from typing import Any, Literal

import numpy as np

from vidstep.masks.info import CLEAN, NOISY, TokenInfo

PINNED = 2  # `valid` of a frame that is kept however old it is (a pinned slot of a cache)


@dataclasses.dataclass(frozen=True)
class Rule:
  """Base of all rules."""

  def __call__(self, q: TokenInfo, k: TokenInfo) -> Any:
    """Whether query token `q` may attend to key token `k`: bool, broadcast over both."""
    raise NotImplementedError

  def __and__(self, other: "Rule") -> "Rule":
    rules = [r for rule in (self, other) for r in getattr(rule, "rules", (rule,))]
    rules = tuple(dict.fromkeys(r for r in rules if r != Full()))
    return Intersection(rules) if len(rules) > 1 else rules[0] if rules else Full()


def fields_read(rule: Rule) -> frozenset[str]:
  """Which attributes a rule looks at: those it does not cannot change the mask."""
  read = set()

  class Spy(TokenInfo):
    def __getattribute__(self, name):
      if name in TokenInfo._fields:
        read.add(name)
      return super().__getattribute__(name)

    def __iter__(self):  # whoever unpacks reads everything
      read.update(TokenInfo._fields)
      return super().__iter__()

    def __getitem__(self, index):
      read.update(TokenInfo._fields)
      return super().__getitem__(index)

  rule(Spy(*np.zeros((4, 1, 1), np.int32)), Spy(*np.zeros((4, 1, 1), np.int32)))
  return frozenset(read)


@dataclasses.dataclass(frozen=True)
class Intersection(Rule):
  """Allows what every one of `rules` allows."""

  rules: tuple[Rule, ...]

  def __call__(self, q: TokenInfo, k: TokenInfo) -> Any:
    allowed = self.rules[0](q, k)
    for rule in self.rules[1:]:
      allowed = allowed & rule(q, k)
    return allowed


@dataclasses.dataclass(frozen=True)
class Full(Rule):
  """Everyone attends to everyone: the same as no mask."""

  def __call__(self, q: TokenInfo, k: TokenInfo) -> Any:
    return (q.valid == q.valid) & (k.valid == k.valid)


@dataclasses.dataclass(frozen=True)
class CausalFrames(Rule):
  """Own frame and earlier ones; bidirectional inside a frame."""

  def __call__(self, q: TokenInfo, k: TokenInfo) -> Any:
    return k.frame <= q.frame


@dataclasses.dataclass(frozen=True)
class CausalChunks(Rule):
  """Own chunk and earlier ones; bidirectional inside a chunk."""

  def __call__(self, q: TokenInfo, k: TokenInfo) -> Any:
    return k.chunk <= q.chunk


@dataclasses.dataclass(frozen=True)
class DiffusionForcing(CausalChunks):
  """Block causality over one noisy sequence whose chunks have noise levels of their own."""


@dataclasses.dataclass(frozen=True)
class TeacherForcing(Rule):
  """Packed clean and noisy copies of one video (Causal-rCM, section 4.3).

  clean query -> clean keys of its own and earlier chunks; noisy query -> clean keys of *earlier*
  chunks and noisy keys of its own chunk. Nothing else: no token sees another chunk's noisy copy,
  none sees the clean copy of what it denoises.
  """

  def __call__(self, q: TokenInfo, k: TokenInfo) -> Any:
    past = (q.role == NOISY) & (k.chunk < q.chunk) | (q.role == CLEAN) & (k.chunk <= q.chunk)
    own = (q.role == NOISY) & (k.role == NOISY) & (k.chunk == q.chunk)
    return (k.role == CLEAN) & past | own


@dataclasses.dataclass(frozen=True)
class Window(Rule):
  """The last `size` frames or chunks, the query's own included, and the first `sink` of the video.

  It bounds the past only: intersect it with a causal rule to bound the future.

  Attributes:
    size: how many frames or chunks back, counting the query's own.
    sink: how many at the start of the video stay visible.
    by: what is counted.
    pinned: frames whose `valid` is `PINNED` stay visible, too.
  """

  size: int
  sink: int = 0
  by: Literal["frame", "chunk"] = "frame"
  pinned: bool = False

  def __post_init__(self):
    if self.size < 1 or self.sink < 0 or self.by not in ("frame", "chunk"):
      raise ValueError(f"a window needs size >= 1, sink >= 0, by frame or chunk; got {self}.")

  def __call__(self, q: TokenInfo, k: TokenInfo) -> Any:
    at, key = getattr(q, self.by), getattr(k, self.by)
    seen = key > at - self.size
    if self.sink:
      seen = seen | (key < self.sink)
    return seen | (k.valid == PINNED) if self.pinned else seen


@dataclasses.dataclass(frozen=True)
class Valid(Rule):
  """Real tokens only: padding and empty cache slots neither attend nor are attended to."""

  def __call__(self, q: TokenInfo, k: TokenInfo) -> Any:
    return (q.valid != 0) & (k.valid != 0)


@dataclasses.dataclass(frozen=True)
class Present(Rule):
  """Keys that exist. Queries that do not exist still attend: what a cache may show later."""

  def __call__(self, q: TokenInfo, k: TokenInfo) -> Any:
    return (q.valid == q.valid) & (k.valid != 0)


@dataclasses.dataclass(frozen=True)
class Prefix(Present):
  """`Present`, and a promise: the keys that exist come before all that do not.

  It allows what `Present` allows, but a kernel may count keys instead of looking at each of them.
  """


@dataclasses.dataclass(frozen=True)
class Far(Rule):
  """Keys at a capped distance: the first `sink` frames, and pinned ones from `cap` frames on.

  Splits keys by the position policy "capped" (see `vidstep.models.positions`); `Near` is the rest.
  """

  sink: int
  cap: int

  def __call__(self, q: TokenInfo, k: TokenInfo) -> Any:
    return (k.frame < self.sink) | (k.valid == PINNED) & (q.frame - k.frame >= self.cap)


@dataclasses.dataclass(frozen=True)
class Near(Rule):
  """Keys at their true distance: all that are not `Far`."""

  sink: int
  cap: int

  def __call__(self, q: TokenInfo, k: TokenInfo) -> Any:
    return (k.frame >= self.sink) & ((k.valid != PINNED) | (q.frame - k.frame < self.cap))
