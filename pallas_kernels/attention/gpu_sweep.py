"""The loop of the Hopper kernels: fold the tiles of a mask, one thread block for each row of tiles.

A block has three warpgroups. One only loads: by the copy engine (TMA), tiles of *columns* into a
ring of `stages` slots of shared memory, in the order of the mask's list, so that empty tiles are
never touched. Two compute: each keeps 64 *rows* in shared memory, what it accumulates in registers,
and multiplies with WGMMA. Rows are queries and columns keys for `o` and `dq`; for `dk` and `dv` it
is the other way round and every matrix of scores is transposed.

Barriers: `ready[slot]` counts the copies of a slot, `free[slot]` the two warpgroups done with it,
`begun[w]` the copies of warpgroup w's rows, `again[w]` those it asks for itself after the loop.
Both warpgroups visit every tile of the list, so that the ring never starves; a row without tiles
skips the loop and finishes with what its carry began with.

Ragged ends cost no copy: the engine fills what lies outside an array with zeros and drops what is
stored there. Rows that stick out are discarded so; keys that stick out are hidden by their index.
"""

import dataclasses
import math
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.experimental import pallas as pl
from jax.experimental.pallas import mosaic_gpu as plgpu
from jax.extend.core import Var

from pallas_kernels.attention.mask import Mask

Arrays = tuple[jax.Array | None, ...]
ROWS = 64  # of a warpgroup: the M of WGMMA
_WORKERS = 2
_BLOCK = _WORKERS * ROWS
_STAGES = 4  # at most: slots of the ring
_SHARED = 220 << 10  # bytes for data, of 227 kB a block may have; the rest is alignment
_GROUP = 8  # rows of a swizzled tile: the copy engine counts in these along a sequence
# Registers a thread: 128 that load and 256 that compute share 65,536.
_LOADING, _COMPUTING = 24, 240


@dataclasses.dataclass(frozen=True)
class Sweep:
  """The tiles of one call.

  Attributes:
    mask: who may attend to whom.
    block: columns in a tile, a multiple of 64.
    by_key: whether rows are keys and columns queries.
    interpret: what `plgpu.kernel` takes: None compiles.
  """

  mask: Mask
  block: int
  by_key: bool
  interpret: Any

  def fold(
    self,
    rows: Arrays,
    columns: Arrays,
    out: Sequence[tuple[int, jnp.dtype]],
    carry: Sequence[tuple[int, float]],
    step: Callable,
    finish: Callable,
    late: Arrays = (),
  ) -> tuple[jax.Array, ...]:
    """For each row tile folds its column tiles: `finish(late, step(rows, columns, ...) ...)`.

    Args:
      rows: arrays `[B, N, H, D]`, or `[B, H, N]` for statistics; None entries stay None. `step`
        sees a reference `[64, D]` to shared memory; of statistics a function that gives them
        along the rows of the tile, `[64, block]`.
      columns: the same for the other side: references `[block, D]`, statistics along columns.
      out: width and dtype of the outputs, which are `[B, N, H, width]`, `[B, H, N]` for width 1.
      carry: width and initial value of what a row accumulates in float32: `[64, width]` or `[64]`.
      step: `step(rows, columns, allowed, carry) -> carry`, `allowed` gives bool `[64, block]` when
        called, or is None.
      finish: `finish(late, carry) -> out`.
      late: arrays `[B, N, H, D]` of the rows' side that only `finish` needs, as values `[64, D]`.
    """
    batch, length, heads, dim = rows[0].shape
    row_fields, column_fields = self._fields()[:: -1 if self.by_key else 1]
    row_side, late = _pad(((rows, row_fields), late), _BLOCK)
    column_side = _pad((columns, column_fields), self.block)
    inputs, tree = jax.tree.flatten((self._steps(), row_side, column_side, late))

    slots = lambda side, *shape: jax.tree.map(
      lambda x: plgpu.SMEM((*shape, dim) if x.ndim == 4 else shape, x.dtype), side
    )
    row_slots = slots(row_side, _WORKERS, ROWS)
    # Outputs go through the buffers of the rows, the first ones, and what comes late through the
    # last ones: apart, since a thread may store while another still reads.
    tokens = sum(width > 1 for width, _ in out) + len(late) - sum(map(_tokens, rows))
    extra = [plgpu.SMEM((_WORKERS, ROWS, dim), rows[0].dtype) for _ in range(tokens)]
    statistics = [plgpu.SMEM((_WORKERS, ROWS), jnp.float32) for width, _ in out if width == 1]
    spare = _SHARED - sum(map(_bytes, jax.tree.leaves((row_slots, extra, statistics))))
    stages = spare // sum(map(_bytes, jax.tree.leaves(slots(column_side, self.block))))
    stages = min(stages, _STAGES)
    scratch = [
      row_slots,
      slots(column_side, stages, self.block),
      extra,
      statistics,
      plgpu.Barrier(num_arrivals=len(jax.tree.leaves(row_side)), num_barriers=_WORKERS),
      plgpu.Barrier(num_arrivals=len(jax.tree.leaves(column_side)), num_barriers=stages),
      plgpu.Barrier(num_arrivals=_WORKERS, num_barriers=stages),
      plgpu.Barrier(num_arrivals=max(len(late), 1), num_barriers=_WORKERS),
    ]

    def kernel(*refs):
      n = len(inputs) + len(out)
      arrays = jax.tree.unflatten(tree, refs[: len(inputs)])
      steps, row_side, column_side, late = arrays
      row_slots, ring, extra, statistics, begun, ready, free, again = refs[n:]
      worker, line = lax.axis_index("warpgroup"), lax.axis_index("row")
      row, full, count = (steps[line, i] for i in range(3))
      tile = lambda n: steps[line, 3 + n]

      def copy(side, slots, start, size, i, barrier):
        """Asks for the tile `[start, start + size)` of every array of a side, into slot i."""
        for x, slot in zip(jax.tree.leaves(side), jax.tree.leaves(slots), strict=True):
          plgpu.copy_gmem_to_smem(_part(x, start, size), slot.at[i], barrier.at[i])

      @pl.when(worker == _WORKERS)
      def _():
        plgpu.set_max_registers(_LOADING, action="decrease")
        for w in range(_WORKERS):
          copy(row_side, row_slots, row * _BLOCK + w * ROWS, ROWS, w, begun)

        def load(n, _):
          i = lax.rem(n, stages)
          pl.when(n >= stages)(lambda: plgpu.barrier_wait(free.at[i]))
          copy(column_side, ring, tile(n) * self.block, self.block, i, ready)

        lax.fori_loop(0, count, load, None)

      @pl.when(worker < _WORKERS)
      def _():
        plgpu.set_max_registers(_COMPUTING, action="increase")
        start = row * _BLOCK + worker * ROWS
        plgpu.barrier_wait(begun.at[worker])
        operands, fields = jax.tree.map(lambda ref: ref.at[worker], row_slots)
        operands = [self._operand(ref, 0) for ref in operands]

        def visit(n, carry, partial):
          i = lax.rem(n, stages)
          plgpu.barrier_wait(ready.at[i])
          columns, column_fields = jax.tree.map(lambda ref: ref.at[i], ring)
          columns = [self._operand(ref, 1) for ref in columns]
          allowed = lambda: self._allowed(fields, column_fields, tile(n))
          carry = tuple(step(operands, columns, allowed if partial else None, carry))
          if self.interpret is not None:
            plgpu.commit_smem()  # its race detector wants a fence between reading and reloading
          plgpu.barrier_arrive(free.at[i])
          return carry

        sums = tuple(
          jnp.full((ROWS, n) if n > 1 else (ROWS,), value, jnp.float32) for n, value in carry
        )
        sums = lax.fori_loop(0, full, lambda n, sums: visit(n, sums, False), sums)
        if self._may_be_partial:
          sums = lax.fori_loop(full, count, lambda n, sums: visit(n, sums, True), sums)

        buffers = [ref for ref in jax.tree.leaves(row_slots[0]) if len(ref.shape) == 3] + extra
        asked = buffers[len(buffers) - len(late) :]
        copy(late, asked, start, ROWS, worker, again)
        if late:
          plgpu.barrier_wait(again.at[worker])
        results = finish([ref.at[worker][...] for ref in asked], sums)
        self._store(results, refs[len(inputs) : n], buffers, statistics, start, worker)

    up = lambda multiple: length + -length % multiple
    shape = lambda n: (batch, up(_GROUP), heads, n) if n > 1 else (batch, heads, up(_BLOCK))
    results = plgpu.kernel(
      kernel,
      out_type=[jax.ShapeDtypeStruct(shape(width), dtype) for width, dtype in out],
      scratch_types=scratch,
      grid=(batch, heads, up(_BLOCK) // _BLOCK),
      grid_names=("batch", "head", "row"),  # the last runs fastest: blocks at work share columns
      num_threads=_WORKERS + 1,
      thread_name="warpgroup",
      compiler_params=plgpu.CompilerParams(
        approx_math=True, lowering_semantics=plgpu.LoweringSemantics.Warpgroup
      ),
      interpret=self.interpret,
    )(*inputs)
    return tuple(x[:, :length] if x.ndim == 4 else x[:, :, :length] for x in results)

  @property
  def _may_be_partial(self) -> bool:
    return self.mask.rule is not None or self._hides_keys

  @property
  def _hides_keys(self) -> bool:
    """Whether the last tile of columns has keys that do not exist. Queries add nothing there."""
    return not self.by_key and self.mask.k_len % self.block > 0

  def _steps(self) -> jax.Array:
    """For each row tile: its index, how many of its tiles are full, how many there are, the list.

    Longest rows first, so that the last blocks to finish are short ones.
    """
    sizes = (self.block, _BLOCK) if self.by_key else (_BLOCK, self.block)
    tiles = self.mask.tiles(*sizes)
    lists, full, count = tiles[3:] if self.by_key else tiles[:3]
    if not self._may_be_partial:
      full = count  # queries that stick out make a tile partial, but need no rule
    xp = np if isinstance(lists, np.ndarray) else jnp
    order = xp.argsort(-count, stable=True)
    head = xp.stack([order, full[order], count[order]], 1)
    return jnp.asarray(xp.concatenate([head, lists[order]], 1), jnp.int32)

  def _fields(self) -> tuple[Arrays, Arrays]:
    """What the rule reads of queries and of keys, `[B or 1, 1, N]` each; None what it does not."""
    if self.mask.rule is None:
      return (), ()
    infos = self.mask.fields()
    scalars = [[0] * info.shape[1] for info in infos]
    trace = jax.make_jaxpr(lambda *sides: self.mask.rule(*sides))(*scalars).jaxpr
    used = {v for eqn in trace.eqns for v in eqn.invars if isinstance(v, Var) and not _vain(eqn)}
    read = iter([v in used for v in trace.invars])
    pick = lambda info: tuple(
      jnp.asarray(info[:, f])[:, None] if next(read) else None for f in range(info.shape[1])
    )
    return pick(infos[0]), pick(infos[1])

  def _allowed(self, row_fields: Any, column_fields: Any, tile: Any) -> jax.Array | None:
    """The mask in this tile: bool `[64, block]`."""
    allowed = None
    if self.mask.rule is not None:
      sides = [
        [None if ref is None else self._operand(ref, axis)() for ref in side]
        for axis, side in enumerate((row_fields, column_fields))
      ]
      allowed = self.mask.rule(*sides[:: -1 if self.by_key else 1])
      allowed = jnp.broadcast_to(allowed, (ROWS, self.block))  # a rule that reads nothing says True
    if self._hides_keys:
      at = tile * self.block + lax.broadcasted_iota(jnp.int32, (ROWS, self.block), 1)
      inside = at < self.mask.k_len
      allowed = inside if allowed is None else allowed & inside
    return allowed

  def _operand(self, ref: Any, axis: int) -> Any:
    """Tokens stay in shared memory for WGMMA; numbers, one a row or a column, fill the tile.

    They are loaded by a call: one a column takes 16 registers, and each is worth waiting for.
    """
    if ref is None or len(ref.shape) == 2:
      return ref
    return lambda: lax.broadcast_in_dim(ref[...], (ROWS, self.block), (axis,))

  def _store(self, results, outs, buffers, statistics, start, worker):
    buffers, statistics = iter(buffers), iter(statistics)
    slots = [next(buffers if x.ndim == 2 else statistics).at[worker] for x in results]
    for slot, value in zip(slots, results, strict=True):
      slot[...] = value.astype(slot.dtype)
    plgpu.commit_smem()
    for slot, out in zip(slots, outs, strict=True):
      plgpu.copy_smem_to_gmem(slot, _part(out, start, ROWS))
    plgpu.wait_smem_to_gmem(0)


def _vain(eqn: Any) -> bool:
  """Whether a rule compares a field with itself, to give its answer a shape.

  The compiler knows the answer and drops the comparison, but not the load that it makes useless:
  a register array whose layout nothing determines, which ends its search for layouts.
  """
  return eqn.primitive is lax.eq_p and eqn.invars[0] is eqn.invars[1]


def _bytes(slot: Any) -> int:
  return math.prod(slot.shape) * jnp.dtype(slot.dtype).itemsize


def _tokens(x: jax.Array | None) -> bool:
  return x is not None and x.ndim == 4


def _pad(side: Any, block: int) -> Any:
  """Tokens up to a multiple of 8, mostly no copy; statistics and attributes up to whole tiles."""

  def pad(x):
    axis, multiple = (1, _GROUP) if x.ndim == 4 else (2, block)
    missing = -x.shape[axis] % multiple
    widths = [(0, missing if n == axis else 0) for n in range(x.ndim)]
    return jnp.pad(x, widths) if missing else x

  return jax.tree.map(pad, side)


def _part(x: Any, start: Any, size: int) -> Any:
  """This block's tile of an array `[B, N, H, D]` or `[B or 1, H or 1, N]`."""
  head_axis = 2 if len(x.shape) == 4 else 1
  batch = lax.axis_index("batch") if x.shape[0] > 1 else 0
  head = lax.axis_index("head") if x.shape[head_axis] > 1 else 0
  rows = pl.ds(start, size)
  return x.at[batch, rows, head] if head_axis == 2 else x.at[batch, head, rows]
