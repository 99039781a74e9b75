"""A small network that can bend: for data with several modes, where linear students say nothing."""

import jax.numpy as jnp
import numpy as np
from videos import DIM, SHAPE, flat


def velocity(params, x, t, cond):
  """x plus two hidden layers of tanh on x and t [B]."""
  pad = lambda y: jnp.concatenate([y, jnp.ones_like(y[:, :1])], 1)
  y, t = x.reshape(-1, DIM), t[:, None]
  h = jnp.tanh(pad(jnp.concatenate([y, t, jnp.sin(3 * t), jnp.cos(3 * t)], 1)) @ params["in"])
  h = jnp.tanh(pad(h) @ params["mid"])
  return (y + pad(h) @ params["out"]).reshape(x.shape)


def weights(seed=0, width=64):
  rng = np.random.default_rng(seed)
  layer = lambda m, n: jnp.float32(rng.normal(size=(m, n)) / np.sqrt(m))
  return {"in": layer(DIM + 4, width), "mid": layer(width + 1, width), "out": layer(width + 1, DIM)}


def one_step(params, n=2**14):
  """[n, DIM] samples, each one jump from noise."""
  noise = jnp.float32(np.random.default_rng(99).normal(size=(n, *SHAPE)))
  return flat(noise - velocity(params, noise, jnp.ones(n), None)).reshape(n, DIM)


def share(samples, videos):
  """Share of the samples that is nearest to the mean of the first mode."""
  away = np.linalg.norm(samples[:, None] - videos.means[None], axis=2)
  return np.mean(away.argmin(1) == 0)
