"""Truncated consistency is proven against its closed form, down to the jump of the first stage."""

import importlib

import jax
import jax.numpy as jnp
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
from vidstep.losses import Batch, tcm

# The package exports the function under the name of its module.
SOURCE = importlib.import_module("vidstep.losses.tcm")
START, END, SAMPLES = 0.4, 0.99, 2**17
# 2 intervals at first, 4 from step 10 on; the middle of the distribution is inside the interval.
SHAPE_OF_TIME = {"start": START, "end": END, "mean": 0.5, "std": 0.8, "df": 0.5}
OPTIONS = SHAPE_OF_TIME | {"steps": 2, "double": 10, "max_steps": 4, "boundary_weight": 2.0}


def quantile():
  """s -> t of the truncated log-Student-t distribution, by adding up its density."""
  x = np.linspace(np.log(START / (1 - START)), np.log(END / (1 - END)), 400_001)
  density = (1 + ((x - 0.5) / 0.8) ** 2 / 0.5) ** (-(0.5 + 1) / 2)
  mass = np.cumsum(density) - density[0] / 2 - density / 2
  return lambda s: 1 / (1 + np.exp(-np.interp(s, mass / mass[-1], x)))


def run(objective, params, nets, batch, step=0):
  """Loss and gradient, flattened."""
  loss = jax.value_and_grad(objective.loss["student"], has_aux=True)
  nets = {"student": params, **nets}
  (value, _), grads = loss(params, nets, {}, batch, jax.random.key(0), step)
  return float(value), flat(grads)


# ------------------------------------------------------------------------------------------------
# The gradient
# ------------------------------------------------------------------------------------------------


def oracle_gradient(videos, params, first, intervals):
  """`2/D E (f(x_t0) - g(x_t1)) / hop df(x_t0)/d(A_k, b_k)` and twice the boundary's, affine all.

  x_t0 and x_t1 are Gaussian together: their covariance is (1 - t0)(1 - t1) S + t0 t1 I.
  """
  m, cov, icdf = videos.means[0], videos.covs[0], quantile()
  grad_a, grad_b = np.zeros_like(params["A"], np.float64), np.zeros_like(params["b"], np.float64)

  def add(weight, t0, t1, lower):
    m0, m1 = (1 - t0) * m, (1 - t1) * m
    own = (1 - t0) ** 2 * cov + t0**2 * np.eye(DIM) + np.outer(m0, m0)
    across = (1 - t0) * (1 - t1) * cov + t0 * t1 * np.eye(DIM) + np.outer(m1, m0)
    (a0, b0), (a1, b1) = at_time(params, t0), at_time(lower, t1)
    f0, f1, constant = np.eye(DIM) - t0 * a0, np.eye(DIM) - t1 * a1, t1 * b1 - t0 * b0
    for k in range(len(grad_a)):
      factor = -weight * 2 / DIM * t0 ** (k + 1)
      grad_a[k] += factor * (f0 @ own - f1 @ across + np.outer(constant, m0))
      grad_b[k] += factor * (f0 @ m0 - f1 @ m1 + constant)

  lowest = icdf(1 / intervals) - START
  nodes, weights = np.polynomial.legendre.leggauss(64)
  for i in range(intervals):
    for node, weight in zip(nodes, weights, strict=True):
      s = (i + (node + 1) / 2) / intervals
      w = weight / 2 / intervals
      if i == 0:
        add(w / lowest, icdf(s), START, first)
      else:
        t0, t1 = icdf(s), icdf(s - 1 / intervals)
        add(w / (t0 - t1), t0, t1, params)
  add(2.0 / lowest, START, START, first)
  return np.concatenate([grad_a.ravel(), grad_b.ravel()])


def check_gradient(source, step):
  videos, first = dynamics(), displaced(seed=1)
  velocity = lambda params, x, t, cond: residual(params, x, t)
  objective = source.tcm(velocity, velocity, None, distance="mse", **OPTIONS)
  assert objective.frozen == ("stage_one",)
  batch = Batch(batch_of(videos, SAMPLES))
  _, found = run(objective, displaced(), {"stage_one": first}, batch, step)
  expected = oracle_gradient(videos, displaced(), first, 4 if step >= 10 else 2)
  assert np.linalg.norm(found - expected) < 0.03 * np.linalg.norm(expected)


@pytest.mark.parametrize("step", [0, 15])
def test_the_gradient_is_that_of_the_closed_form(step):
  check_gradient(SOURCE, step)


@pytest.mark.parametrize(
  ("old", "new"),
  [
    ("jax.lax.stop_gradient(jnp.where(", "(jnp.where("),
    ('network(nets, "stage_one"), x_t1', "trainable, x_t1"),
    ("paths.expand(t1, x0) > start", "paths.expand(t0, x0) > start"),
    ("time.icdf(jnp.float32(gap)) - start, t0 - t1)", "t0 - start + 0.1, t0 - t1)"),
    ("boundary_weight * at_boundary", "at_boundary"),
    ("jnp.where(pinned, 0, error) / (1 - boundary)", "jnp.where(pinned, 0, error)"),
    ("jump(velocity, trainable, x_t0, t0", "jump(velocity, trainable, x_t1, t0"),
    ("** -self.df", "** -(self.df + 1)"),
  ],
)
def test_a_wrong_objective_fails_the_proof(old, new):
  assert_caught(check_gradient, mutant(SOURCE, old, new), 15)


# ------------------------------------------------------------------------------------------------
# The fixed point
# ------------------------------------------------------------------------------------------------


def exact_jump(videos, t):
  """The consistency function of one Gaussian at time t, as matrix and offset."""
  values, vectors = np.linalg.eigh(videos.covs[0])
  scale = np.sqrt(values / ((1 - t) ** 2 * values + t**2))
  matrix = (vectors * scale) @ vectors.T
  return matrix, videos.means[0] - (1 - t) * matrix @ videos.means[0]


def first_stage(videos):
  """A first stage that is right at START, as a velocity."""
  matrix, offset = (jnp.float32(part) for part in exact_jump(videos, START))

  def velocity(params, x, t, cond):
    y = x.reshape(-1, DIM) @ matrix.T + offset[None]
    return paths.v_from_x0(x, y.reshape(x.shape), t)

  return velocity


def check_fixed_point(source):
  """The guided walk down to START, and the first stage's jump from there, lose nothing."""
  one, both = dynamics().params(), mixture().params()
  guided = lambda x, t: 1.5 * exact(one, x, t, None) - 0.5 * exact(both, x, t, None)

  @jax.jit
  def teacher(params, x, t, cond):
    known = cond["known"].reshape(-1, 1, 1, 1, 1)
    return jnp.where(known, exact(params[0], x, t, None), exact(params[1], x, t, None))

  first, icdf = first_stage(dynamics()), quantile()
  shares = np.linspace(0, 1, 4097)
  times, shares = jnp.float32(icdf(shares)), jnp.float32(shares)

  @jax.jit
  def student(x, t, cond):
    y, here, u = x, t, jnp.interp(t, times, shares)
    for _ in range(2):
      u = jnp.maximum(u - 0.5, 0)
      below = jnp.interp(u, shares, times)
      y, here = y - paths.expand(here - below, x) * guided(y, here), below
    y = paths.x0_from_v(y, first(None, y, here, None), here)
    return paths.v_from_x0(x, y, t)

  empty = lambda cond: {"known": jnp.zeros_like(cond["known"])}
  options = {"guidance": 1.5, "unconditional": empty, "distance": "mse", **OPTIONS}
  objective = source.tcm(near(student), first, teacher, source="teacher", **options)
  batch = Batch(batch_of(mixture(), 512), {"known": jnp.ones(512, bool)})
  nets = {"teacher": (one, both), "stage_one": None}
  value, grads = run(objective, zeros(), nets, batch)
  away, steep = run(objective, displaced(), nets, batch)
  assert value < 1e-7 * away
  assert np.linalg.norm(grads) < 1e-3 * np.linalg.norm(steep)


def test_the_walk_to_the_first_stage_loses_nothing():
  check_fixed_point(SOURCE)


def test_guidance_is_the_teachers():
  wrong = mutant(SOURCE, "apply_guidance(teacher, guidance,", "apply_guidance(teacher, 1,")
  assert_caught(check_fixed_point, wrong)


# ------------------------------------------------------------------------------------------------
# Training
# ------------------------------------------------------------------------------------------------


def test_training_from_zero_reaches_the_walk_and_the_first_stages_jump():
  videos, knots = dynamics(), 16
  time = SOURCE.LogStudent(START, END, 0.5, 0.8, 0.5)

  def velocity(params, x, t, cond):
    # Linear in x, piecewise linear in the quantiles of time: a weight acts on its neighbours only.
    s = time.cdf(t)[:, None] * knots
    at = jnp.maximum(1 - jnp.abs(s - jnp.arange(knots + 1, dtype=s.dtype)[None]), 0)
    slope = jnp.einsum("nk,kij->nij", at, params["A"])
    return (jnp.einsum("nij,nj->ni", slope, x.reshape(-1, DIM)) + at @ params["b"]).reshape(x.shape)

  teacher = lambda params, x, t, cond: exact(params, x, t, cond)
  options = SHAPE_OF_TIME | {"steps": 4, "double": None, "distance": "mse", "source": "teacher"}
  objective = tcm(velocity, first_stage(videos), teacher, **options)
  nets = {"student": zeros(knots + 1), "stage_one": None, "teacher": videos.params()}
  data = batch_of(videos, 2**13)
  params = fit(objective, nets, data, steps=1000, rates={"student": 0.05})["student"]

  corners = np.concatenate([np.zeros((1, DIM)), np.eye(DIM)])
  icdf, walk = quantile(), corners
  for i in range(4, 0, -1):
    here, there = icdf(i / 4), icdf((i - 1) / 4)
    walk = walk - (here - there) * videos.velocity(walk, here)
  matrix, offset = exact_jump(videos, START)
  walk = walk @ matrix.T + offset
  video = jnp.float32(corners).reshape(-1, *SHAPE)
  ends = flat(video - END * velocity(params, video, jnp.full(len(video), END), None))
  law = lambda y: (y[0], (y[1:] - y[0]).T @ (y[1:] - y[0]))
  found, goal = law(ends.reshape(-1, DIM)), law(walk)
  assert wasserstein(*law(corners), *goal) > 1
  assert wasserstein(*found, *goal) < 0.05


# ------------------------------------------------------------------------------------------------
# Details
# ------------------------------------------------------------------------------------------------


def test_the_papers_times_are_drawn_as_their_density_says():
  time = SOURCE.LogStudent(0.5, 80 / 81)  # mean 0, std 0.2, df 0.01: tails like 1 / x
  drawn = np.asarray(time.sample(jax.random.key(0), (2**15,)), np.float64)
  x = np.concatenate([[0], np.geomspace(1e-6, np.log(80), 20_000)])
  density = (1 + (x / 0.2) ** 2 / 0.01) ** (-1.01 / 2)
  mass = np.concatenate([[0], np.cumsum((density[1:] + density[:-1]) * np.diff(x))])
  for share in (0.1, 0.3, 0.5, 0.9):
    edge = 1 / (1 + np.exp(-np.interp(share, mass / mass[-1], x)))
    assert abs(np.mean(drawn < edge) - share) < 0.01
    assert abs(float(time.cdf(jnp.float32(edge))) - share) < 1e-3
  ends = jnp.float32([0, 0.5, 80 / 81, 1])
  np.testing.assert_allclose(time.cdf(ends), [0, 0, 1, 1], atol=1e-6)
  np.testing.assert_allclose(
    time.icdf(time.cdf(drawn[:64].astype(np.float32))), drawn[:64], rtol=1e-5
  )


def test_forwards_are_two_of_the_student_and_one_of_each_other():
  calls = []

  def counted(name):
    def velocity(params, x, t, cond):
      calls.append((name, t.shape))
      return params * x

    return velocity

  nets = {"teacher": jnp.float32(1), "stage_one": jnp.float32(1)}
  batch = Batch(batch_of(dynamics(), 512))
  objective = tcm(*map(counted, ("student", "first", "teacher")), source="teacher", chunk=2)
  assert objective.frozen == ("stage_one", "teacher")
  run(objective, jnp.float32(1), nets, batch)
  shape = (512, 3)
  assert sorted(calls) == [
    ("first", shape),
    ("student", shape),
    ("student", shape),
    ("teacher", shape),
  ]


@pytest.mark.parametrize(
  ("options", "words"),
  [
    ({"source": "path"}, "source must be one of data, teacher"),
    ({"start": 0.0}, "0 < start < end < 1"),
    ({"end": 1.0}, "0 < start < end < 1"),
    ({"df": 0.0}, "std and df must be positive"),
    ({"boundary": 1.0}, "boundary is a share"),
    ({"skip": 11}, "skip must be between 1 and steps=10"),
    ({"distance": "l1"}, "distance must be one of mse, pseudo_huber"),
    ({"weighting": "snr"}, "weighting must be one of none, gap"),
    ({"guidance": 3.0}, 'use source="teacher" or guidance=1'),
    ({"guidance": 3.0, "source": "teacher"}, "needs unconditional"),
  ],
)
def test_impossible_options_are_refused(options, words):
  with pytest.raises(ValueError, match=words):
    tcm(exact, exact, exact, **options)
