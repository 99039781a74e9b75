"""Dense attention in plain JAX: the oracle of the kernels, differentiable any number of times."""

import jax
import jax.numpy as jnp


def attention(
  q: jax.Array, k: jax.Array, v: jax.Array, mask: jax.Array | None, *, scale: float
) -> tuple[jax.Array, jax.Array]:
  """`softmax(scale q k') v` and its log-sum-exp, in O(N^2) memory.

  Args:
    q: `[B, Nq, H, D]`.
    k: `[B, Nk, H, D]`.
    v: `[B, Nk, H, D]`.
    mask: bool `[B or 1, Nq, Nk]`, or None for all.
    scale: factor of the logits.

  Returns:
    `o [B, Nq, H, D]` in q's dtype and `lse [B, H, Nq]` in float32 (float64 for float64 inputs).
    A row that may attend to nothing has `o = 0` and `lse = -inf`, and no gradient.
  """
  wide = jnp.float64 if q.dtype == jnp.float64 else jnp.float32
  s = jnp.einsum("bqhd,bkhd->bhqk", q, k, preferred_element_type=wide) * scale
  if mask is None:
    p, lse = _softmax(s)
  else:
    mask = mask[:, None]
    some = mask.any(-1, keepdims=True)
    # A row without keys is computed as if it had all and dropped after: no NaN in any derivative.
    p, lse = _softmax(jnp.where(mask | ~some, s, -jnp.inf))
    p = jnp.where(some, p, 0)
    lse = jnp.where(some[..., 0], lse, -jnp.inf)
  o = jnp.einsum("bhqk,bkhd->bqhd", p.astype(v.dtype), v, preferred_element_type=wide)
  return o.astype(q.dtype), lse


def _softmax(s: jax.Array) -> tuple[jax.Array, jax.Array]:
  m = jax.lax.stop_gradient(s.max(-1, keepdims=True))
  p = jnp.exp(s - m)
  total = p.sum(-1, keepdims=True)
  return p / total, (m + jnp.log(total))[..., 0]
