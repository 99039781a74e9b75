"""Attention over a union of key sets from attention over each: partial results joined by lse."""

from collections.abc import Sequence

import jax
import jax.numpy as jnp


def merge(parts: Sequence[tuple[jax.Array, jax.Array]]) -> tuple[jax.Array, jax.Array]:
  """Joins attention of the same queries over disjoint sets of keys.

  `lse = log sum_i exp(lse_i)`, `o = sum_i exp(lse_i - lse) o_i`. Differentiable in both modes;
  parts that a query attends to nothing in (lse -inf) do not count.

  Args:
    parts: pairs `o [B, N, H, D]`, `lse [B, H, N]`, as `attention(..., return_lse=True)` gives.

  Returns:
    `o` in the dtype of the parts' and `lse`, as one attention over all keys would give.
  """
  lses = jnp.stack([lse for _, lse in parts])
  present = lses > -jnp.inf
  top = jax.lax.stop_gradient(lses.max(0, keepdims=True))
  top = jnp.where(top > -jnp.inf, top, 0)
  # The inner where keeps -inf out of exp's derivative, the outer one drops the part.
  weights = jnp.where(present, jnp.exp(jnp.where(present, lses, top) - top), 0)
  total = weights.sum(0, keepdims=True)
  some = total > 0
  total = jnp.where(some, total, 1)
  shares = jnp.moveaxis(weights / total, 2, 3)[..., None]
  o = sum(share * o.astype(lses.dtype) for share, (o, _) in zip(shares, parts, strict=True))
  return o.astype(parts[0][0].dtype), jnp.where(some, top + jnp.log(total), -jnp.inf)[0]
