"""Attention for TPUs in Pallas: forward, tangent, both in one sweep, backward.

This file is the maths of one tile, as `chunked.py` has it; `tpu_sweep.py` brings the tiles. Inside,
arrays are `[B, H, N, D]` and a tile `[block, D]`; row statistics are columns `[block, 1]`, except
where queries stream past keys: there scores are transposed, `[keys, queries]`, and they are rows.
"""

import functools
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax

from pallas_kernels.attention.kernel import Kernel
from pallas_kernels.attention.mask import Mask
from pallas_kernels.attention.tile import (
  FLOOR,
  divide,
  heads,
  log_sum_exp,
  online_softmax,
  probabilities,
  row_sum,
  tokens,
)
from pallas_kernels.attention.tpu_sweep import Sweep

Array = jax.Array
Maybe = jax.Array | None
HEAD_DIMS = (64, 96, 128)
SIZES = (256, 512)  # of tiles; 1,024 x 1,024 in float32 overflows the fused kernel on a v5p
_ONLINE = ((1, FLOOR), (1, 0.0))  # running maximum, sum


def forward(
  q: Array, k: Array, v: Array, mask: Mask, *, scale: float, sizes=SIZES, interpret: Any = False
) -> tuple[Array, Array]:
  """`o = P v` and `lse`, by an online softmax."""
  dim = q.shape[-1]

  def step(queries, keys, allowed, carry):
    (q,), (k, v) = queries, keys
    top, total, acc = carry
    top, shrink, p = online_softmax(_outer(q, k) * scale, top, allowed)
    return top, total * shrink + row_sum(p), acc * shrink + _inner(p, v)

  def finish(queries, carry):
    top, total, acc = carry
    return divide(acc, total), log_sum_exp(top, total)

  sweep = Sweep.plan(mask, sizes, False, interpret)
  out = (dim, q.dtype), (1, jnp.float32)
  o, lse = sweep.fold(heads(q), heads(k, v), out, (*_ONLINE, (dim, 0.0)), step, finish)
  return tokens(o), lse


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
  sizes=SIZES,
  interpret: Any = False,
) -> tuple[Array, Array, Array, Array]:
  """What `forward` and `tangent` return, in one sweep over the keys."""
  dim = q.shape[-1]

  def step(queries, keys, allowed, carry):
    (q, dq), (k, v, dk, dv) = queries, keys
    top, total, acc, row, dacc = carry
    top, shrink, p = online_softmax(_outer(q, k) * scale, top, allowed)
    row_term, dacc_term = _tangent_terms(p, q, k, v, dq, dk, dv, scale)
    return (
      top,
      total * shrink + row_sum(p),
      acc * shrink + _inner(p, v),
      row * shrink + row_term,
      dacc * shrink + dacc_term,
    )

  def finish(queries, carry):
    top, total, acc, row, dacc = carry
    o, dlse = divide(acc, total), divide(row, total)
    return o, log_sum_exp(top, total), divide(dacc, total) - dlse * o, dlse

  sweep = Sweep.plan(mask, sizes, False, interpret)
  out = (dim, q.dtype), (1, jnp.float32)
  carry = (*_ONLINE, (dim, 0.0), (1, 0.0), (dim, 0.0))
  queries, keys = heads(q, dq), heads(k, v, dk, dv)
  o, lse, do, dlse = sweep.fold(queries, keys, out * 2, carry, step, finish)
  return tokens(o), lse, tokens(do), dlse


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
  sizes=SIZES,
  interpret: Any = False,
) -> tuple[Array, Array]:
  """`do = H v - rowsum(H) o + P dv` and `dlse = rowsum(H)`, with `H = P * dS`."""
  dim = q.shape[-1]

  def step(queries, keys, allowed, carry):
    (q, dq, _, lse), (k, v, dk, dv) = queries, keys
    p = probabilities(_outer(q, k) * scale, lse, allowed)
    terms = _tangent_terms(p, q, k, v, dq, dk, dv, scale)
    return tuple(a + b for a, b in zip(carry, terms, strict=True))

  def finish(queries, carry):
    row, acc = carry
    return acc - row * queries[2].astype(jnp.float32), row

  sweep = Sweep.plan(mask, sizes, False, interpret)
  queries, keys = (*heads(q, dq, o), lse), heads(k, v, dk, dv)
  out, carry = ((dim, q.dtype), (1, jnp.float32)), ((1, 0.0), (dim, 0.0))
  do, dlse = sweep.fold(queries, keys, out, carry, step, finish)
  return tokens(do), dlse


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
  sizes=SIZES,
  interpret: Any = False,
) -> tuple[Maybe, Maybe, Maybe]:
  """`dq = dS k`, `dk = dS' q`, `dv = P' do`, with `dS = scale P * (do v' - delta)`.

  Two sweeps, one for dq and one for dk and dv: no two grid steps add to one gradient.
  """
  want_q, *want_kv = wanted
  dim = q.shape[-1]
  q, k, v, do = heads(q, k, v, do)

  def step_q(queries, keys, allowed, carry):
    (q, do, lse, delta), (k, v) = queries, keys
    p = probabilities(_outer(q, k) * scale, lse, allowed)
    return (carry[0] + _inner(p * (_outer(do, v) - delta) * scale, k),)

  def step_kv(keys, queries, allowed, carry):
    (k, v), (q, do, lse, delta) = keys, queries
    p = probabilities(_outer(k, q) * scale, lse, allowed)
    ds = lambda: p * (_outer(v, do) - delta) * scale
    terms = (lambda: _inner(ds(), q), lambda: _inner(p, do))
    alive = [term for term, want in zip(terms, want_kv, strict=True) if want]
    return tuple(a + term() for a, term in zip(carry, alive, strict=True))

  dq = dk = dv = None
  one = ((dim, q.dtype),), ((dim, 0.0),)
  finish = lambda _, carry: carry
  if want_q:
    sweep = Sweep.plan(mask, sizes, False, interpret)
    (dq,) = sweep.fold((q, do, lse, delta), (k, v), *one, step_q, finish)
  if any(want_kv):
    out, carry = (sum(want_kv) * x for x in one)
    keys, queries = (k, v if want_kv[0] else None), (q, do, lse, delta if want_kv[0] else None)
    sweep = Sweep.plan(mask, sizes, True, interpret)
    grads = iter(sweep.fold(keys, queries, out, carry, step_kv, finish))
    dk, dv = (next(grads) if want else None for want in want_kv)
  return tuple(None if x is None else tokens(x) for x in (dq, dk, dv))


def refuses(mode: str, q: Array, k: Array, mask: Mask, *, sizes=SIZES) -> str | None:
  """Why a call is not supported, or None."""
  if q.dtype not in (jnp.float32, jnp.bfloat16):
    return f"{q.dtype} is neither float32 nor bfloat16"
  if q.shape[-1] not in HEAD_DIMS:
    return f"head dim {q.shape[-1]} is not one of {HEAD_DIMS}"
  orders = (False, True) if mode == "backward" else (False,)
  reasons = (Sweep.plan(mask, sizes, by_key, False).refuses() for by_key in orders)
  return next(filter(None, reasons), None)


# --- one tile ---------------------------------------------------------------------------------
def _tangent_terms(p, q, k, v, dq, dk, dv, scale):
  """This tile's share of `rowsum(H)` and of `H v + P dv`."""
  ds = [_outer(a, b) for a, b in ((dq, k), (q, dk)) if a is not None and b is not None]
  h = p * (sum(ds[1:], ds[0]) * scale) if ds else None
  acc = [_inner(a, b) for a, b in ((h, v), (p, dv)) if a is not None and b is not None]
  row = jnp.zeros((len(p), 1), p.dtype) if h is None else row_sum(h)
  return row, sum(acc[1:], acc[0])


def _outer(a, b):
  """`a b'`."""
  return _dot(a, b, 1)


def _inner(p, v):
  """`p v`, p rounded to v's dtype."""
  return _dot(p.astype(v.dtype), v, 0)


def _dot(a, b, axis):
  precision = lax.Precision.DEFAULT if a.dtype == jnp.bfloat16 else lax.Precision.HIGHEST
  return lax.dot_general(
    a, b, (((1,), (axis,)), ((), ())), precision=precision, preferred_element_type=jnp.float32
  )


def kernel(name: str, *platforms: str, sizes=SIZES, interpret: Any = False) -> Kernel:
  """The kernel with tiles of these sizes, compiled or in an interpreter.

  Args:
    name: what users call it.
    *platforms: where it runs.
    sizes: of tiles to choose from, multiples of 128.
    interpret: False, True, or `pltpu.InterpretParams`.
  """
  bind = lambda function: functools.partial(function, sizes=sizes, interpret=interpret)
  return Kernel(
    name=name,
    platforms=platforms,
    forward=bind(forward),
    tangent=bind(tangent),
    backward=bind(backward),
    forward_tangent=bind(forward_tangent),
    refuses=functools.partial(refuses, sizes=sizes),
    experimental=True,  # never executed on its hardware
  )


# The interpreter gets small tiles: several of them in a small test.
KERNELS = (
  kernel("pallas_tpu", "tpu"),
  kernel("pallas_tpu_interpret", "cpu", sizes=(128,), interpret=True),
)
