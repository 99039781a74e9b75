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

Array = jax.Array
Maybe = jax.Array | None
_FLOOR = -1e30  # of the running maximum: finite, so that a row without keys gives 0 and not NaN


def forward(
  q: Array, k: Array, v: Array, mask: Mask, *, scale: float, target: int = 128
) -> tuple[Array, Array]:
  """`o = P v` and `lse`, by an online softmax."""

  def step(queries, keys, allowed, carry):
    (q,), (k, v) = queries, keys
    top, total, acc = carry
    top, shrink, p = _online_softmax(_scores(q, k, scale), top, allowed)
    return top, total * shrink + _row_sum(p), acc * shrink + _weigh(p, v)

  def finish(queries, carry):
    top, total, acc = carry
    return _divide(acc, total).astype(q.dtype), _log_sum_exp(top, total)

  sweep = Sweep.plan(mask, target)
  o, lse = sweep.by_query(_heads(q), _heads(k, v), _online_init, step, finish)
  return _tokens(o), lse[..., 0]


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
    top, shrink, p = _online_softmax(_scores(q, k, scale), top, allowed)
    row_term, dacc_term = _tangent_terms(p, q, k, v, dq, dk, dv, scale)
    return (
      top,
      total * shrink + _row_sum(p),
      acc * shrink + _weigh(p, v),
      row * shrink + row_term,
      dacc * shrink + dacc_term,
    )

  def finish(queries, carry):
    top, total, acc, row, dacc = carry
    o, dlse = _divide(acc, total), _divide(row, total)
    do = _divide(dacc, total) - dlse * o
    return o.astype(q.dtype), _log_sum_exp(top, total), do.astype(q.dtype), dlse

  sweep = Sweep.plan(mask, target)
  o, lse, do, dlse = sweep.by_query(_heads(q, dq), _heads(k, v, dk, dv), init, step, finish)
  return _tokens(o), lse[..., 0], _tokens(do), dlse[..., 0]


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
    p = _probabilities(_scores(q, k, scale), lse, allowed)
    return jax.tree.map(jnp.add, carry, _tangent_terms(p, q, k, v, dq, dk, dv, scale))

  def finish(queries, carry):
    _, _, o, _ = queries
    row, acc = carry
    return (acc - row * o.astype(acc.dtype)).astype(q.dtype), row

  sweep, queries = Sweep.plan(mask, target), (*_heads(q, dq, o), lse[..., None])
  do, dlse = sweep.by_query(queries, _heads(k, v, dk, dv), init, step, finish)
  return _tokens(do), dlse[..., 0]


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
    p = _probabilities(_scores(q, k, scale), lse, allowed)
    dv = _gather(p, do) if want_v else None
    if not (want_q or want_k):
      return (None,), (None, dv)
    ds = p * (_dot("bhqd,bhkd->bhqk", do, v) - delta) * scale
    return (_weigh(ds, k) if want_q else None,), (_gather(ds, q) if want_k else None, dv)

  sweep = Sweep.plan(mask, target)
  queries = (*_heads(q, do), lse[..., None], delta[..., None])
  (dq,), (dk, dv) = sweep.by_key(queries, _heads(k, v), step)
  return tuple(None if x is None else _tokens(x).astype(q.dtype) for x in (dq, dk, dv))


# --- one tile ---------------------------------------------------------------------------------
def _scores(q, k, scale):
  return _dot("bhqd,bhkd->bhqk", q, k) * scale


def _online_init(queries):
  acc = jnp.zeros(queries[0].shape, _wide(queries[0]))
  zero = acc[..., :1]
  return zero + _FLOOR, zero, acc


def _online_softmax(s, top, allowed):
  """New row maximum, the factor that brings old sums to it, and exp(s - maximum)."""
  s = s if allowed is None else jnp.where(allowed, s, -jnp.inf)
  new = jnp.maximum(top, s.max(-1, keepdims=True))
  return new, jnp.exp(top - new), jnp.exp(s - new)


def _probabilities(s, lse, allowed):
  p = jnp.exp(s - lse)
  return p if allowed is None else jnp.where(allowed, p, 0)


def _tangent_terms(p, q, k, v, dq, dk, dv, scale):
  """This tile's share of `rowsum(H)` and of `H v + P dv`."""
  ds = [_scores(a, b, scale) for a, b in ((dq, k), (q, dk)) if a is not None and b is not None]
  h = p * sum(ds[1:], ds[0]) if ds else None
  acc = [_weigh(a, b) for a, b in ((h, v), (p, dv)) if a is not None and b is not None]
  return _row_sum(p) * 0 if h is None else _row_sum(h), sum(acc[1:], acc[0])


def _weigh(p, v):
  return _dot("bhqk,bhkd->bhqd", p.astype(v.dtype), v)


def _gather(p, q):
  return _dot("bhqk,bhqd->bhkd", p.astype(q.dtype), q)


def _row_sum(p):
  return p.sum(-1, keepdims=True)


def _divide(x, total):
  return x / jnp.where(total > 0, total, 1)


def _log_sum_exp(top, total):
  return jnp.where(total > 0, top + jnp.log(total), -jnp.inf)


def _dot(spec, a, b):
  precision = None if a.dtype == jnp.bfloat16 else lax.Precision.HIGHEST
  return jnp.einsum(spec, a, b, preferred_element_type=_wide(a), precision=precision)


def _wide(x):
  return jnp.float64 if x.dtype == jnp.float64 else jnp.float32


# --- layout -----------------------------------------------------------------------------------
def _heads(*arrays):
  """`[B, N, H, D]` to `[B, H, N, D]`."""
  return tuple(None if x is None else x.swapaxes(1, 2) for x in arrays)


def _tokens(x):
  """`[B, H, N, D]` to `[B, N, H, D]`."""
  return x.swapaxes(1, 2)


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
