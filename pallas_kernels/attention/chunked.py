"""Attention in plain JAX, tile by tile: O(N) memory, empty tiles skipped, runs anywhere.

This is the maths of a kernel, once for each of its functions; `sweep.py` has the loops. Batch and
heads stay dimensions of the arrays, so that the partitioner may shard them. Inside, arrays are
`[B, H, N, D]` and row statistics `[B, H, N, 1]`; `target` is about how wide tiles shall be.
"""

import functools

import jax
import jax.numpy as jnp
from jax import lax

from pallas_kernels.attention.kernel import Kernel
from pallas_kernels.attention.mask import Mask
from pallas_kernels.attention.sweep import Sweep
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

Array = jax.Array
Maybe = jax.Array | None


def forward(
  q: Array, k: Array, v: Array, mask: Mask, *, scale: float, target: int = 128
) -> tuple[Array, Array]:
  """`o = P v` and `lse`, by an online softmax."""

  def step(queries, keys, allowed, carry):
    (q,), (k, v) = queries, keys
    top, total, acc = carry
    top, shrink, p = online_softmax(_scores(q, k, scale), top, allowed)
    return top, total * shrink + row_sum(p), acc * shrink + _weigh(p, v)

  def finish(queries, carry):
    top, total, acc = carry
    return divide(acc, total).astype(q.dtype), log_sum_exp(top, total)

  sweep = Sweep.plan(mask, target)
  o, lse = sweep.by_query(heads(q), heads(k, v), _online_init, step, finish)
  return tokens(o), lse[..., 0]


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
  target: int = 128,
) -> tuple[Array, Array, Array, Array]:
  """What `forward` and `tangent` return, in one sweep over the keys."""

  def init(queries):
    top, total, acc = _online_init(queries)
    return top, total, acc, total, acc

  def step(queries, keys, allowed, carry):
    (q, dq), (k, v, dk, dv) = queries, keys
    top, total, acc, row, dacc = carry
    top, shrink, p = online_softmax(_scores(q, k, scale), top, allowed)
    row_term, dacc_term = _tangent_terms(p, q, k, v, dq, dk, dv, scale)
    return (
      top,
      total * shrink + row_sum(p),
      acc * shrink + _weigh(p, v),
      row * shrink + row_term,
      dacc * shrink + dacc_term,
    )

  def finish(queries, carry):
    top, total, acc, row, dacc = carry
    o, dlse = divide(acc, total), divide(row, total)
    do = divide(dacc, total) - dlse * o
    return o.astype(q.dtype), log_sum_exp(top, total), do.astype(q.dtype), dlse

  sweep = Sweep.plan(mask, target)
  o, lse, do, dlse = sweep.by_query(heads(q, dq), heads(k, v, dk, dv), init, step, finish)
  return tokens(o), lse[..., 0], tokens(do), dlse[..., 0]


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
  target: int = 128,
) -> tuple[Array, Array]:
  """`do = H v - rowsum(H) o + P dv` and `dlse = rowsum(H)`, with `H = P * dS`."""

  def init(queries):
    _, row, acc = _online_init(queries)
    return row, acc

  def step(queries, keys, allowed, carry):
    (q, dq, _, lse), (k, v, dk, dv) = queries, keys
    p = probabilities(_scores(q, k, scale), lse, allowed)
    return jax.tree.map(jnp.add, carry, _tangent_terms(p, q, k, v, dq, dk, dv, scale))

  def finish(queries, carry):
    _, _, o, _ = queries
    row, acc = carry
    return (acc - row * o.astype(acc.dtype)).astype(q.dtype), row

  sweep, queries = Sweep.plan(mask, target), (*heads(q, dq, o), lse[..., None])
  do, dlse = sweep.by_query(queries, heads(k, v, dk, dv), init, step, finish)
  return tokens(do), dlse[..., 0]


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
  target: int = 128,
  wanted: tuple[bool, bool, bool],
) -> tuple[Maybe, Maybe, Maybe]:
  """`dq = dS k`, `dk = dS' q`, `dv = P' do`, with `dS = scale P * (do v' - delta)`."""
  want_q, want_k, want_v = wanted

  def step(queries, keys, allowed):
    (q, do, lse, delta), (k, v) = queries, keys
    p = probabilities(_scores(q, k, scale), lse, allowed)
    dv = _gather(p, do) if want_v else None
    if not (want_q or want_k):
      return (None,), (None, dv)
    ds = p * (_dot("bhqd,bhkd->bhqk", do, v) - delta) * scale
    return (_weigh(ds, k) if want_q else None,), (_gather(ds, q) if want_k else None, dv)

  sweep = Sweep.plan(mask, target)
  queries = (*heads(q, do), lse[..., None], delta[..., None])
  (dq,), (dk, dv) = sweep.by_key(queries, heads(k, v), step)
  return tuple(None if x is None else tokens(x).astype(q.dtype) for x in (dq, dk, dv))


# --- one tile ---------------------------------------------------------------------------------
def _scores(q, k, scale):
  return _dot("bhqd,bhkd->bhqk", q, k) * scale


def _online_init(queries):
  acc = jnp.zeros(queries[0].shape, _wide(queries[0]))
  zero = acc[..., :1]
  return zero + FLOOR, zero, acc


def _tangent_terms(p, q, k, v, dq, dk, dv, scale):
  """This tile's share of `rowsum(H)` and of `H v + P dv`."""
  ds = [_scores(a, b, scale) for a, b in ((dq, k), (q, dk)) if a is not None and b is not None]
  h = p * sum(ds[1:], ds[0]) if ds else None
  acc = [_weigh(a, b) for a, b in ((h, v), (p, dv)) if a is not None and b is not None]
  return row_sum(p) * 0 if h is None else row_sum(h), sum(acc[1:], acc[0])


def _weigh(p, v):
  return _dot("bhqk,bhkd->bhqd", p.astype(v.dtype), v)


def _gather(p, q):
  return _dot("bhqk,bhqd->bhkd", p.astype(q.dtype), q)


def _dot(spec, a, b):
  precision = None if a.dtype == jnp.bfloat16 else lax.Precision.HIGHEST
  return jnp.einsum(spec, a, b, preferred_element_type=_wide(a), precision=precision)


def _wide(x):
  return jnp.float64 if x.dtype == jnp.float64 else jnp.float32


def _kernel(target: int, wider: int, *platforms: str) -> Kernel:
  sized = lambda function, target=wider: functools.partial(function, target=target)
  return Kernel(
    name="xla_chunked",
    platforms=platforms,
    forward=sized(forward, target),
    tangent=sized(tangent),
    backward=sized(backward),
    forward_tangent=sized(forward_tangent),
  )


# A processor wants tiles that fit its cache, an accelerator few and large ones. Where more is done
# with a tile than in the forward, it may be wider.
KERNELS = (_kernel(128, 192, "cpu"), _kernel(1024, 1024, "tpu", "cuda", "rocm"))
