"""What every attention kernel must satisfy: an oracle in NumPy float64, problems, error bars.

    problem = make_problem(seed, q_shape=(2, 100, 3, 64), k_len=77, dtype=jnp.float32, mask=mask)
    for name, error in relative_errors(kernel, problem).items(): assert error < BARS[dtype], name

The oracle shares no code with any kernel. Masks come from the caller.
"""

import dataclasses
from collections.abc import Callable, Collection

import jax
import jax.numpy as jnp
import numpy as np

from pallas_kernels.attention.kernel import Kernel
from pallas_kernels.attention.mask import Mask

BARS = {"float32": 3e-6, "bfloat16": 1e-2, "float64": 1e-12}
ALL = (True, True, True)
PARTS = ("forward", "tangent", "backward")


@dataclasses.dataclass(frozen=True)
class Problem:
  """Inputs of one call: arrays, tangents, cotangents and a mask.

  Attributes:
    x: q, k, v.
    dx: their tangents.
    cotangents: of o `[B, Nq, H, D]` and of lse `[B, H, Nq]`.
    mask: who may attend to whom.
    scale: factor of the logits.
  """

  x: tuple[jax.Array, jax.Array, jax.Array]
  dx: tuple[jax.Array, jax.Array, jax.Array]
  cotangents: tuple[jax.Array, jax.Array]
  mask: Mask
  scale: float


def make_problem(
  seed: int, q_shape: tuple[int, int, int, int], k_len: int, dtype: jnp.dtype, mask: Mask
) -> Problem:
  """Standard-normal inputs for queries `[B, Nq, H, D]` and `k_len` keys."""
  rng = np.random.default_rng(seed)
  b, n, h, d = q_shape
  draw = lambda length: jnp.asarray(rng.standard_normal((b, length, h, d)), dtype)
  wide = jnp.float64 if dtype == jnp.float64 else jnp.float32
  x, dx = ((draw(n), draw(k_len), draw(k_len)) for _ in range(2))
  cotangents = draw(n), jnp.asarray(rng.standard_normal((b, h, n)), wide)
  return Problem(x, dx, cotangents, mask, d**-0.5)


def oracle(problem: Problem, live: tuple[bool, bool, bool] = ALL) -> dict[str, np.ndarray]:
  """All outputs of all modes in float64: o, lse, do, dlse, dq, dk, dv.

  Args:
    problem: the call.
    live: which of q, k, v have a tangent.
  """
  heads = lambda a: np.moveaxis(np.asarray(a).astype(np.float64), 2, 1)
  q, k, v = map(heads, problem.x)
  tq, tk, tv = (heads(t) * alive for t, alive in zip(problem.dx, live, strict=True))
  co, clse = heads(problem.cotangents[0]), np.asarray(problem.cotangents[1]).astype(np.float64)
  allowed = problem.mask.dense()
  allowed = np.ones((1, 1, 1, 1), bool) if allowed is None else np.asarray(allowed)[:, None]

  key = lambda a: np.swapaxes(a, -1, -2)
  s = np.where(allowed, problem.scale * q @ key(k), -np.inf)
  top = s.max(-1, keepdims=True)
  weight = np.exp(s - np.where(np.isfinite(top), top, 0))
  total = weight.sum(-1, keepdims=True)
  p = np.divide(weight, total, out=np.zeros_like(weight), where=total > 0)
  with np.errstate(divide="ignore"):
    lse = (np.where(np.isfinite(top), top, 0) + np.log(total))[..., 0]

  ts = problem.scale * (tq @ key(k) + q @ key(tk))  # how the logits move
  mean = (p * ts).sum(-1, keepdims=True)
  tp = p * (ts - mean)  # how the probabilities move: the Jacobian of softmax
  cp = co @ key(v)
  cs = p * (cp - (p * cp).sum(-1, keepdims=True)) + p * clse[..., None]
  tokens = lambda a: np.moveaxis(a, 1, 2)
  return {
    "o": tokens(p @ v),
    "lse": lse,
    "do": tokens(tp @ v + p @ tv),
    "dlse": mean[..., 0],
    "dq": tokens(problem.scale * cs @ k),
    "dk": tokens(problem.scale * key(cs) @ q),
    "dv": tokens(key(p) @ co),
  }


def run(
  kernel: Kernel,
  problem: Problem,
  live: tuple[bool, bool, bool] = ALL,
  parts: Collection[str] = PARTS,
) -> dict[str, jax.Array]:
  """All outputs of a kernel's functions; those of the fused one carry a prime.

  Args:
    kernel: what is run.
    problem: the call.
    live: in which of q, k, v tangents are taken, and of which gradients are wanted.
    parts: the functions that are run, for kernels that refuse one; "forward" always is.
  """
  mask, scale = problem.mask, problem.scale
  dx = [t if alive else None for t, alive in zip(problem.dx, live, strict=True)]
  (q, k, v), (co, clse) = problem.x, problem.cotangents
  out = {}
  out["o"], out["lse"] = o, lse = kernel.forward(q, k, v, mask, scale=scale)
  if "backward" in parts:
    delta = jnp.einsum("bqhd,bqhd->bhq", co.astype(lse.dtype), o.astype(lse.dtype)) - clse
    grads = kernel.backward(q, k, v, lse, co, delta, mask, scale=scale, wanted=live)
    out |= {name: g for name, g in zip(("dq", "dk", "dv"), grads, strict=True) if g is not None}
  if "tangent" in parts:
    out["do"], out["dlse"] = kernel.tangent(q, k, v, o, lse, *dx, mask, scale=scale)
  if "tangent" in parts and kernel.forward_tangent is not None:
    fused = kernel.forward_tangent(q, k, v, *dx, mask, scale=scale)
    out |= dict(zip(("o'", "lse'", "do'", "dlse'"), fused, strict=True))
  return out


def relative_errors(
  kernel: Kernel,
  problem: Problem,
  live: tuple[bool, bool, bool] = ALL,
  execute: Callable = run,
) -> dict[str, float]:
  """Relative L2 error of every output against the oracle.

  Rows that attend to nothing must be exact (0, and -inf for lse), or the error is infinite; so it
  is if anything is NaN or has the wrong dtype.
  """
  expected = oracle(problem, live)
  errors = {}
  for name, got in execute(kernel, problem, live).items():
    want = expected[name.rstrip("'")]
    like = problem.cotangents[1] if "lse" in name else problem.x[0]
    got = np.asarray(got).astype(np.float64) if got.dtype == like.dtype else np.full((), np.nan)
    errors[name] = _relative(got, want)
  return errors


def _relative(got: np.ndarray, want: np.ndarray) -> float:
  finite = np.isfinite(want)
  if got.shape != want.shape or not np.array_equal(got[~finite], want[~finite]):
    return np.inf
  got, want = got[finite], want[finite]
  error = np.linalg.norm(got - want) / max(np.linalg.norm(want), np.finfo(np.float64).tiny)
  return float(error) if np.isfinite(error) else np.inf
