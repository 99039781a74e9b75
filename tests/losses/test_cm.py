"""Consistency training is proven against its closed form, and its bias on two modes is measured."""

import functools
import importlib
from statistics import NormalDist

import jax
import jax.numpy as jnp
import mlp
import numpy as np
import pytest
from fit import fit
from mutation import assert_caught, mutant
from videos import (
  DIM,
  SHAPE,
  at_time,
  batch_of,
  displaced,
  dynamics,
  exact,
  flat,
  mixture,
  near,
  residual,
  wasserstein,
  zeros,
)

from vidstep import paths
from vidstep.losses import Batch, cm

# The package exports the functions under the names of their modules.
SOURCE = importlib.import_module("vidstep.losses.cm")
CORE = importlib.import_module("vidstep.losses.dcm")
TIME = paths.LogNormal(-0.4, 1.2)
SAMPLES = 2**16
# 4 intervals at first, 8 from step 10, 12 from step 20 on.
OPTIONS = {"time": TIME, "steps": 4, "double": 10, "max_steps": 12}


def icdf(s):
  return 0.0 if s <= 0 else 1 / (1 + np.exp(0.4 - 1.2 * NormalDist().inv_cdf(s)))


@functools.lru_cache(maxsize=4)
def compiled(objective):
  return jax.jit(jax.value_and_grad(objective.loss[objective.roles[0]], has_aux=True))


def run(objective, params, batch, step=0, nets=None):
  """Loss and gradient, flattened."""
  nets = {objective.roles[0]: params} | (nets or {})
  (value, _), grads = compiled(objective)(params, nets, {}, batch, jax.random.key(0), step)
  return float(value), flat(grads)


# ------------------------------------------------------------------------------------------------
# The gradient
# ------------------------------------------------------------------------------------------------


def oracle_gradient(videos, params, other, intervals):
  """`2/D E (f(x_t0) - f'(x_t1)) / (t0 - t1) df(x_t0)/d(A_k, b_k)`, a student `v = A(t) x + b(t)`.

  x_t0 and x_t1 are Gaussian together: their covariance is (1 - t0)(1 - t1) S + t0 t1 I.
  """
  m, cov = videos.means[0], videos.covs[0]
  grad_a, grad_b = np.zeros_like(params["A"], np.float64), np.zeros_like(params["b"], np.float64)
  nodes, weights = np.polynomial.legendre.leggauss(200)
  for low, high in ((0, 1 / intervals), (1 / intervals, 1)):
    for node, weight in zip(nodes, weights, strict=True):
      s = low + (node + 1) / 2 * (high - low)
      w = weight / 2 * (high - low)
      t0, t1 = icdf(s), icdf(s - 1 / intervals)
      m0, m1 = (1 - t0) * m, (1 - t1) * m
      own = (1 - t0) ** 2 * cov + t0**2 * np.eye(DIM) + np.outer(m0, m0)
      across = (1 - t0) * (1 - t1) * cov + t0 * t1 * np.eye(DIM) + np.outer(m1, m0)
      (a0, b0), (a1, b1) = at_time(params, t0), at_time(other, t1)
      f0, f1, constant = np.eye(DIM) - t0 * a0, np.eye(DIM) - t1 * a1, t1 * b1 - t0 * b0
      for k in range(len(grad_a)):
        factor = -w * 2 / DIM * t0 ** (k + 1) / (t0 - t1)
        grad_a[k] += factor * (f0 @ own - f1 @ across + np.outer(constant, m0))
        grad_b[k] += factor * (f0 @ m0 - f1 @ m1 + constant)
  return np.concatenate([grad_a.ravel(), grad_b.ravel()])


def check_gradient(core, step, target="self"):
  source = mutant(SOURCE, "time=TIME", "time=TIME")
  source.consistency, source.curriculum = core.consistency, core.curriculum
  velocity = lambda params, x, t, cond: residual(params, x, t)
  objective = source.cm(velocity, distance="mse", target=target, **OPTIONS)
  ema = displaced(seed=1)
  other = ema if target == "ema" else displaced()
  expected = oracle_gradient(dynamics(), displaced(), other, {0: 4, 15: 8, 10**6: 12}[step])
  batch = Batch(batch_of(dynamics(), SAMPLES))
  _, found = run(objective, displaced(), batch, step, {"model.ema": ema})
  assert np.linalg.norm(found - expected) < 0.03 * np.linalg.norm(expected)


@pytest.mark.parametrize(("step", "target"), [(0, "self"), (15, "ema"), (10**6, "self")])
def test_the_gradient_is_that_of_the_closed_form_at_each_stage_of_the_curriculum(step, target):
  check_gradient(CORE, step, target)


@pytest.mark.parametrize(
  ("old", "new"),
  [
    ("stop_gradient(jump(other, x_t1, t1, batch.cond))", "stop_gradient(x0)"),
    ("jax.lax.stop_gradient(jump(other,", "(jump(other,"),
    ("jump(other, x_t1, t1", "jump(other, x_t1, t0"),
    ("1 / (t0 - t1) if", "1 / t0 if"),
    ("step // double", "1 + step // double"),
  ],
)
def test_a_wrong_core_fails_the_proof(old, new):
  assert_caught(check_gradient, mutant(CORE, old, new), 15)


def test_fresh_noise_at_the_lower_time_fails_the_proof():
  wrong = mutant(SOURCE, "interpolate(x0, eps, t1)", "interpolate(x0, eps[::-1], t1)")
  velocity = lambda params, x, t, cond: residual(params, x, t)
  objective = wrong.cm(velocity, distance="mse", **OPTIONS)
  _, found = run(objective, displaced(), Batch(batch_of(dynamics(), SAMPLES)))
  expected = oracle_gradient(dynamics(), displaced(), displaced(), 4)
  assert np.linalg.norm(found - expected) > 0.1 * np.linalg.norm(expected)


def test_the_curriculum_takes_python_and_traced_steps():
  intervals = CORE.curriculum(10, 1, 100, 70)
  steps = [0, 99, 100, 250, 399, 10**9]
  assert [int(intervals(step)) for step in steps] == [10, 10, 20, 40, 70, 70]
  assert jax.vmap(intervals)(jnp.int32(steps)).tolist() == [10, 10, 20, 40, 70, 70]
  assert CORE.curriculum(48)(10**9) == 48


# ------------------------------------------------------------------------------------------------
# Training
# ------------------------------------------------------------------------------------------------


def test_training_from_zero_reaches_the_walk_of_the_finest_grid():
  """No teacher and no exact part; the grid is refined from 4 to 16 intervals on the way."""
  videos, knots, time = dynamics(), 32, paths.Uniform(3.0)

  def velocity(params, x, t, cond):
    # Linear in x, piecewise linear in the quantiles of time: a weight acts on its neighbours only.
    s = time.cdf(t)[:, None] * knots
    at = jnp.maximum(1 - jnp.abs(s - jnp.arange(knots + 1, dtype=s.dtype)[None]), 0)
    slope = jnp.einsum("nk,kij->nij", at, params["A"])
    return (jnp.einsum("nij,nj->ni", slope, x.reshape(-1, DIM)) + at @ params["b"]).reshape(x.shape)

  def law(params):
    corners = np.concatenate([np.zeros((1, DIM)), np.eye(DIM)])
    video = jnp.float32(corners).reshape(-1, *SHAPE)
    ends = flat(video - velocity(params, video, jnp.ones(len(video)), None)).reshape(-1, DIM)
    return ends[0], (ends[1:] - ends[0]).T @ (ends[1:] - ends[0])

  options = {"steps": 4, "double": 300, "max_steps": 16, "distance": "mse"}
  start = {"model": zeros(knots + 1)}
  data = batch_of(videos, 2**13)
  end = fit(cm(velocity, time=time, **options), start, data, steps=1500, rates={"model": 0.05})

  grid = 3 * np.arange(17) / (16 + 2 * np.arange(17))
  mean, factor = np.zeros(DIM), np.eye(DIM)  # the walk, by what it does to a standard normal
  for here, there in zip(grid[:0:-1], grid[-2::-1], strict=True):
    offset = videos.velocity(np.zeros((1, DIM)), here)[0]
    slope = (videos.velocity(np.eye(DIM), here) - offset).T
    mean = mean - (here - there) * (slope @ mean + offset)
    factor = factor - (here - there) * slope @ factor
  walk, truth = (mean, factor @ factor.T), (videos.means[0], videos.covs[0])
  assert wasserstein(*law(start["model"]), *truth) > 1.5
  assert wasserstein(*law(end["model"]), *walk) < 0.1
  assert wasserstein(*law(end["model"]), *truth) < 0.26  # of which the walk's own bias is 0.195


# ------------------------------------------------------------------------------------------------
# The bias of robust distances
# ------------------------------------------------------------------------------------------------


def pulls(distance):
  """Gradient at the exact consistency function of two modes, as a share of that away from it.

  On grids of 16 and of 64 intervals.
  """
  data = mixture().params()

  def flow(x, t, cond, steps=12):
    def step(y, i):
      here, there = t * (1 - i / steps), t * (1 - (i + 1) / steps)
      dt, v = paths.expand(here - there, y), exact(data, y, here, cond)
      return y - dt * (v + exact(data, y - dt * v, there, cond)) / 2, None

    y, _ = jax.lax.scan(step, x, jnp.arange(steps, dtype=jnp.float32))
    return paths.v_from_x0(x, jax.lax.stop_gradient(y), t)

  options = {"steps": 16, "double": 1, "max_steps": 64}
  objective = cm(near(flow), time=paths.Uniform(), distance=distance, **options)
  batch = Batch(batch_of(mixture(), 2**14))
  size = lambda params, step: np.linalg.norm(run(objective, params, batch, step)[1])
  return [size(zeros(), step) / size(displaced(), step) for step in (0, 2)]


def test_squared_error_is_unbiased_on_fine_grids_and_pseudo_huber_is_not():
  """What pulls at the right function: less on finer grids, or a ninth that does not go away."""
  coarse, fine = pulls("mse")
  assert fine < 0.03 and coarse < 0.06
  coarse, fine = pulls("pseudo_huber")
  assert 0.1 < coarse < 0.12 and 0.1 < fine < 0.12


def test_squared_error_keeps_the_shares_of_modes_and_pseudo_huber_favours_the_larger():
  """What becomes of it: weights 0.7 and 0.3, a small network, from data alone."""
  videos = mixture()
  data = batch_of(videos, 2**14)
  shares, shifts = {}, {}
  for distance in ("mse", "pseudo_huber"):
    options = {"steps": 4, "double": 300, "max_steps": 32, "distance": distance}
    objective = cm(mlp.velocity, time=paths.Uniform(3.0), **options)
    end = fit(objective, {"model": mlp.weights()}, data, steps=2000, rates={"model": 0.005})
    samples = mlp.one_step(end["model"])
    shares[distance] = mlp.share(samples, videos)
    shifts[distance] = np.linalg.norm(samples.mean(0) - videos.mean())
  truth = mlp.share(flat(data).reshape(-1, DIM), videos)  # 0.673: the modes overlap a little
  assert abs(shares["mse"] - truth) < 0.015 and shifts["mse"] < 0.06
  assert shares["pseudo_huber"] > truth + 0.04 and shifts["pseudo_huber"] > 0.09


@pytest.mark.parametrize(
  ("options", "words"),
  [
    ({"steps": 3, "skip": 4}, "skip must be between 1 and steps=3"),
    ({"steps": 10, "max_steps": 5}, "up to max_steps >= steps"),
    ({"target": "teacher"}, "target must be one of self, ema"),
    ({"distance": "l1"}, "distance must be one of mse, pseudo_huber"),
    ({"weighting": "snr"}, "weighting must be one of none, gap"),
  ],
)
def test_impossible_options_are_refused(options, words):
  with pytest.raises(ValueError, match=words):
    cm(exact, **options)
