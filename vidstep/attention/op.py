"""The public attention op: checks its arguments and hands them to the primitives."""

from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np

import vidstep.attention.fused  # noqa: F401  (registers its rules)
from pallas_kernels.attention import reference
from vidstep.attention.dispatch import Spec, pick
from vidstep.attention.primitives import attention_with_lse
from vidstep.masks import Full, Rule, TokenInfo
from vidstep.masks.plan import pack_info


def attention(
  q: jax.Array,
  k: jax.Array,
  v: jax.Array,
  mask: Rule | None = None,
  *,
  q_info: TokenInfo | None = None,
  k_info: TokenInfo | None = None,
  scale: float | None = None,
  implementation: str | Callable | None = None,
  return_lse: bool = False,
) -> jax.Array | tuple[jax.Array, jax.Array]:
  """Softmax attention `o = softmax(scale q k' + mask) v`, differentiable in both modes.

  Works under jit, vmap, jvp, grad, linearize, checkpoint, scan and shard_map. A second derivative
  (of a tangent or of a gradient) raises, except with `implementation="xla"`; a tangent under
  `stop_gradient` is free of that.

  Args:
    q: `[B, Nq, heads, D]` queries.
    k: `[B, Nk, heads, D]` keys.
    v: `[B, Nk, heads, D]` values.
    mask: rule that says which query attends to which key; None attends everywhere.
    q_info: the queries' attributes, fields `[Nq]` or `[B, Nq]`; needed with a mask. NumPy arrays
      are planned for on the host, traced arrays are looked at on the device.
    k_info: the keys' attributes; those of the queries when left out.
    scale: factor of the logits; `D**-0.5` when left out.
    implementation: `xla` (dense, O(N^2) memory, differentiable any number of times), `xla_chunked`
      (O(N) memory, any platform) or another of `pallas_kernels.attention.KERNELS`. None picks the
      first of those that supports the call on the platform it is compiled for; a name never falls
      back. A function with this signature is called instead: `vidstep.parallel` makes those that
      shard.
    return_lse: also return the log-sum-exp of the logits, differentiable too.

  Returns:
    `o [B, Nq, heads, D]` in q's dtype; with `return_lse` also `lse [B, heads, Nq]` in float32
    (float64 for float64 inputs). A query that may attend to nothing gets 0, and lse -inf.

  Raises:
    ValueError: for shapes, dtypes or attributes that do not fit together.
    NotImplementedError: if the implementation asked for, or all of them, do not support the call.
  """
  if callable(implementation):
    options = dict(q_info=q_info, k_info=k_info, scale=scale, return_lse=return_lse)
    return implementation(q, k, v, mask, **options)
  q, k, v = map(jnp.asarray, (q, k, v))
  x, spec = prepare(q, k, v, mask, q_info, k_info, scale, implementation)
  o, lse = run(x, spec)
  return (o, lse) if return_lse else o


def run(x: list[jax.Array], spec: Spec) -> tuple[jax.Array, jax.Array]:
  """Output and log-sum-exp of a prepared call."""
  if spec.implementation == "xla":
    return reference.attention(*x[:3], spec.mask(x).dense(), scale=spec.scale)
  pick("forward", None, spec, x)  # what no platform supports fails here, not while compiling
  return attention_with_lse(x, spec)


def prepare(
  q: jax.Array,
  k: jax.Array,
  v: jax.Array,
  mask: Rule | None,
  q_info: TokenInfo | None,
  k_info: TokenInfo | None,
  scale: float | None,
  implementation: str | None,
) -> tuple[list[jax.Array], Spec]:
  """Checks a call of `attention` and splits it into its arrays and its static side."""
  _check(q, k, v)
  scale = float(q.shape[-1] ** -0.5 if scale is None else scale)
  if mask is None or mask == Full():
    return [q, k, v], Spec(None, None, None, scale, implementation)
  if q_info is None or (k_info is None and k.shape[1] != q.shape[1]):
    raise ValueError(f"{mask} needs q_info, and k_info where keys are not the queries' tokens.")
  k_info = q_info if k_info is None else k_info
  static = q_info.static and k_info.static
  infos = _pack(mask, "q_info", q_info, q, static), _pack(mask, "k_info", k_info, k, static)
  if static:
    return [q, k, v], Spec(mask, *infos, scale, implementation)
  return [q, k, v, *infos], Spec(mask, None, None, scale, implementation)


def _check(q: jax.Array, k: jax.Array, v: jax.Array):
  if q.ndim != 4 or k.ndim != 4 or k.shape != v.shape or q.shape[::2] != k.shape[::2]:
    raise ValueError(
      "attention takes q [B, Nq, heads, D] and k, v [B, Nk, heads, D]; "
      f"got {q.shape}, {k.shape}, {v.shape}."
    )
  if q.shape[3] != k.shape[3]:
    raise ValueError(f"q and k differ in head dim: {q.shape[3]} and {k.shape[3]}.")
  if not (q.dtype == k.dtype == v.dtype and jnp.issubdtype(q.dtype, jnp.floating)):
    raise ValueError(f"q, k, v have one float dtype; got {q.dtype}, {k.dtype}, {v.dtype}: cast.")


def _pack(mask: Rule, name: str, info: TokenInfo, x: jax.Array, static: bool):
  fields = pack_info(mask, info, static)
  shape = fields.value.shape if static else fields.shape
  if shape[2] != x.shape[1] or shape[0] not in (1, x.shape[0]):
    raise ValueError(
      f"{name} has fields of shape {[np.shape(f) for f in info]} for {x.shape[:2]} tokens; "
      "give one entry a token, [N] or [B, N] (TokenInfo.tokens repeats those of frames)."
    )
  return fields
