"""One Gaussian video as a generator, its law, and a fake score of just the right size."""

import jax
import jax.numpy as jnp
import numpy as np
from videos import DIM, SHAPE, Videos, flat

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


def gradient(objective, role, nets, n=2**17, key=0):
  """The gradient of a role's loss in its own parameters, over n fresh samples."""
  loss = jax.grad(objective.loss[role], has_aux=True)
  batch = Batch(jnp.zeros((n, *SHAPE)))
  return flat(loss(nets[role], nets, objective.init_aux(), batch, jax.random.key(key), 0)[0])
