"""Attention for Hopper in Pallas (Mosaic GPU): forward, tangent, both in one sweep, backward.

This file is the maths of one tile, as `tpu.py` has it; `gpu_sweep.py` brings the tiles.
Probabilities are powers of two: logits carry a factor `log2 e`, undone where `lse` leaves. WGMMA
adds in float32 registers; `p v` takes p from registers, rounded to the dtype of v.

float32 is refused: WGMMA would round it to TF32, 11 bits, and miss the bar of 3e-6 by far.
"""

import functools
import math
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax
from jax.experimental import pallas as pl
from jax.experimental.pallas import mosaic_gpu as plgpu

from pallas_kernels.attention.gpu_sweep import ROWS, Sweep
from pallas_kernels.attention.kernel import Kernel
from pallas_kernels.attention.mask import Mask
from pallas_kernels.attention.tile import FLOOR

Array = jax.Array
Maybe = jax.Array | None
HEAD_DIMS = (64, 96, 128)
_BLOCK = 64  # columns in a tile; forward has registers for 128
_LOG2E, _LN2 = math.log2(math.e), math.log(2)
_ONLINE = ((1, FLOOR), (1, 0.0))  # running maximum, sum


def forward(
  q: Array, k: Array, v: Array, mask: Mask, *, scale: float, interpret: Any = None
) -> tuple[Array, Array]:
  """`o = P v` and `lse`, by an online softmax."""
  dim = q.shape[-1]

  def step(queries, keys, allowed, carry):
    (q,), (k, v) = queries, keys
    top, total, acc = carry
    (s,) = _scores(allowed, [[(q, k)]], interpret)
    top, shrink, p = _online_softmax(s * (scale * _LOG2E), top)
    (acc,) = _inner([(acc * _rows(shrink, dim), [(p, v)])], interpret)
    return top, total * shrink + p.sum(1), acc

  def finish(late, carry):
    top, total, acc = carry
    return acc / _rows(_nonzero(total), dim), _log_sum_exp(top, total)

  sweep = Sweep(mask, 128, False, interpret)
  out = (dim, q.dtype), (1, jnp.float32)
  return sweep.fold((q,), (k, v), out, (*_ONLINE, (dim, 0.0)), step, finish)


def forward_tangent(
  q: Array,
  k: Array,
  v: Array,
  dq: Maybe,
  dk: Maybe,
  dv: Maybe,
  mask: Mask,
  *,
  scale: float,
  interpret: Any = None,
) -> tuple[Array, Array, Array, Array]:
  """What `forward` and `tangent` return, in one sweep over the keys."""
  dim = q.shape[-1]

  def step(queries, keys, allowed, carry):
    (q, dq), (k, v, dk, dv) = queries, keys
    top, total, acc, row, dacc = carry
    s, *ds = _scores(allowed, [[(q, k)], *_moves(q, k, dq, dk)], interpret)
    top, shrink, p = _online_softmax(s * (scale * _LOG2E), top)
    h = [p * (x * scale) for x in ds]
    fade = _rows(shrink, dim)
    acc, dacc = _inner([(acc * fade, [(p, v)]), (dacc * fade, _weights(p, h, v, dv))], interpret)
    row = row * shrink + h[0].sum(1) if h else row
    return top, total * shrink + p.sum(1), acc, row, dacc

  def finish(late, carry):
    top, total, acc, row, dacc = carry
    total_ = _rows(_nonzero(total), dim)
    o, dlse = acc / total_, row / _nonzero(total)
    return o, _log_sum_exp(top, total), dacc / total_ - _rows(dlse, dim) * o, dlse

  sweep = Sweep(mask, _BLOCK, False, interpret)
  out = (dim, q.dtype), (1, jnp.float32)
  carry = (*_ONLINE, (dim, 0.0), (1, 0.0), (dim, 0.0))
  return sweep.fold((q, dq), (k, v, dk, dv), out * 2, carry, step, finish)


def tangent(
  q: Array,
  k: Array,
  v: Array,
  o: Array,
  lse: Array,
  dq: Maybe,
  dk: Maybe,
  dv: Maybe,
  mask: Mask,
  *,
  scale: float,
  interpret: Any = None,
) -> tuple[Array, Array]:
  """`do = H v - rowsum(H) o + P dv` and `dlse = rowsum(H)`, with `H = P * dS`."""
  dim = q.shape[-1]

  def step(queries, keys, allowed, carry):
    (q, dq, lse), (k, v, dk, dv) = queries, keys
    row, acc = carry
    s, *ds = _scores(allowed, [[(q, k)], *_moves(q, k, dq, dk)], interpret)
    p = jnp.exp2(s * (scale * _LOG2E) - lse())
    h = [p * (x * scale) for x in ds]
    (acc,) = _inner([(acc, _weights(p, h, v, dv))], interpret)
    return row + h[0].sum(1) if h else row, acc

  def finish(late, carry):
    (o,), (row, acc) = late, carry
    return acc - _rows(row, dim) * o.astype(jnp.float32), row

  sweep = Sweep(mask, _BLOCK, False, interpret)
  out, carry = ((dim, q.dtype), (1, jnp.float32)), ((1, 0.0), (dim, 0.0))
  values = None if (dq, dk) == (None, None) else v
  rows, columns = (q, dq, _base2(lse)), (k, values, dk, dv)
  return sweep.fold(rows, columns, out, carry, step, finish, late=(o,))


def backward(
  q: Array,
  k: Array,
  v: Array,
  lse: Array,
  do: Array,
  delta: Array,
  mask: Mask,
  *,
  scale: float,
  wanted: tuple[bool, bool, bool],
  interpret: Any = None,
) -> tuple[Maybe, Maybe, Maybe]:
  """`dq = dS k`, `dk = dS' q`, `dv = P' do`, with `dS = scale P * (do v' - delta)`.

  Two kernels, one for dq and one for dk and dv: seven matmuls where one kernel has five, but no
  two blocks add to one gradient: no atomics, no float32 copy of dq, the same bits in every run.
  """
  want_q, want_k, want_v = wanted
  dim = q.shape[-1]
  lse = _base2(lse)

  def step_q(queries, keys, allowed, carry):
    (q, do, lse, delta), (k, v) = queries, keys
    s, dp = _scores(allowed, [[(q, k)], [(do, v)]], interpret)
    p = jnp.exp2(s * (scale * _LOG2E) - lse())
    return _inner([(carry[0], [(p * (dp - delta()), k)])], interpret)

  def step_kv(keys, queries, allowed, carry):
    (k, v), (q, do, lse, delta) = keys, queries
    s, *dp = _scores(allowed, [[(k, q)]] + ([[(v, do)]] if want_k else []), interpret)
    p = jnp.exp2(s * (scale * _LOG2E) - lse())
    terms = [(p * (x - delta()), q) for x in dp] + ([(p, do)] if want_v else [])
    return _inner([(acc, [term]) for acc, term in zip(carry, terms, strict=True)], interpret)

  dq = dk = dv = None
  out, carry = (dim, q.dtype), (dim, 0.0)
  if want_q:
    finish = lambda late, carry: [carry[0] * scale]
    sweep = Sweep(mask, _BLOCK, False, interpret)
    (dq,) = sweep.fold((q, do, lse, delta), (k, v), [out], [carry], step_q, finish)
  if want_k or want_v:
    factors = [scale] * want_k + [1.0] * want_v
    finish = lambda late, carry: [x * f for x, f in zip(carry, factors, strict=True)]
    sweep = Sweep(mask, _BLOCK, True, interpret)
    rows, columns = (k, v if want_k else None), (q, do, lse, delta if want_k else None)
    n = len(factors)
    grads = iter(sweep.fold(rows, columns, [out] * n, [carry] * n, step_kv, finish))
    dk, dv = (next(grads) if want else None for want in (want_k, want_v))
  return dq, dk, dv


def refuses(mode: str, q: Array, k: Array, mask: Mask) -> str | None:
  """Why a call is not supported, or None."""
  if q.dtype == jnp.float32:
    return "float32 would be rounded to TF32, 11 bits: cast to bfloat16, or use xla_chunked"
  if q.dtype not in (jnp.bfloat16, jnp.float16):
    return f"{q.dtype} is neither bfloat16 nor float16"
  if q.shape[-1] not in HEAD_DIMS:
    return f"head dim {q.shape[-1]} is not one of {HEAD_DIMS}"
  return _no_hopper()


def _no_hopper() -> str | None:
  """WGMMA is an instruction of Hopper alone. Without a GPU at hand the compiler is the judge."""
  if jax.default_backend() != "gpu":
    return None
  capability = getattr(jax.devices()[0], "compute_capability", None)
  return None if capability == "9.0" else f"compute capability {capability} is not Hopper's 9.0"


# --- one tile ---------------------------------------------------------------------------------
def _moves(q, k, dq, dk):
  """The terms of `dq k' + q dk'` that are alive: one list for `_outer`, or none."""
  pairs = [(a, b) for a, b in ((dq, k), (q, dk)) if a is not None and b is not None]
  return [pairs] if pairs else []


def _weights(p, h, v, dv):
  """The terms of `H v + P dv` that are alive."""
  return [(x, v) for x in h] + ([] if dv is None else [(p, dv)])


def _scores(allowed, sums, interpret):
  """For each list of pairs `sum a b'`, `[64, block]`; -inf in the first where the mask says no.

  The mask is what the first sum starts from: it takes no registers beside the scores', and its
  fields have left theirs before the matmuls begin. Asked about scores that are there, it would
  keep its fields while the next matmul fills registers of its own: the compiler overlaps the two.
  """
  starts = [jnp.zeros((ROWS, pairs[0][1].shape[0]), jnp.float32) for pairs in sums]
  if allowed is not None:
    starts[0] = jnp.where(allowed(), starts[0], -jnp.inf)
  return _outer(list(zip(starts, sums, strict=True)), interpret)


def _outer(sums, interpret):
  """For each `(acc, pairs)` `acc + sum a b'`."""
  sums = [(acc, [(a, b.transpose((1, 0))) for a, b in pairs]) for acc, pairs in sums]
  if interpret is None:
    return _accumulate(sums)

  def from_zero(*accs):  # the interpreter's accumulators start from nothing else
    _issue(sums, accs)
    return [acc + new[...] for new, (acc, _) in zip(accs, sums, strict=True)]

  return pl.run_scoped(from_zero, *(plgpu.ACC(acc.shape, acc.dtype) for acc, _ in sums))


def _inner(sums, interpret):
  """For each `(acc, pairs)` `acc + sum p v`, p rounded to v's dtype and read from registers."""
  sums = [(acc, [(p.astype(v.dtype), v) for p, v in pairs]) for acc, pairs in sums]
  if interpret is None:
    return _accumulate(sums)
  dot = functools.partial(jnp.dot, preferred_element_type=jnp.float32)
  # The interpreter's WGMMA reads shared memory only.
  return [acc + sum(dot(p, v[...]) for p, v in pairs) for acc, pairs in sums]


def _accumulate(sums):
  """For each `(acc, pairs)` `acc + sum a b`: issued together, waited for once."""
  start = [plgpu.ACC.init(acc) for acc, _ in sums]
  return pl.run_state(functools.partial(_issue, sums))(start)


def _issue(sums, accs):
  for acc, (_, pairs) in zip(accs, sums, strict=True):
    for a, b in pairs:
      plgpu.wgmma(acc, a, b)


def _online_softmax(s, top):
  """New row maximum, the factor that brings old sums to it, and 2 ** (s - maximum)."""
  new = jnp.maximum(top, s.max(1))
  return new, jnp.exp2(top - new), jnp.exp2(s - _rows(new, s.shape[1]))


def _base2(lse):
  """`lse log2 e`; 0, which is as good as any number, where every key is masked and it is -inf."""
  return jnp.where(lse > -jnp.inf, lse, 0) * _LOG2E


def _rows(x, width):
  """A number a row, `[64]`, along the row."""
  return lax.broadcast_in_dim(x, (ROWS, width), (0,))


def _nonzero(total):
  return jnp.where(total > 0, total, 1)


def _log_sum_exp(top, total):
  return jnp.where(total > 0, top * _LN2 + jnp.log(_nonzero(total)), -jnp.inf)


def kernel(name: str, *platforms: str, interpret: Any = None) -> Kernel:
  """The kernel, compiled or in an interpreter.

  Args:
    name: what users call it.
    *platforms: where it runs.
    interpret: None, or `plgpu.InterpretGPUParams` (jax 0.11.2 and later).
  """
  bind = lambda function: functools.partial(function, interpret=interpret)
  return Kernel(
    name=name,
    platforms=platforms,
    forward=bind(forward),
    tangent=bind(tangent),
    backward=bind(backward),
    forward_tangent=bind(forward_tangent),
    refuses=refuses,
    experimental=True,  # never executed on its hardware
  )


KERNELS = (kernel("pallas_gpu", "cuda"),)
