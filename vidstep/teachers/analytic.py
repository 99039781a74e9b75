"""The test bench: exact teachers (`gaussian`, `mixture`), made causal, and distances to their laws.

`causal(velocity, chunk)` turns a whole-clip function into what a causal student should learn;
`gaussian_frechet` and `wasserstein` compare Gaussian fits in closed form.
"""

import jax.numpy as jnp

from vidstep.models.cond import Cond
from vidstep.teachers import gaussian, mixture

__all__ = ["causal", "fit", "gaussian", "gaussian_frechet", "mixture", "wasserstein"]


def causal(fn, chunk=1):
  """Makes a whole-clip function of an analytic teacher causal over chunks of frames.

  The result gives, for each chunk, what `fn` says about it knowing only its past (and the actions
  up to its end): with `clean`, the clean frames before the chunk (teacher forcing); without, the
  noisy frames before it at their own times (diffusion forcing).

  Args:
    fn: `fn(params, x, t, cond, **times)` such as `gaussian.velocity` or `mixture.flow_map`.
    chunk: frames in a chunk; the last chunk may be shorter.

  Returns:
    `(params, x, t, cond=None, *, clean=None, **times)`, with x and clean `[B, F, H, W, C]` and
    times `[B]` or `[B, F]`. Flow maps need one time per chunk and clean frames: the flow of a chunk
    is defined given its past.

  Raises:
    ValueError: if chunk < 1, or a second time is given without clean frames.
  """
  if chunk < 1:
    raise ValueError(f"A chunk has at least 1 frame, got {chunk}.")

  def chunked(params, x, t, cond=None, *, clean=None, **times):
    if clean is None and times:
      raise ValueError(f"{sorted(times)} need clean past frames: pass clean=.")
    cond = Cond() if cond is None else cond
    seen = 0 if cond.context is None else cond.context.shape[1]
    out = []
    for start in range(0, x.shape[1], chunk):
      stop = min(start + chunk, x.shape[1])
      actions = None if cond.actions is None else cond.actions[:, : seen + stop]
      known = cond.replace(actions=actions)
      if clean is None:
        per_frame = jnp.broadcast_to(t if t.ndim == 2 else t[:, None], x.shape[:2])
        out.append(fn(params, x[:, :stop], per_frame[:, :stop], known)[:, start:])
        continue
      past = [] if cond.context is None else [cond.context]
      past += [clean[:, :start]] if start else []
      known = known.replace(context=jnp.concatenate(past, axis=1) if past else None)
      cut = lambda r, start=start, stop=stop: r[:, start:stop] if r.ndim == 2 else r
      now = {name: cut(r) for name, r in times.items()}
      out.append(fn(params, x[:, start:stop], cut(t), known, **now))
    return jnp.concatenate(out, axis=1)

  return chunked


@gaussian.full_precision
def fit(x):
  """Mean `[D]` and unbiased covariance `[D, D]` of samples `[N, ...]`, flattened to `[N, D]`."""
  x = x.reshape(x.shape[0], -1)
  off = x - x.mean(axis=0)[None]
  return x.mean(axis=0), off.T @ off / (x.shape[0] - 1)


@gaussian.full_precision
def gaussian_frechet(mean_a, cov_a, mean_b, cov_b):
  """Frechet distance of two Gaussians, the square of `wasserstein` (Dowson and Landau 1982).

      |mean_a - mean_b|^2 + tr(cov_a + cov_b - 2 (cov_a^1/2 cov_b cov_a^1/2)^1/2)

  Args:
    mean_a: `[D]`.
    cov_a: `[D, D]`, symmetric positive semidefinite.
    mean_b: `[D]`.
    cov_b: `[D, D]`.
  """
  lam, u = jnp.linalg.eigh(cov_a)
  root = (u * jnp.sqrt(jnp.maximum(lam, 0))[None]) @ u.T
  cross = jnp.linalg.eigvalsh(root @ cov_b @ root)
  bures = jnp.trace(cov_a) + jnp.trace(cov_b) - 2 * jnp.sqrt(jnp.maximum(cross, 0)).sum()
  return jnp.sum((mean_a - mean_b) ** 2) + jnp.maximum(bures, 0)


def wasserstein(mean_a, cov_a, mean_b, cov_b):
  """2-Wasserstein distance of two Gaussians, the root of `gaussian_frechet`."""
  return jnp.sqrt(gaussian_frechet(mean_a, cov_a, mean_b, cov_b))
