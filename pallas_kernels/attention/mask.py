"""What a kernel knows of a mask: a rule, the tokens' attributes, and which tiles it must touch.

The attributes are int32 arrays `[B or 1, F, N]`: F numbers a token, one set shared by the batch or
one for each sample. The rule takes the F fields of queries and of keys, broadcast against each
other, and says who attends to whom with nothing but operators. What the numbers mean is the
caller's business.

If the attributes are known on the host, `Mask.tiles` sorts the tiles of the score matrix into
empty, partial and full ones from *runs* of equal attributes: 131,072 tokens in frames of 1,560 have
85 runs, so that the N x N matrix is never formed. If they are traced, every tile is partial.
"""

import dataclasses
import functools
import hashlib
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

Rule = Callable[[Sequence[Any], Sequence[Any]], Any]
_BLOCK = 1 << 22  # pairs of runs evaluated at a time: bounds the host's memory


class TileMap(NamedTuple):
  """Lists of the tiles to touch, by query tile (forward, tangent, dq) and by key tile (dk, dv).

  With Tq query tiles and Tk key tiles, int32 NumPy arrays (traced ones on sharded sequences):

  Attributes:
    k_tiles: `[Tq, W]`; row i lists the key tiles that query tile i needs, *full* ones first, then
      partial ones; from `k_count[i]` on it repeats the last one, which a pipeline need not refetch.
    k_full: `[Tq]`, how many of them are full: every query attends to every key, no rule needed.
    k_count: `[Tq]`, how many there are; 0 if the queries of this tile attend to nothing.
    q_tiles: `[Tk, W']`, the transpose: the query tiles that need key tile j, full ones first.
    q_full: `[Tk]`.
    q_count: `[Tk]`.
  """

  k_tiles: Any
  k_full: Any
  k_count: Any
  q_tiles: Any
  q_full: Any
  q_count: Any


class HostArray:
  """A NumPy array as a static parameter: hashed and compared by content."""

  def __init__(self, value: np.ndarray):
    self.value = np.ascontiguousarray(value)
    self.value.flags.writeable = False
    content = hashlib.sha1(self.value.tobytes()).digest()
    self._key = (self.value.shape, self.value.dtype.str, content)

  def __hash__(self) -> int:
    return hash(self._key)

  def __eq__(self, other: object) -> bool:
    return isinstance(other, HostArray) and self._key == other._key

  def __repr__(self) -> str:
    return f"HostArray{self.value.shape}"


@dataclasses.dataclass(frozen=True)
class Mask:
  """Which of `q_len` queries may attend to which of `k_len` keys.

  Attributes:
    q_len: number of queries.
    k_len: number of keys.
    rule: hashable function of the query's and the key's fields; None allows every pair.
    q_info: `[B or 1, F, q_len]` int32, a `HostArray` or a traced array; None without a rule.
    k_info: the same for the keys.
    at: None; or, on a sequence sharded over devices, which shard of the queries and which of the
      keys this call sees, two traced indices into host arrays `[shards, B or 1, F, N]`.
  """

  q_len: int
  k_len: int
  rule: Rule | None = None
  q_info: HostArray | jax.Array | None = None
  k_info: HostArray | jax.Array | None = None
  at: tuple[Any, Any] | None = None

  @property
  def static(self) -> bool:
    """Whether the host knows the mask: then the tile map is NumPy and has no tile in vain."""
    infos = (self.q_info, self.k_info)
    return self.at is None and not any(isinstance(info, jax.Array) for info in infos)

  @property
  def batch(self) -> int:
    """How many samples the attributes tell apart: 1 or B."""
    infos = [getattr(x, "value", x) for x in (self.q_info, self.k_info) if x is not None]
    return max((x.shape[-3] for x in infos), default=1)

  def fields(self) -> tuple[Any, Any]:
    """Attributes of queries and keys, `[B or 1, F, N]` each: NumPy or traced arrays."""
    q, k = (getattr(info, "value", info) for info in (self.q_info, self.k_info))
    return (q, k) if self.at is None else (jnp.asarray(q)[self.at[0]], jnp.asarray(k)[self.at[1]])

  @property
  def prefix(self) -> bool:
    """Whether all queries see the same keys, and those come first: their number is the mask."""
    return getattr(self.rule, "prefix", False)

  def lengths(self) -> Any:
    """How many keys are seen, of a `prefix` mask: int32 `[B or 1]`."""
    q, k = self.fields()
    allowed = self.rule(
      [q[:, f, :1] for f in range(q.shape[1])], [k[:, f] for f in range(k.shape[1])]
    )
    return jnp.asarray(allowed).sum(-1, dtype=jnp.int32)

  def tiles(self, block_q: int, block_k: int) -> TileMap:
    """The tiles of size `block_q x block_k` that hold an allowed pair.

    A tile that sticks out past the last key or query is never full, so that whoever pads
    evaluates bounds only where it evaluates the rule. With traced attributes, every tile is listed
    as partial; on a sharded sequence, the shard's lists are picked on the device.
    """
    if self.static:
      return _tile_map(self, block_q, block_k)
    if self.at is None:
      return self._all_partial(block_q, block_k)
    shards = _shard_maps(dataclasses.replace(self, at=None), block_q, block_k)
    return TileMap(*(jnp.asarray(x)[self.at] for x in shards))

  def cost(self, block_q: int, block_k: int) -> tuple[int, int]:
    """How many tiles of this size are touched, and how many of those are full; of all shards."""
    if not self.static and self.at is None:
      return self._all_partial(block_q, block_k).k_count.sum(), 0
    shards = [self] if self.static else _shards(dataclasses.replace(self, at=None))
    touched, full = zip(*(_kinds(mask, block_q, block_k) for mask in shards), strict=True)
    return sum(int(x.sum()) for x in touched), sum(int(x.sum()) for x in full)

  def _all_partial(self, block_q: int, block_k: int) -> TileMap:
    shape = (-(-self.q_len // block_q), -(-self.k_len // block_k))
    return _lists(np.ones(shape, bool), np.zeros(shape, bool))

  def pairs(self) -> int:
    """The exact number of allowed pairs, summed over the batch of the attributes.

    Raises:
      ValueError: for traced attributes.
    """
    if not self.static:
      raise ValueError("pairs are counted on the host: give the attributes as NumPy arrays.")
    return int(tile_counts(self, self.q_len, self.k_len).sum())

  def coverage(self, block_q: int, block_k: int) -> np.ndarray:
    """The share of allowed pairs in every tile: float64 `[Tq, Tk]`, for pictures."""
    area = np.outer(_sizes(self.q_len, block_q), _sizes(self.k_len, block_k))
    return tile_counts(self, block_q, block_k) / (self.batch * area)

  def dense(self) -> Any:
    """The rule on all pairs: bool `[B or 1, q_len, k_len]`; None without a rule."""
    if self.rule is None:
      return None
    q, k = ([x[:, i] for i in range(x.shape[1])] for x in self.fields())
    return self.rule([f[:, :, None] for f in q], [f[:, None, :] for f in k])


def tile_counts(mask: Mask, block_q: int, block_k: int) -> np.ndarray:
  """Allowed pairs in every tile: int64 `[Tq, Tk]`, summed over the batch of the attributes."""
  tiles_q, tiles_k = -(-mask.q_len // block_q), -(-mask.k_len // block_k)
  if mask.rule is None:
    return np.outer(_sizes(mask.q_len, block_q), _sizes(mask.k_len, block_k))
  counts = np.zeros((tiles_q, tiles_k), np.int64)
  q_info, k_info = mask.q_info.value, mask.k_info.value
  for b in range(mask.batch):
    q_runs = _runs(q_info[b % len(q_info)], block_q)
    k_size, k_tile, k_fields = _runs(k_info[b % len(k_info)], block_k)
    rows = max(_BLOCK // len(k_size), 1)
    for at in range(0, len(q_runs[0]), rows):
      size, tile, fields = (x[..., at : at + rows] for x in q_runs)
      allowed = mask.rule(list(fields[:, :, None]), list(k_fields[:, None, :]))
      allowed = np.broadcast_to(allowed, (len(size), len(k_size)))
      # Sum over the runs of each key tile, then over the runs of each query tile.
      by_key = np.add.reduceat(np.where(allowed, k_size, 0), _firsts(k_tile), axis=1)
      by_both = np.add.reduceat(by_key * size[:, None], _firsts(tile), axis=0)
      counts[tile[0] : tile[-1] + 1] += by_both
  return counts


@functools.lru_cache(maxsize=256)
def _tile_map(mask: Mask, block_q: int, block_k: int) -> TileMap:
  return _lists(*_kinds(mask, block_q, block_k))


def _kinds(mask: Mask, block_q: int, block_k: int) -> tuple[np.ndarray, np.ndarray]:
  """Which tiles hold an allowed pair, and which nothing else: bool `[Tq, Tk]` each."""
  counts = tile_counts(mask, block_q, block_k)
  return counts > 0, counts == mask.batch * block_q * block_k


def _shards(mask: Mask) -> list[Mask]:
  """The masks of every shard of queries with every shard of keys."""
  q_infos, k_infos = (list(map(HostArray, info.value)) for info in (mask.q_info, mask.k_info))
  return [dataclasses.replace(mask, q_info=q, k_info=k) for q in q_infos for k in k_infos]


@functools.lru_cache(maxsize=64)
def _shard_maps(mask: Mask, block_q: int, block_k: int) -> TileMap:
  """Tile maps of every shard of queries with every shard of keys: arrays `[Sq, Sk, ...]`."""
  shards = [_tile_map(shard, block_q, block_k) for shard in _shards(mask)]
  shape = (len(mask.q_info.value), len(mask.k_info.value))

  def stack(*parts):  # lists are made as wide as the widest, by repeating their last tile
    width = max(x.shape[-1] for x in parts)
    pad = lambda x: np.pad(x, [(0, 0)] * (x.ndim - 1) + [(0, width - x.shape[-1])], "edge")
    return np.stack([pad(x) for x in parts]).reshape(*shape, *parts[0].shape[:-1], width)

  return TileMap(*map(stack, *shards))


def _lists(needed: np.ndarray, full: np.ndarray) -> TileMap:
  return TileMap(*_rows(needed, full), *_rows(needed.T, full.T))


def _rows(needed: np.ndarray, full: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
  count = needed.sum(1)
  order = np.argsort(np.where(full, 0, np.where(needed, 1, 2)), axis=1, kind="stable")
  last = np.maximum(count - 1, 0)[:, None]
  slots = np.arange(max(count.max(initial=0), 1))[None, :]
  lists = np.take_along_axis(order, np.minimum(slots, last), axis=1)
  return lists.astype(np.int32), full.sum(1).astype(np.int32), count.astype(np.int32)


def _sizes(length: int, block: int) -> np.ndarray:
  starts = np.arange(0, length, block, dtype=np.int64)
  return np.minimum(block, length - starts)


def _runs(info: np.ndarray, block: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
  """Cuts tokens `[F, N]` where an attribute changes or a tile begins: sizes, tiles, fields."""
  new = np.any(info[:, 1:] != info[:, :-1], axis=0)
  start = np.concatenate([[0], np.flatnonzero(new) + 1, np.arange(0, info.shape[1], block)])
  start = np.unique(start)
  size = np.diff(start, append=info.shape[1])
  return size, start // block, info[:, start]


def _firsts(tile: np.ndarray) -> np.ndarray:
  """Where each tile's first run stands."""
  return np.flatnonzero(np.diff(tile, prepend=-1))
