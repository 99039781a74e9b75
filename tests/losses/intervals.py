"""Average velocities of one Gaussian video: a student family, its training laws, and quadrature."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
from videos import DIM, SHAPE, at_time, average_velocity, dynamics, numpy_average, residual

VIDEOS = dynamics()
_AVERAGE = average_velocity(VIDEOS)


def student(params, x, t, cond, *, s):
  """The exact average velocity, plus `(1 + s) sum_k t^k (A_k x + b_k)`."""
  return _AVERAGE(x, t, cond, s) + (1 + s.reshape(-1, 1, 1, 1, 1)) * residual(params, x, t)


def numpy_student(params, x, t, s):
  """The same in float64."""
  a, b = at_time(params, t)
  base = VIDEOS.velocity(x, t) if s == t else numpy_average(VIDEOS, x, t, s)
  return base + (1 + s) * (x @ a.T + b)


def pairs(equal, zero, shift, points=24):
  """(t, s, weight) of the training law: t and s the larger and smaller of two shifted uniforms."""
  nodes, weights = np.polynomial.legendre.leggauss(points)
  u, w = (nodes + 1) / 2, weights / 2
  time = lambda u: shift * u / (1 + (shift - 1) * u)
  for a, weight in zip(u, 2 * u * w, strict=True):
    yield time(a), time(a), equal * weight
    yield time(a), 0.0, zero * weight
    for b, inner in zip(u, w, strict=True):
      yield time(a), time(a * b), (1 - equal - zero) * weight * inner


def expected_gradient(params, residuals, *, equal, zero, shift, weigh, n=512):
  """`E 2/D (1 + s) t^k w R (x_t, 1)'` for residuals `R(x, t, s, x0, eps)`, stopped; Monte Carlo."""
  rng = np.random.default_rng(7)
  grad_a, grad_b = np.zeros_like(params["A"], np.float64), np.zeros_like(params["b"], np.float64)
  for t, s, weight in pairs(equal, zero, shift):
    x0, eps = VIDEOS.draw(rng, n), rng.normal(size=(n, DIM))
    x = (1 - t) * x0 + t * eps
    r = residuals(x, t, s, x0, eps)
    r = r * weigh(np.mean(r**2, 1, keepdims=True))
    for k in range(len(grad_a)):
      grad_a[k] += weight * 2 / DIM * (1 + s) * t**k * r.T @ x / n
      grad_b[k] += weight * 2 / DIM * (1 + s) * t**k * r.mean(0)
  return np.concatenate([grad_a.ravel(), grad_b.ravel()])


def law(velocity, times):
  """Mean and covariance of where steps along `times` take noise, for an affine `u(x, t, s)`."""
  x = jnp.float32(np.concatenate([np.zeros((1, DIM)), np.eye(DIM)])).reshape(-1, *SHAPE)
  for t, s in itertools.pairwise(times):
    x = x - (t - s) * velocity(x, jnp.full(DIM + 1, t), jnp.full(DIM + 1, s))
  ends = np.asarray(x, np.float64).reshape(-1, DIM)
  slope = (ends[1:] - ends[0]).T
  return ends[0], slope @ slope.T


def grown(base, powers=5):
  """A student that starts at `base(x, t)` and can grow into an average velocity, and its start.

  The residual is `sum_jk t^j s^k (A_jk x + b_jk)`.
  """

  def velocity(params, x, t, cond, *, s):
    out = base(x, t, cond)
    for k in range(powers):
      here = jax.tree.map(lambda a, k=k: a[k], params)
      out = out + (2 * s.reshape(-1, 1, 1, 1, 1) - 1) ** k * residual(here, x, 2 * t - 1)
    return out

  shape = (powers, powers, DIM)
  return velocity, {"A": jnp.zeros((*shape, DIM)), "b": jnp.zeros(shape)}
