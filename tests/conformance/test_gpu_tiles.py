"""The maths of the Hopper kernels, tile by tile in plain JAX: the same steps over the same lists.

Runs on every jax, and in float32, where a wrong factor cannot hide behind rounding. It replaces the
thread block by a loop and WGMMA by a dot; `test_gpu_kernels.py` runs the thread block itself.
"""

import dataclasses
import functools
import itertools

import jax.numpy as jnp
import numpy as np
import pytest

from pallas_kernels.attention import Mask, conformance, gpu
from pallas_kernels.attention.gpu_sweep import ROWS, Sweep
from tests.conformance import gpu_masks
from tests.conformance.gpu_masks import NOW, PACKED
from tests.mutation import assert_caught, mutant
from vidstep import masks
from vidstep.masks.plan import kernel_mask

CASES = gpu_masks.CASES | {
  "dense": (None, NOW, NOW, 64),
  "window": (masks.TeacherForcing() & masks.Window(1, 1, "chunk"), PACKED, PACKED, 30),
}
TRACED = gpu_masks.TRACED | {"full": (masks.Full(), NOW, NOW, 20)}


def fold(sweep, rows, columns, out, carry, step, finish, late=()):
  """`Sweep.fold` in order and in the open."""
  batch, length, heads, _ = rows[0].shape
  row_fields, column_fields = sweep._fields()[:: -1 if sweep.by_key else 1]
  operands = lambda side, axis: [sweep._operand(x, axis) for x in side]
  outs = [np.zeros((batch, length, heads, n) if n > 1 else (batch, heads, length)) for n, _ in out]
  for b, h, line in itertools.product(range(batch), range(heads), np.asarray(sweep._steps())):
    tiles = functools.partial(cut, b, h)
    row, full, count, *listed = line
    for start in (row * 2 * ROWS, row * 2 * ROWS + ROWS):
      mine = operands(tiles(rows, start, ROWS), 0)
      sums = tuple(jnp.full((ROWS, n) if n > 1 else (ROWS,), x, jnp.float32) for n, x in carry)
      for n, j in enumerate(listed[:count]):
        at = j * sweep.block, sweep.block
        fields = tiles(row_fields, start, ROWS), tiles(column_fields, *at)
        allowed = None if n < full else functools.partial(sweep._allowed, *fields, j)
        sums = tuple(step(mine, operands(tiles(columns, *at), 1), allowed, sums))
      for whole, result in zip(outs, finish(tiles(late, start, ROWS), sums), strict=True):
        target = (whole[b, :, h] if whole.ndim == 4 else whole[b, h])[start : start + ROWS]
        target[...] = result[: len(target)]
  return tuple(jnp.asarray(x, dtype) for x, (_, dtype) in zip(outs, out, strict=True))


def cut(b, h, side, start, size):
  """A tile of every array of a side, zeros outside."""

  def tile(x):
    x = x[b, :, h] if x.ndim == 4 else x[b % x.shape[0], h % x.shape[1]]
    x = x[start : start + size]
    return jnp.pad(x, [(0, size - len(x))] + [(0, 0)] * (x.ndim - 1))

  return [None if x is None else tile(x) for x in side]


def outer(sums, interpret):
  dot = functools.partial(jnp.dot, preferred_element_type=jnp.float32)
  return [acc + sum(dot(a, b.T) for a, b in pairs) for acc, pairs in sums]


def assert_conforms(module, case, dtype=jnp.float32, dim=64, live=conformance.ALL):
  rule, q_info, k_info, n = (CASES | TRACED)[case]
  q_info, k_info = q_info.tokens(n), k_info.tokens(n)
  q_len, k_len = q_info.frame.shape[-1], k_info.frame.shape[-1]
  mask = Mask(q_len, k_len) if rule is None else kernel_mask(rule, q_info, k_info)
  if case in TRACED:
    infos = {name: jnp.asarray(getattr(mask, name).value) for name in ("q_info", "k_info")}
    mask = dataclasses.replace(mask, **infos)
  inputs = conformance.make_problem(0, (mask.batch, q_len, 1, dim), k_len, dtype, mask)
  with pytest.MonkeyPatch.context() as patch:
    patch.setattr(Sweep, "fold", fold)
    patch.setattr(module, "_outer", outer)
    errors = conformance.relative_errors(module.kernel("plain", "cpu", interpret=1), inputs, live)
  assert max(errors.values()) < conformance.BARS[jnp.dtype(dtype).name], errors


@pytest.mark.parametrize("case", [*CASES, *TRACED])
def test_float32_meets_its_bar(case):
  assert_conforms(gpu, case)


def test_bfloat16_meets_its_bar():
  assert_conforms(gpu, "teacher forcing", jnp.bfloat16)


@pytest.mark.parametrize("dim", [96, 128])
def test_other_head_dims(dim):
  assert_conforms(gpu, "padding", dim=dim)


@pytest.mark.parametrize("alive", range(3))
def test_dead_tangents(alive):
  assert_conforms(gpu, "cross attention", live=tuple(n == alive for n in range(3)))


@pytest.mark.parametrize(
  "old, new",
  [
    ("acc * fade, [(p, v)]", "acc, [(p, v)]"),
    ("dacc / total_ - _rows(dlse, dim) * o", "dacc / total_"),
    ("acc - _rows(row, dim)", "acc + _rows(row, dim)"),
    ("top * _LN2 + ", "top + "),
    ("jnp.where(allowed(), starts[0], -jnp.inf)", "starts[0]"),
    ("p * (dp - delta())", "p * dp"),
    ("factors = [scale] * want_k", "factors = [1.0] * want_k"),
  ],
)
def test_a_mutant_does_not_conform(old, new):
  assert_caught(assert_conforms, mutant(gpu, old, new), "teacher forcing")
