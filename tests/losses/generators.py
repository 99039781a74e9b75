"""One Gaussian video as a generator, its law, and a fake score of just the right size."""

import jax
import jax.numpy as jnp
import numpy as np
from videos import DIM, SHAPE, Videos, flat, shifted_quadrature

from vidstep.losses import Batch


def linear(params, batch, key):
  """A generator of one Gaussian video: x0 = W eps + b."""
  eps = jax.random.normal(key, (batch.x0.shape[0], DIM))
  return (eps @ params["W"].T + params["b"][None]).reshape(batch.x0.shape)


def matched(videos):
  """Parameters at which `linear` draws the videos of one Gaussian."""
  return {"W": jnp.float32(np.linalg.cholesky(videos.covs[0])), "b": jnp.float32(videos.means[0])}


def moved(params, seed=0, size=0.3):
  rng = np.random.default_rng(seed)
  return jax.tree.map(lambda x: x + jnp.float32(size * rng.normal(size=x.shape)), params)


def drawn_by(params):
  """The distribution of `linear`, float64."""
  w, b = (np.asarray(params[name], np.float64) for name in "Wb")
  return Videos(np.ones(1), b[None], (w @ w.T)[None])


def one_gaussian(params, x, t, cond):
  """A fake score of just the right size: the velocity of N(b, W W')."""
  t, b = t.reshape(-1, 1), params["b"][None]
  cov = (params["W"] @ params["W"].T)[None]
  total = (1 - t[..., None]) ** 2 * cov + t[..., None] ** 2 * jnp.eye(DIM)[None]
  solved = jnp.linalg.solve(total, (x.reshape(-1, DIM) - (1 - t) * b)[..., None])[..., 0]
  return (t * solved - (1 - t) * (solved @ cov[0]) - b).reshape(x.shape)


def gradient(objective, role, nets, n=2**17, key=0, x0=None):
  """The gradient of a role's loss in its own parameters, over n fresh samples."""
  loss = jax.grad(objective.loss[role], has_aux=True)
  batch = Batch(jnp.zeros((n, *SHAPE)) if x0 is None else x0)
  return flat(loss(nets[role], nets, objective.init_aux(), batch, jax.random.key(key), 0)[0])


def oracle_direction(params, teacher, shift, *, h=None, push=None, n=4096):
  """`E dL/dx0 (eps, 1)'` of distribution matching, the fake score exact; float64, Monte Carlo.

  dL/dx0 = 2/D h g + push, g = (f_fake - f_T) / mean|x0 - f_T|; h [N] and push [N, DIM] are
  functions of x_t, t, f_T and f_fake.
  """
  rng = np.random.default_rng(7)
  w, b = (np.asarray(params[name], np.float64) for name in "Wb")
  grad_w, grad_b = np.zeros_like(w), np.zeros_like(b)
  for _, t, weight in zip(*shifted_quadrature(shift, 64), strict=True):
    eps = rng.normal(size=(n, DIM))
    x0 = eps @ w.T + b
    x = (1 - t) * x0 + t * rng.normal(size=(n, DIM))
    goal, own = teacher.posterior_mean(x, t), drawn_by(params).posterior_mean(x, t)
    slope = 2 / DIM * (own - goal) / np.mean(np.abs(x0 - goal), 1, keepdims=True)
    if h is not None:
      slope *= h(x, t)[:, None]
    if push is not None:
      slope += push(x, t, goal, own)
    grad_w += weight * slope.T @ eps / n
    grad_b += weight * slope.mean(0)
  return np.concatenate([grad_w.ravel(), grad_b.ravel()])


# ------------------------------------------------------------------------------------------------
# Densities of noised videos, up to a constant that all share
# ------------------------------------------------------------------------------------------------


def numpy_log_density(videos, x, t):
  """log p_t of a mixture at x [N, DIM], float64."""
  logs = []
  for w, m, s in zip(videos.weights, videos.means, videos.covs, strict=True):
    total = (1 - t) ** 2 * s + t**2 * np.eye(DIM)
    rest = x - (1 - t) * m
    inner = np.sum(rest * np.linalg.solve(total, rest.T).T, 1)
    logs.append(np.log(w) - (inner + np.linalg.slogdet(total)[1]) / 2)
  top = np.max(logs, 0)
  return top + np.log(np.sum(np.exp(logs - top), 0))


def log_density(params, x, t):
  """The same in JAX for parameters `Videos.params()`; x [B, ...], t [B]."""
  flat_x, t = x.reshape(-1, 1, DIM), t.reshape(-1, 1, 1)
  rest = flat_x - (1 - t) * params["mean"][None]
  along = jnp.einsum("mij,nmi->nmj", params["axes"], rest)
  total = (1 - t) ** 2 * params["var"][None] + t**2
  logs = params["log_w"][None] - 0.5 * jnp.sum(along**2 / total + jnp.log(total), -1)
  return jax.nn.logsumexp(logs, -1)


def one_log_density(params, x, t):
  """log p_t of N(b, W W'), in JAX and differentiable in W and b."""
  t = t.reshape(-1, 1)
  cov = (params["W"] @ params["W"].T)[None]
  total = (1 - t[..., None]) ** 2 * cov + t[..., None] ** 2 * jnp.eye(DIM)[None]
  rest = x.reshape(-1, DIM) - (1 - t) * params["b"][None]
  inner = jnp.sum(rest * jnp.linalg.solve(total, rest[..., None])[..., 0], 1)
  return -(inner + jnp.linalg.slogdet(total)[1]) / 2
