"""Loops over the tiles of a mask in plain JAX: by query tile, or by key tile.

A tile function sees query-side arrays `[B, H, block_q, ...]`, key-side arrays
`[B, H, block_k, ...]` and what the mask allows between them; None stands for everything.
"""

import dataclasses
import functools
import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from pallas_kernels.attention.mask import HostArray, Mask, TileMap

Arrays = tuple[jax.Array | None, ...]
_UNROLL = 4  # as many tiles are written out; more become a loop
_STRETCH = 1.6  # tiles may be this much wider than the target where they then end with the runs
_FINE = 128  # sequences longer than this many tiles are not tried with smaller ones


@dataclasses.dataclass(frozen=True)
class Sweep:
  """The tiles of one call.

  Attributes:
    mask: who may attend to whom.
    block_q: queries in a tile.
    block_k: keys in a tile.
  """

  mask: Mask
  block_q: int
  block_k: int

  @classmethod
  def plan(cls, mask: Mask, target: int) -> "Sweep":
    """Chooses tile sizes near `target` that cut where the attributes change, if that pays."""
    sizes_q = _sizes(mask.q_len, mask.q_info, target)
    sizes_k = _sizes(mask.k_len, mask.k_info, target)
    return min(
      (cls(mask, bq, bk) for bq in sizes_q for bk in sizes_k), key=lambda s: s._cost(target)
    )

  def _cost(self, target: int) -> float:
    """Time in units of a pair, fitted to a CPU: a tile costs 1,500 more, a mask an eighth.

    Sizes that are no multiple of 16 cost 7 % more, tiles much wider than the target 15 %.
    """
    count, full = self.mask.cost(self.block_q, self.block_k)
    pairs = self.block_q * self.block_k
    odd = 1.07 if self.block_q % 16 or self.block_k % 16 else 1.0
    wide = 1.15 if max(self.block_q, self.block_k) > 1.1 * target else 1.0
    return odd * wide * (count * (pairs + 1500) + (count - full) * pairs / 8)

  @property
  def tiles(self) -> TileMap:
    """The tiles to touch."""
    return self.mask.tiles(self.block_q, self.block_k)

  def by_query(
    self, q: Arrays, k: Arrays, init: Callable, step: Callable, finish: Callable
  ) -> tuple[jax.Array, ...]:
    """For each query tile folds its key tiles: `finish(q, step(q, k, allowed, carry) ...)`.

    Args:
      q: query-side arrays `[B, H, Nq, ...]`; None entries stay None.
      k: key-side arrays `[B, H, Nk, ...]`.
      init: `init(q_tile) -> carry`.
      step: `step(q_tile, k_tile, allowed, carry) -> carry`.
      finish: `finish(q_tile, carry) -> tiles`, a tuple of query-side tiles.

    Returns:
      The finished tiles put together: whole query-side arrays.
    """
    lists = self.tiles[:3]
    q, k = _pad(q, self.block_q), _pad(k, self.block_k)
    allowed = functools.partial(self._allowed, self._fields())

    def row(i):
      tile = _load(q, i, self.block_q)
      body = lambda j, mask, c: step(tile, _load(k, j, self.block_k), mask, c)
      return finish(tile, self._fold(lists, i, lambda j: allowed(i, j), body, init(tile)))

    shapes = jax.eval_shape(lambda: row(0))
    out = tuple(_blank(x, len(lists[1]) * self.block_q) for x in shapes)
    out = self._loop(0, len(lists[1]), lambda i, out: _store(out, row(i), i, self.block_q), out)
    return _cut(out, self.mask.q_len)

  def by_key(self, q: Arrays, k: Arrays, step: Callable) -> tuple[Arrays, Arrays]:
    """Sums `step(q_tile, k_tile, allowed) -> (q_terms, k_terms)` over all tiles.

    Returns:
      Query-side and key-side arrays; a term that is None stays None.
    """
    lists = self.tiles[3:]
    q, k = _pad(q, self.block_q), _pad(k, self.block_k)
    allowed = functools.partial(self._allowed, self._fields())
    tile = lambda i, j: (_load(q, i, self.block_q), _load(k, j, self.block_k))
    q_terms, k_terms = jax.eval_shape(lambda: step(*tile(0, 0), allowed(0, 0)))
    q_sums = jax.tree.map(lambda x: _blank(x, len(self.tiles.k_count) * self.block_q), q_terms)
    k_sums = jax.tree.map(lambda x: _blank(x, len(self.tiles.q_count) * self.block_k), k_terms)

    def column(j, sums):
      q_sums, k_sums = sums

      def body(i, mask, carry):
        q_sums, k_tile = carry
        q_terms, k_terms = step(*tile(i, j), mask)
        old = _load(q_sums, i, self.block_q)
        q_sums = _store(q_sums, jax.tree.map(jnp.add, old, q_terms), i, self.block_q)
        return q_sums, jax.tree.map(jnp.add, k_tile, k_terms)

      zeros = jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), k_terms)
      q_sums, k_tile = self._fold(lists, j, lambda i: allowed(i, j), body, (q_sums, zeros))
      return q_sums, _store(k_sums, k_tile, j, self.block_k)

    q_sums, k_sums = self._loop(0, len(lists[1]), column, (q_sums, k_sums))
    return _cut(q_sums, self.mask.q_len), _cut(k_sums, self.mask.k_len)

  def _fold(self, lists, row, allowed, body, carry):
    """`carry = body(tile, allowed, carry)` over the full, then the partial tiles of a row."""
    tiles, full, count = (_at(x, row) for x in lists)

    def partial(n, carry):
      tile = _at(tiles, n)
      some = allowed(tile)
      # A GPU asks the host which branch to take, and waits: that costs more than a tile.
      if self.mask.static or jax.default_backend() == "gpu":
        return body(tile, some, carry)
      return lax.cond(some.any(), lambda c: body(tile, some, c), lambda c: c, carry)

    carry = self._loop(0, full, lambda n, c: body(_at(tiles, n), None, c), carry)
    return self._loop(full, count, partial, carry)

  def _loop(self, start, stop, body, carry):
    if isinstance(self.tiles.k_count, jax.Array) or self.tiles.k_count.sum() > _UNROLL:
      return lax.fori_loop(start, stop, body, carry)
    for n in range(start, stop):
      carry = body(n, carry)
    return carry

  def _fields(self) -> tuple[Arrays, Arrays]:
    """Padded attributes of queries and keys, each an array `[B or 1, 1, N]` of its own.

    Sliced from one array, they would keep the rule from being vectorised.
    """
    if self.mask.rule is None:
      return (), ()
    q, k = (
      tuple(jnp.asarray(info[:, None, f]) for f in range(info.shape[1]))
      for info in self.mask.fields()
    )
    return _pad(q, self.block_q), _pad(k, self.block_k)

  def _allowed(self, fields: tuple[Arrays, Arrays], i: Any, j: Any) -> jax.Array:
    """The mask in tile `(i, j)`: bool `[B or 1, 1, block_q, block_k]`."""
    keys = j * self.block_k + lax.broadcasted_iota(jnp.int32, (1, 1, 1, self.block_k), 3)
    allowed = keys < self.mask.k_len
    if self.mask.rule is not None:
      q = [x[..., :, None] for x in _load(fields[0], i, self.block_q)]
      k = [x[..., None, :] for x in _load(fields[1], j, self.block_k)]
      allowed = self.mask.rule(q, k) & allowed
    return jnp.broadcast_to(allowed, (*allowed.shape[:2], self.block_q, self.block_k))


def _sizes(length: int, info: Any, target: int) -> set[int]:
  """Tile sizes worth trying: the target, even splits, and what fits the runs of attributes."""
  even = -(-length // -(-length // target))
  sizes = {even, even + -even % 16}
  if isinstance(info, HostArray):
    change = info.value[..., 1:] != info.value[..., :-1]
    cuts = np.flatnonzero(change.reshape(-1, length - 1).any(0)) + 1
    runs = np.diff(cuts, prepend=0, append=length)
    usual, common = int(np.bincount(runs).argmax()), math.gcd(*runs.tolist())
    widest = int(_STRETCH * target)
    sizes |= {target, *(_fit(run, top) for run in (usual, common) for top in (target, widest))}
    if length <= _FINE * target:
      sizes |= {target // 2}
  return {min(size, length) for size in sizes}


def _fit(run: int, target: int) -> int:
  """The largest divisor or multiple of a run's length up to `target`."""
  if run <= target:
    return target // run * run
  return next(size for size in range(target, 0, -1) if run % size == 0)


def _pad(arrays: Any, block: int) -> Any:
  """Zeros up to whole tiles: padded keys are hidden, padded queries add nothing to a gradient."""

  def pad(x):
    missing = -x.shape[2] % block
    return jnp.pad(x, [(0, missing if axis == 2 else 0) for axis in range(x.ndim)])

  return jax.tree.map(pad, arrays)


def _cut(arrays: Any, length: int) -> Any:
  return jax.tree.map(lambda x: x[:, :, :length], arrays)


def _load(arrays: Arrays, i: Any, block: int) -> Arrays:
  load = lambda x: lax.dynamic_slice_in_dim(x, i * block, block, 2)
  return jax.tree.map(load, arrays)


def _store(arrays: Arrays, tiles: Arrays, i: Any, block: int) -> Arrays:
  store = lambda x, tile: lax.dynamic_update_slice_in_dim(x, tile, i * block, 2)
  return jax.tree.map(store, arrays, tiles)


def _blank(tile: jax.ShapeDtypeStruct, length: int) -> jax.Array:
  return jnp.zeros((*tile.shape[:2], length, *tile.shape[3:]), tile.dtype)


def _at(x: Any, i: Any) -> Any:
  return x[i] if isinstance(i, int) else jnp.asarray(x)[i]
