"""Temporal positions of queries and keys under a policy, as sets of keys to attend to."""

import dataclasses
from typing import Any, Literal, NamedTuple

import jax.numpy as jnp
import numpy as np

from vidstep.masks import PINNED, Far, Full, Near, Rule, TokenInfo


@dataclasses.dataclass(frozen=True)
class Positions:
  """Which RoPE positions frames have, a static policy for packed and for cached calls alike.

  RoPE sees nothing but the distance of a query frame q from a key frame k.

  - "absolute": positions are frame numbers.
  - "relative": frame numbers counted from the first query frame: the same distances, and no large
    numbers however long the stream is.
  - "capped": q - k, except from the first `sink` frames of a video, which are `min(q, cap) - k`
    away, and from pinned frames, `min(q - k, cap)` away: however long the stream, no distance is
    one that training has not seen (Infinity-RoPE, 2511.20649, in spirit). A key would need two
    positions, so it is two attentions, near and far, merged by their log-sum-exp; in training too.

  Attributes:
    kind: "absolute", "relative" or "capped".
    sink: frames at the start of a video with a capped distance ("capped" only).
    cap: largest position of a query that looks at them ("capped" only).
  """

  kind: Literal["absolute", "relative", "capped"] = "absolute"
  sink: int = 0
  cap: int | None = None

  def __post_init__(self):
    if self.kind not in ("absolute", "relative", "capped"):
      raise ValueError(f'positions are "absolute", "relative" or "capped", not {self.kind!r}.')
    if (self.kind == "capped") != (self.cap is not None):
      raise ValueError('give a cap with positions "capped", and only with them.')
    if self.cap is not None and self.cap < max(self.sink, 1):
      raise ValueError(f"cap={self.cap} must be at least 1 and the {self.sink} frames of the sink.")


class KeySet(NamedTuple):
  """Keys that one attention reads, and where they and the queries stand.

  Attributes:
    q_position: temporal position of every query frame.
    k_position: of every key frame that is read.
    k_info: attributes of those.
    mask: rule, or None.
    frames: which key frames are read, NumPy; None for all.
  """

  q_position: Any
  k_position: Any
  k_info: TokenInfo
  mask: Rule | None
  frames: np.ndarray | None = None


def key_sets(
  positions: Positions,
  q: TokenInfo,
  k: TokenInfo,
  mask: Rule | None,
  far: np.ndarray | None = None,
) -> list[KeySet]:
  """One attention, or for capped positions two whose keys are disjoint.

  Args:
    positions: the policy.
    q: attributes of the query frames, [F] or [B, F].
    k: attributes of the key frames.
    mask: rule, or None.
    far: numbers of the key frames that may be sink or pinned, None for all: only they are read at
      a capped distance.

  Returns:
    A list of `KeySet`.
  """
  if positions.kind == "absolute":
    return [KeySet(q.frame, k.frame, k, mask)]
  base = q.frame.min(-1, keepdims=True)
  near = KeySet(q.frame - base, k.frame - base, k, mask)
  if positions.kind == "relative":
    return [near]
  split = positions.sink, positions.cap
  mask = mask or Full()
  kept = k if far is None else TokenInfo(*(a[..., far] for a in k))
  near = near._replace(mask=mask & Near(*split))
  if kept.frame.shape[-1] == 0:
    return [near]
  xp = np if q.static and k.static else jnp
  at = xp.minimum(q.frame, positions.cap)
  place = xp.where(kept.frame < positions.sink, kept.frame, 0)
  return [near, KeySet(at, place, kept, mask & Far(*split), far)]


def far_frames(positions: Positions, info: TokenInfo) -> np.ndarray | None:
  """Numbers of the frames that may be sink or pinned, if the host knows; None if it does not."""
  if positions.kind != "capped" or not info.static or info.frame.ndim > 1:
    return None
  return np.flatnonzero((info.frame < positions.sink) | (info.valid == PINNED))
