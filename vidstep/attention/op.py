"""The public attention op: checks its arguments and picks an implementation."""

import jax
import jax.numpy as jnp
import numpy as np

from pallas_kernels.attention import reference
from vidstep.masks import Full, Rule, TokenInfo


def attention(
  q: jax.Array,
  k: jax.Array,
  v: jax.Array,
  mask: Rule | None = None,
  *,
  q_info: TokenInfo | None = None,
  k_info: TokenInfo | None = None,
  scale: float | None = None,
  implementation: str | None = None,
  return_lse: bool = False,
) -> jax.Array | tuple[jax.Array, jax.Array]:
  """Softmax attention `o = softmax(scale q k' + mask) v`, differentiable in both modes.

  Args:
    q: `[B, Nq, heads, D]` queries.
    k: `[B, Nk, heads, D]` keys.
    v: `[B, Nk, heads, D]` values.
    mask: rule that says which query attends to which key; None attends everywhere.
    q_info: the queries' attributes, fields `[Nq]` or `[B, Nq]`; needed with a mask.
    k_info: the keys' attributes; those of the queries when left out.
    scale: factor of the logits; `D**-0.5` when left out.
    implementation: `xla` (dense); None picks the best for the platform.
    return_lse: also return the log-sum-exp of the logits.

  Returns:
    `o [B, Nq, heads, D]` in q's dtype; with `return_lse` also `lse [B, heads, Nq]` in float32.
    A query that may attend to nothing gets 0, and lse -inf.

  Raises:
    ValueError: for shapes, dtypes or attributes that do not fit together.
    NotImplementedError: if the implementation asked for does not support the call.
  """
  _check(q, k, v)
  if implementation not in (None, "xla"):
    raise NotImplementedError(f"no attention implementation is called {implementation!r}.")
  scale = float(q.shape[-1] ** -0.5 if scale is None else scale)
  dense = None
  if mask is not None and mask != Full():
    if q_info is None:
      raise ValueError(f"{mask} needs q_info (and k_info, unless they are the same tokens).")
    q_info = _pack("q_info", q_info, q)
    k_info = q_info if k_info is None and k.shape[1] == q.shape[1] else _pack("k_info", k_info, k)
    rule = lambda a, b: mask(TokenInfo(*a), TokenInfo(*b))
    dense = reference.dense_mask(rule, q_info, k_info)
  o, lse = reference.attention(q, k, v, dense, scale=scale)
  return (o, lse) if return_lse else o


def _check(q: jax.Array, k: jax.Array, v: jax.Array):
  if q.ndim != 4 or k.ndim != 4 or k.shape != v.shape or q.shape[::2] != k.shape[::2]:
    raise ValueError(
      "attention takes q [B, Nq, heads, D] and k, v [B, Nk, heads, D]; "
      f"got {q.shape}, {k.shape}, {v.shape}."
    )
  if q.shape[3] != k.shape[3]:
    raise ValueError(f"q and k differ in head dim: {q.shape[3]} and {k.shape[3]}.")
  if not q.dtype == k.dtype == v.dtype:
    raise ValueError(f"q, k, v have one dtype; got {q.dtype}, {k.dtype}, {v.dtype}: cast first.")


def _pack(name: str, info: TokenInfo | None, x: jax.Array) -> jax.Array:
  """Attributes as one int32 array `[B or 1, 4, N]`."""
  if info is None:
    raise ValueError(f"{name} is needed: queries and keys differ in number.")
  fields = [jnp.asarray(np.asarray(f) if info.static else f, jnp.int32) for f in info]
  fields = [f[None] if f.ndim == 1 else f for f in fields]
  if any(f.shape[-1] != x.shape[1] or f.shape[0] not in (1, x.shape[0]) for f in fields):
    raise ValueError(
      f"{name} has fields {[f.shape for f in info]} for tokens {x.shape[:2]}; "
      "give [N] or [B, N] entries, one a token (TokenInfo.tokens repeats frames)."
    )
  return jnp.stack(jnp.broadcast_arrays(*fields), axis=1)
