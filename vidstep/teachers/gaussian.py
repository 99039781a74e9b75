"""Gaussian videos with linear dynamics and actions: every quantity of diffusion in closed form.

The video is a Markov chain over frames flattened to D = H W C numbers,

    x_0 ~ N(start_mean, start_cov),   x_f = A x_{f-1} + B a_f + drift + N(0, noise_cov),

so that a whole clip is one Gaussian whose mean depends on the actions, and so is the rest of a clip
given its first frames. All functions take `(params, x, t, cond)` like any network of the library:
`cond.actions` `[B, n + F, A]` lead into their frames and `cond.context` `[B, n, H, W, C]` are clean
frames that precede x. Precision follows x: float64 in, float64 out.
"""

import functools
from typing import NamedTuple

import flax.struct
import jax
import jax.numpy as jnp
import numpy as np

from vidstep.models.cond import Cond


def full_precision(fn):
  """Runs fn with float32 matrix products everywhere: accelerators would round them to 10 bits."""

  @functools.wraps(fn)
  def wrapped(*args, **kwargs):
    with jax.default_matmul_precision("highest"):
      return fn(*args, **kwargs)

  return wrapped


@flax.struct.dataclass
class GaussianVideo:
  """Parameters of the chain.

  Attributes:
    transition: A, `[D, D]`.
    action: B, `[D, n_actions]`.
    drift: `[D]`.
    noise_cov: `[D, D]`.
    start_mean: `[D]`.
    start_cov: `[D, D]`.
  """

  transition: jax.Array
  action: jax.Array
  drift: jax.Array
  noise_cov: jax.Array
  start_mean: jax.Array
  start_cov: jax.Array


def random_gaussian(seed=0, *, shape=(2, 2, 1), actions=2, memory=0.9, noise=0.3, push=0.3):
  """Draws a stable chain: A is `memory` times a rotation; data is of order 1 and off centre.

  Args:
    seed: integer; the same chain on every platform.
    shape: (H, W, C) of a frame.
    actions: number of action channels.
    memory: norm of A, below 1.
    noise: typical standard deviation of what is new in a frame.
    push: typical size of what an action does.

  Returns:
    A `GaussianVideo` in JAX's default float precision.
  """
  rng = np.random.default_rng(seed)
  d = int(np.prod(shape))
  rotation = np.linalg.qr(rng.normal(size=(d, d)))[0]
  spread = rng.normal(size=(2, d, d)) / np.sqrt(d)
  cov = spread @ spread.transpose(0, 2, 1) + 0.3 * np.eye(d)
  arrays = GaussianVideo(
    transition=memory * rotation,
    action=push * rng.normal(size=(d, actions)),
    drift=0.2 * rng.normal(size=d),
    noise_cov=noise**2 * cov[0],
    start_mean=0.5 * rng.normal(size=d),
    start_cov=0.4**2 * cov[1],
  )
  return jax.tree.map(jnp.asarray, arrays)


def random_actions(key, batch, frames, actions):
  """Random buttons as the library encodes them: -1 / +1, and the null action into frame 0."""
  return jax.random.rademacher(key, (batch, frames, actions), jnp.float32).at[:, 0].set(0.0)


# ------------------------------------------------------------------------------------------------
# The law of a clip
# ------------------------------------------------------------------------------------------------


def _push(params, actions, batch, frames):
  """`B a_f + drift` for every frame, `[batch, frames, D]`."""
  if actions is None:
    return jnp.broadcast_to(params.drift, (batch, frames, *params.drift.shape))
  if actions.shape[:2] != (batch, frames):
    raise ValueError(
      f"Actions cover {actions.shape[:2]} (batch, frames), context and clip are {(batch, frames)}."
    )
  push = jnp.einsum("da,bfa->bfd", params.action, actions.astype(params.drift.dtype))
  return push + params.drift[None, None]


@full_precision
def moments(params, batch, frames, actions=None):
  """Mean and covariance of whole clips.

  With G the block lower triangular matrix of the powers of A, a clip is `G u` for independent
  `u_0 ~ N(start_mean, start_cov)`, `u_f ~ N(B a_f + drift, noise_cov)`.

  Args:
    params: `GaussianVideo`.
    batch: number of clips.
    frames: frames in a clip.
    actions: `[batch, frames, n_actions]` or None (all null).

  Returns:
    mean `[batch, frames D]` and covariance `[frames D, frames D]` (actions only move the mean).
  """
  d = params.drift.shape[0]
  powers = [jnp.eye(d, dtype=params.drift.dtype)]
  for _ in range(frames - 1):
    powers.append(params.transition @ powers[-1])
  nothing = jnp.zeros_like(powers[0])
  propagate = jnp.block(
    [[powers[i - j] if i >= j else nothing for j in range(frames)] for i in range(frames)]
  )
  source = _push(params, actions, batch, frames).at[:, 0].set(params.start_mean)
  covs = [params.start_cov] + [params.noise_cov] * (frames - 1)
  cov = jax.scipy.linalg.block_diag(*covs)
  mean = jnp.einsum("ij,bj->bi", propagate, source.reshape(batch, -1))
  return mean, propagate @ cov @ propagate.T


class Law(NamedTuple):
  """A clip as a Gaussian: mean `[B, n]`, covariance `[n, n]` and its eigenvalues and -vectors."""

  mean: jax.Array
  cov: jax.Array
  lam: jax.Array
  u: jax.Array


@full_precision
def law(params, x, cond=None):
  """The `Law` of a clip of the shape of x given context and actions, in the precision of x.

  The chain is Markov: given clean context it starts anew from the last context frame.
  """
  cond = Cond() if cond is None else cond
  params = jax.tree.map(lambda p: p.astype(x.dtype), params)
  batch, frames = x.shape[:2]
  if cond.context is None:
    mean, cov = moments(params, batch, frames, cond.actions)
  else:
    seen = cond.context.shape[1]
    push = _push(params, cond.actions, batch, seen + frames)[:, seen:]
    frame, out = cond.context[:, -1].reshape(batch, -1).astype(x.dtype), []
    for f in range(frames):
      frame = jnp.einsum("ij,bj->bi", params.transition, frame) + push[:, f]
      out.append(frame)
    mean = jnp.concatenate(out, axis=1)
    _, cov = moments(params.replace(start_cov=params.noise_cov), batch, frames)
  return Law(mean, cov, *jnp.linalg.eigh(cov))


@full_precision
def draw(params, key, shape, cond=None):
  """Draws clips from the chain, frame after frame.

  Args:
    params: `GaussianVideo`.
    key: random key.
    shape: (B, F, H, W, C).
    cond: `Cond` with actions and context, either of them None; or None.

  Returns:
    Clips of that shape in the precision of params.
  """
  cond = Cond() if cond is None else cond
  batch, frames = shape[:2]
  dtype, d = params.drift.dtype, params.drift.shape[0]
  seen = 0 if cond.context is None else cond.context.shape[1]
  push = _push(params, cond.actions, batch, seen + frames)[:, seen:]
  noise = jax.random.normal(key, (frames, batch, d), dtype)
  new = noise @ jnp.linalg.cholesky(params.noise_cov).T + push.swapaxes(0, 1)
  if cond.context is None:
    first = params.start_mean[None] + noise[0] @ jnp.linalg.cholesky(params.start_cov).T
  else:
    last = cond.context[:, -1].reshape(batch, d).astype(dtype)
    first = last @ params.transition.T + new[0]

  def step(frame, fresh):
    frame = frame @ params.transition.T + fresh
    return frame, frame

  _, rest = jax.lax.scan(step, first, new[1:])
  return jnp.concatenate([first[None], rest]).swapaxes(0, 1).reshape(shape)


# ------------------------------------------------------------------------------------------------
# Diffusion, in closed form
# ------------------------------------------------------------------------------------------------


class Posterior(NamedTuple):
  """What x_t tells: `E[x0 | x_t]`, `E[eps | x_t]`, `grad log p_t(x_t)` and `log p_t(x_t)` `[B]`."""

  x0: jax.Array
  eps: jax.Array
  score: jax.Array
  log_density: jax.Array


def _solve(k, b):
  """`K^-1 b` and `log det K` for positive definite K `[B, n, n]`, b `[B, n]`, by elimination.

  Plain array operations on purpose: batched LAPACK calls inside a loop can lock up the CPU's thread
  pool, and these also run on an accelerator in any precision.
  """

  def eliminate(rows, i):
    pivot = rows[:, i, i]
    row = rows[:, i] / pivot[:, None]
    rows = rows - rows[:, :, i][:, :, None] * row[:, None]
    return rows.at[:, i].set(row), jnp.log(pivot)

  rows = jnp.concatenate([k, b[..., None]], axis=-1)
  rows, log_pivots = jax.lax.scan(eliminate, rows, jnp.arange(k.shape[-1]))
  return rows[..., -1], log_pivots.sum(axis=0)


@full_precision
def posterior_of(law, x, t):
  """Posterior of a Gaussian clip under one time per clip or per frame.

  With S = diag(1 - t), T = diag(t) and `K = S cov S + T^2` (the covariance of x_t),

      E[x0 | x_t] = mean + cov S K^-1 (x_t - S mean),   E[eps | x_t] = T K^-1 (x_t - S mean).

  One time per clip leaves the eigenvectors of cov alone; times per frame need a solve per clip.

  Args:
    law: `Law`.
    x: `[B, F, H, W, C]`.
    t: `[B]` or `[B, F]`.
  """
  batch, n = law.mean.shape
  t = t.astype(x.dtype)
  if t.ndim == 1:
    t = t[:, None]
    off = x.reshape(batch, n) - (1 - t) * law.mean
    k = (1 - t) ** 2 * law.lam[None] + t**2
    solved, log_det = ((off @ law.u) / k) @ law.u.T, jnp.log(k).sum(axis=1)
  else:
    t = jnp.repeat(jnp.broadcast_to(t, x.shape[:2]), n // x.shape[1], axis=1)
    off = x.reshape(batch, n) - (1 - t) * law.mean
    k = (1 - t)[:, :, None] * law.cov[None] * (1 - t)[:, None, :]
    solved, log_det = _solve(k + t[:, :, None] ** 2 * jnp.eye(n, dtype=x.dtype)[None], off)
  return Posterior(
    x0=(law.mean + ((1 - t) * solved) @ law.cov).reshape(x.shape),
    eps=(t * solved).reshape(x.shape),
    score=-solved.reshape(x.shape),
    log_density=-0.5 * (jnp.sum(off * solved, axis=1) + log_det + n * np.log(2 * np.pi)),
  )


def posterior(params, x, t, cond=None):
  """`Posterior` of a clip given actions and clean context; t is `[B]` or `[B, F]`."""
  return posterior_of(law(params, x, cond), x, t)


def velocity(params, x, t, cond=None):
  """`v = E[eps - x0 | x_t]`: the exact teacher. Shapes as in the module docstring."""
  p = posterior(params, x, t, cond)
  return p.eps - p.x0


def clip_time(t, x):
  """One time per clip, `[B]` in the precision of x; `[B, 1]` will do for clips of one frame."""
  if t.ndim == 2 and t.shape[1] != 1:
    raise ValueError(f"A flow map takes one time per clip, got times of shape {t.shape}.")
  return t.reshape(-1).astype(x.dtype)


@full_precision
def flow_map(params, x, t, cond=None, *, s):
  """Carries x along the probability-flow ODE from time t to time s, exactly.

  With `cov = U diag(l) U'` and `r_i(t)^2 = (1 - t)^2 l_i + t^2`,

      X(x, t, s) = (1 - s) mean + U diag(r(s) / r(t)) U' (x - (1 - t) mean).

  Args:
    params: `GaussianVideo`.
    x: `[B, F, H, W, C]` at time t.
    t: `[B]`, one time per clip.
    cond: `Cond` or None.
    s: `[B]`; s > t adds noise along the same trajectory.

  Raises:
    ValueError: for times per frame: the flow map of a clip has one time.
  """
  t, s = clip_time(t, x)[:, None], clip_time(s, x)[:, None]
  mean, _, lam, u = law(params, x, cond)
  width = lambda r: jnp.sqrt((1 - r) ** 2 * lam[None] + r**2)
  off = (x.reshape(mean.shape) - (1 - t) * mean) @ u
  return ((1 - s) * mean + (off * width(s) / width(t)) @ u.T).reshape(x.shape)


def consistency(params, x, t, cond=None):
  """The consistency function: `flow_map` to s = 0."""
  return flow_map(params, x, t, cond, s=jnp.zeros_like(t))
