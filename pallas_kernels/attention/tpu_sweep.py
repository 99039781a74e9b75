"""The loop of the TPU kernels: fold the tiles of a mask, one grid step for each tile touched.

The grid is `(B, H, steps)`, its last dimension sequential. What a step does is one scalar,
prefetched: row tile, column tile, and whether the step opens the row, closes it, computes, and may
skip the rule. Empty tiles have no step, so that nothing of them is loaded or computed. *Rows* stay
in fast memory while *columns* stream past, fetched ahead by the pipeline: queries and keys for
`o` and `dq`, keys and queries for `dk` and `dv`, where every score matrix is transposed.
"""

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu

from pallas_kernels.attention.mask import Mask, TileMap

Arrays = tuple[jax.Array | None, ...]
LANES = 128  # a tile of the vector unit is 8 x 128
_FIRST, _LAST, _LIVE, _FULL = 1, 2, 4, 8
_COLUMN_AT, _ROW_AT = 4, 17  # bits: 4 of flags, 13 of the column tile, 14 of the row tile
_MAX_TILES = 1 << 13
_MAX_STEPS = 1 << 17  # 512 kB, half of the scalar memory
_STEP_PAIRS = 200_000  # a grid step costs about a third of a microsecond: that many pairs
_VMEM = 32 << 20  # bytes, of 64 (v5p) or 128 MB (v5e, v6e)


@dataclasses.dataclass(frozen=True)
class Sweep:
  """The tiles of one call.

  Attributes:
    mask: who may attend to whom.
    block_q: queries in a tile, a multiple of 128.
    block_k: keys in a tile, a multiple of 128.
    by_key: whether rows are keys and columns queries.
    interpret: what `pallas_call` takes: False compiles.
  """

  mask: Mask
  block_q: int
  block_k: int
  by_key: bool
  interpret: Any

  @classmethod
  def plan(cls, mask: Mask, sizes: Sequence[int], by_key: bool, interpret: Any) -> "Sweep":
    """Chooses the tile sizes, of those given, that compute the fewest pairs in the fewest steps."""
    fit = lambda n: {min(size, -(-n // LANES) * LANES) for size in sizes}
    options = [
      cls(mask, block_q, block_k, by_key, interpret)
      for block_q in sorted(fit(mask.q_len))
      for block_k in sorted(fit(mask.k_len))
    ]
    return min(options, key=cls._cost) if mask.static else options[-1]

  def refuses(self) -> str | None:
    """Why the list of steps cannot be held or packed, or None."""
    rows, width = self._lists[0].shape
    if rows * width > _MAX_STEPS:
      return f"{rows} x {width} tiles are more than the scalar memory holds ({_MAX_STEPS})"
    longest = max(self.mask.q_len / self.block_q, self.mask.k_len / self.block_k)
    return f"more than {_MAX_TILES} tiles along a sequence" if longest > _MAX_TILES else None

  @property
  def blocks(self) -> tuple[int, int]:
    """Sizes of a row tile and a column tile."""
    return (self.block_k, self.block_q) if self.by_key else (self.block_q, self.block_k)

  @property
  def _lists(self) -> tuple[Any, Any, Any]:
    tiles: TileMap = self.mask.tiles(self.block_q, self.block_k)
    return tiles[3:] if self.by_key else tiles[:3]

  def _cost(self) -> int:
    return int(self._lists[2].sum()) * (self.block_q * self.block_k + _STEP_PAIRS)

  def fold(
    self,
    rows: Arrays,
    columns: Arrays,
    out: Sequence[tuple[int, jnp.dtype]],
    carry: Sequence[tuple[int, float]],
    step: Callable,
    finish: Callable,
  ) -> tuple[jax.Array, ...]:
    """For each row tile folds its column tiles: `finish(rows, step(rows, columns, ...) ...)`.

    Args:
      rows: arrays `[B, H, N, D]`, or `[B, H, N]` for row statistics; None entries stay None.
        A tile is `[block, D]`; of statistics `[block, 1]`.
      columns: the same for the other side; a tile of statistics is `[1, block]`.
      out: width and dtype of the outputs, which are `[B, H, N, width]`, `[B, H, N]` for width 1.
      carry: width and initial value of what a row accumulates in float32.
      step: `step(rows, columns, allowed, carry) -> carry`, `allowed` bool `[row, column]` or None.
      finish: `finish(rows, carry) -> out`, each `[block, width]`.
    """
    row_len, column_len = self.mask.q_len, self.mask.k_len
    row_info, column_info = self.mask.q_info, self.mask.k_info
    if self.by_key:
      row_len, column_len, row_info, column_info = column_len, row_len, column_info, row_info
    row_block, column_block = self.blocks
    row = lambda steps, n: steps[n] >> _ROW_AT
    column = lambda steps, n: (steps[n] >> _COLUMN_AT) & (_MAX_TILES - 1)

    row_side, row_specs = _operands(rows, row_info, row_block, row)
    column_side, column_specs = _operands(columns, column_info, column_block, column)
    inputs, tree = jax.tree.flatten((row_side, column_side))

    def kernel(steps, *refs):
      n = pl.program_id(2)
      row_refs, column_refs = jax.tree.unflatten(tree, refs[: len(inputs)])
      out_refs = refs[len(inputs) : len(inputs) + len(out)]
      carry_refs = refs[len(inputs) + len(out) :]

      @pl.when(steps[n] & _FIRST != 0)
      def _():
        for ref, (_, value) in zip(carry_refs, carry, strict=True):
          ref[...] = jnp.full(ref.shape, value, ref.dtype)

      def compute(allowed):
        tiles = _load(row_refs[:-1], True), _load(column_refs[:-1], False)
        new = step(*tiles, allowed, tuple(ref[...] for ref in carry_refs))
        for ref, value in zip(carry_refs, new, strict=True):
          ref[...] = value

      @pl.when(steps[n] & (_LIVE | _FULL) == _LIVE | _FULL)
      def _():
        compute(None)

      @pl.when(steps[n] & (_LIVE | _FULL) == _LIVE)
      def _():
        allowed = self._allowed(row_refs[-1], column_refs[-1], column(steps, n))
        if self.mask.static:
          compute(allowed)
        else:
          pl.when(jnp.any(allowed))(lambda: compute(allowed))

      @pl.when(steps[n] & _LAST != 0)
      def _():
        results = finish(_load(row_refs[:-1], True), tuple(ref[...] for ref in carry_refs))
        for ref, value in zip(out_refs, results, strict=True):
          ref[0, 0] = (_to_row(value) if value.shape[1] == 1 else value).astype(ref.dtype)

    steps = self._steps()
    batch, heads = rows[0].shape[:2]
    padded = row_len + -row_len % row_block
    results = pl.pallas_call(
      kernel,
      grid_spec=pltpu.PrefetchScalarGridSpec(
        num_scalar_prefetch=1,
        grid=(batch, heads, len(steps)),
        in_specs=[*row_specs, *column_specs],
        out_specs=[_spec((batch, heads, n), n == 1, row_block, row) for n, _ in out],
        scratch_shapes=[pltpu.VMEM((row_block, n), jnp.float32) for n, _ in carry],
      ),
      out_shape=[
        jax.ShapeDtypeStruct((batch, heads, *((1, padded) if n == 1 else (padded, n))), dtype)
        for n, dtype in out
      ],
      compiler_params=pltpu.CompilerParams(
        dimension_semantics=("parallel", "parallel", "arbitrary"), vmem_limit_bytes=_VMEM
      ),
      interpret=self.interpret,
    )(steps, *inputs)
    return tuple(
      x[:, :, 0, :row_len] if n == 1 else x[:, :, :row_len]
      for x, (n, _) in zip(results, out, strict=True)
    )

  def _steps(self) -> jax.Array:
    """One int32 for each grid step. A row of nothing has one step, which writes its zeros."""
    lists, full, count = self._lists
    host = isinstance(lists, np.ndarray)
    xp = np if host else jnp
    slot, ones = xp.arange(lists.shape[1])[None, :], xp.maximum(count, 1)[:, None]
    flags = (
      _FIRST * (slot == 0)
      + _LAST * (slot == ones - 1)
      + _LIVE * (slot < count[:, None])
      + _FULL * (slot < full[:, None])
    )
    rows = xp.arange(lists.shape[0])[:, None]
    steps = (rows << _ROW_AT) + (lists << _COLUMN_AT) + flags
    return jnp.asarray(steps[slot < ones] if host else steps.ravel(), jnp.int32)

  def _allowed(self, row_info: Any, column_info: Any, column: Any) -> jax.Array | None:
    """The mask in this tile: bool `[row, column]`. Padded keys are hidden; padded queries add 0."""
    allowed = None
    if self.mask.rule is not None:
      fields = range(row_info.shape[2])
      # Whole tiles of fields: the compiler does not broadcast truth values.
      row = [jnp.broadcast_to(_to_column(row_info[0, 0, f]), self.blocks) for f in fields]
      column_fields = [jnp.broadcast_to(column_info[0, 0, f][None], self.blocks) for f in fields]
      pair = (column_fields, row) if self.by_key else (row, column_fields)
      allowed = self.mask.rule(*pair)
    if not self.by_key and self.mask.k_len % self.block_k:
      at = column * self.block_k + lax.broadcasted_iota(jnp.int32, self.blocks, 1)
      inside = at < self.mask.k_len
      allowed = inside if allowed is None else allowed & inside
    return allowed


# --- blocks of whole arrays -------------------------------------------------------------------
def _operands(arrays: Arrays, info: Any, block: int, tile: Callable) -> tuple[list, list]:
  """The operands of one side, attributes last, padded to whole tiles, and their block specs.

  Tokens `[B, H, N, D]` stay; statistics become `[B, H, 1, N]`, attributes `[B or 1, 1, F, N]`.
  """
  wide = [x is not None and x.ndim == 3 for x in arrays]  # the sequence lies along the lanes
  operands = [x[:, :, None] if lanes else x for x, lanes in zip(arrays, wide, strict=True)]
  operands.append(None if info is None else jnp.asarray(getattr(info, "value", info))[:, None])
  padded, specs = [], []
  for x, lanes in zip(operands, (*wide, True), strict=True):
    if x is not None:
      missing = -x.shape[3 if lanes else 2] % block
      x = jnp.pad(x, ((0, 0), (0, 0), (0, missing * (not lanes)), (0, missing * lanes)))
      other = x.shape[2 if lanes else 3]
      specs.append(_spec((*x.shape[:2], other), lanes, block, tile))
    padded.append(x)
  return padded, specs


def _spec(shape: tuple[int, int, int], lanes: bool, block: int, tile: Callable) -> pl.BlockSpec:
  """Blocks of an array with B, H and a width beside its sequence; a length of 1 is shared."""
  batch, heads, width = shape

  def index(b, h, n, steps):
    at = (0, tile(steps, n)) if lanes else (tile(steps, n), 0)
    return (b if batch > 1 else 0, h if heads > 1 else 0, *at)

  return pl.BlockSpec((1, 1, *((width, block) if lanes else (block, width))), index)


# --- tiles in fast memory ---------------------------------------------------------------------
def _load(refs: Sequence[Any], rows: bool) -> Arrays:
  """Tiles `[block, D]`; of statistics `[block, 1]` on the side of rows, else `[1, block]`."""
  return tuple(None if ref is None else _tile(ref, rows) for ref in refs)


def _tile(ref: Any, rows: bool) -> jax.Array:
  if ref.shape[2] > 1:
    return ref[0, 0]
  return _to_column(ref[0, 0, 0]) if rows else ref[0, 0]


def _to_column(x: jax.Array) -> jax.Array:
  """`[N]`, along the lanes, to `[N, 1]`."""
  return jnp.expand_dims(x, -1)


def _to_row(x: jax.Array) -> jax.Array:
  """`[N, 1]` to `[1, N]`: the vector unit transposes whole tiles."""
  return jnp.broadcast_to(x, (len(x), LANES)).T[:1]
