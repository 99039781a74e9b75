"""The analytic videos of the tables: exact teacher, data, and distances to the truth."""

import dataclasses
import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from vidstep.teachers import analytic, gaussian, mixture

FRAMES, FRAME = 3, (1, 1, 2)
SHAPE = (FRAMES, *FRAME)
DIM = FRAMES * 2
PROJECTIONS = 64
MIXTURE_SEED, MODES, SPREAD = 1, 3, 2.0


@dataclasses.dataclass(frozen=True, eq=False)
class Video:
  """A law over clips of 3 frames of 1 x 1 pixels and 2 channels: R^6.

  Attributes:
    name: "gaussian" or "mixture".
    params: `GaussianVideo` or `MixtureVideo`.
    law: `mixture.Law` of a batch of one, computed once: no eigenvalues inside a training loop. A
      Gaussian is written as three equal components, so that one program serves both videos.
  """

  name: str
  params: Any
  law: Any

  def draw(self, key, n):
    """n clips [n, 3, 1, 1, 2]."""
    return _draw(self.name, self.params, key, n)

  @functools.cached_property
  def moments(self):
    """Mean [6] and covariance [6, 6], float64."""
    with jax.enable_x64(True):
      wide = jax.tree.map(lambda a: jnp.asarray(a, jnp.float64), self.params)
      module = gaussian if self.name == "gaussian" else mixture
      mean, cov = module.moments(wide, 1, FRAMES)
      return np.asarray(mean[0]), np.asarray(cov.reshape(DIM, DIM))

  def distance(self, x, real):
    """Wasserstein-2 of clips x to the truth.

    Gaussian video: between the Gaussian fitted to x and the true one, in closed form; `real` is not
    read. Mixture video: sliced, against as many fresh clips `real`, over fixed directions.
    """
    x = np.asarray(x, np.float64).reshape(len(x), -1)
    if not np.isfinite(x).all():
      return float("inf")
    if self.name == "mixture":
      return sliced_wasserstein(x, np.asarray(real, np.float64).reshape(len(real), -1))
    with jax.enable_x64(True):
      mean, cov = analytic.fit(jnp.asarray(x))
      return float(analytic.wasserstein(mean, cov, *(jnp.asarray(a) for a in self.moments)))

  def coverage(self, x):
    """Mode coverage, 1 - total variation of the shares of modes, and the worst mode's share of its
    due, `min_k share_k / weight_k`; both 1 for the truth."""
    x = jnp.asarray(np.nan_to_num(np.asarray(x, np.float32), nan=1e6, posinf=1e6, neginf=-1e6))
    shares = np.asarray(mixture.mode_shares(self.params, x), np.float64)
    weight = np.exp(np.asarray(self.params.log_weight, np.float64))
    return float(np.minimum(shares, weight).sum()), float((shares / weight).min())


def velocity(law, x, t, cond=None):
  """The exact teacher, as any other velocity: its parameters are `Video.law`."""
  del cond
  wide = lambda mean: jnp.broadcast_to(mean, (len(mean), len(x), mean.shape[-1]))
  law = jax.tree.map(lambda a: a.astype(x.dtype), law)
  posterior = mixture.posterior_of(
    law._replace(parts=law.parts._replace(mean=wide(law.parts.mean))), x, t
  )
  return posterior.eps - posterior.x0


@functools.cache
def video(name):
  """The video of that name, the same on every machine.

  The Gaussian one is a chain that remembers 0.9 of a frame; the mixture has three such chains,
  apart from each other, with weights 1 : 2 : 3.
  """
  example = jnp.zeros((1, *SHAPE))
  if name == "gaussian":
    params = gaussian.random_gaussian(0, shape=FRAME, actions=1)
    parts = jax.tree.map(lambda a: jnp.stack([a] * MODES), gaussian.law(params, example))
    return Video(name, params, mixture.Law(jnp.full(MODES, -np.log(MODES), jnp.float32), parts))
  if name == "mixture":
    params = mixture.random_mixture(
      MIXTURE_SEED, modes=MODES, spread=SPREAD, shape=FRAME, actions=1
    )
    return Video(name, params, mixture.law(params, example))
  raise ValueError(f"Unknown video {name!r}: there are gaussian and mixture.")


@functools.partial(jax.jit, static_argnums=(0, 3))
def _draw(name, params, key, n):
  module = gaussian if name == "gaussian" else mixture
  return module.draw(params, key, (n, *SHAPE)).astype(jnp.float32)


def sliced_wasserstein(x, y):
  """`sqrt(E_u W2^2(u x, u y) D)` over fixed random directions u on the sphere of R^D.

  The factor D makes it the plain W2 for a shift in a random direction. Float64, equal numbers of
  rows.

  Raises:
    ValueError: if the two differ in shape.
  """
  if x.shape != y.shape:
    raise ValueError(f"sliced_wasserstein needs sets of one shape, got {x.shape} and {y.shape}.")
  u = np.random.default_rng(0).normal(size=(x.shape[1], PROJECTIONS))
  u /= np.linalg.norm(u, axis=0)
  gap = np.sort(x @ u, axis=0) - np.sort(y @ u, axis=0)
  return float(np.sqrt(x.shape[1] * np.mean(gap**2)))
