"""Networks with every parameter random: zero-initialised gates would make all of them equal."""

import jax
import jax.numpy as jnp
import numpy as np


def randomised(params, seed=0):
  """Every parameter (or shape of one) drawn anew, none small: a term that is lost must show."""
  leaves, tree = jax.tree.flatten(params)
  rng = np.random.default_rng(seed)

  def draw(a):
    scale = 0.3 if a.ndim == 1 else a.shape[-2] ** -0.5
    return jnp.asarray(rng.standard_normal(a.shape) * scale + (a.ndim == 1), a.dtype)

  return jax.tree.unflatten(tree, [draw(a) for a in leaves])
