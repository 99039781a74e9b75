"""Discrete consistency is proven against the walk it distils, whose bias it must keep."""

import importlib
import math

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
  frame_velocity,
  mixture,
  near,
  residual,
  shifted_quadrature,
  wasserstein,
  zeros,
)

from vidstep import paths
from vidstep.losses import Batch, dcm

# The package exports the function under the name of its module.
SOURCE = importlib.import_module("vidstep.losses.dcm")
SHIFT, STEPS, SAMPLES = 3.0, 4, 2**17


def teacher_of(videos):
  return lambda params, x, t, cond: exact(params, x, t, cond), {"teacher": videos.params()}


def run(objective, params, nets, batch, key=0):
  """Loss and gradient, flattened."""
  loss = jax.value_and_grad(objective.loss["student"], has_aux=True)
  nets = {"student": params, **nets}
  (value, _), grads = loss(params, nets, {}, batch, jax.random.key(key), 0)
  return float(value), flat(grads)


# ------------------------------------------------------------------------------------------------
# The fixed point: the walk, twice
# ------------------------------------------------------------------------------------------------


def numpy_walk(velocity, x, t, *, stride, shift=SHIFT, solver="euler"):
  """Where the solver ends that walks down from x at time t, in strides of unshifted time."""
  s = t / (shift - (shift - 1) * t)
  time = lambda s: shift * s / (1 + (shift - 1) * s)
  while s > 0:
    below = s - stride if s - stride > 1e-9 else 0.0
    here, there = time(s), time(below)
    v = velocity(x, here)
    if solver == "heun":
      v = (v + velocity(x - (here - there) * v, there)) / 2
    x, s = x - (here - there) * v, below
  return x


def walker(velocity, *, stride, shift=SHIFT, solver="euler"):
  """The same as a network, v = (x - walk) / t, for a time a sample or a frame."""

  def student(x, t, cond):
    y, s = x, paths.unshift_time(t, shift)
    for _ in range(math.ceil(1 / stride)):
      below = jnp.maximum(s - stride, 0)
      here, there = paths.shift_time(s, shift), paths.shift_time(below, shift)
      dt, v = paths.expand(here - there, x), velocity(y, here, cond)
      if solver == "heun":
        v = (v + velocity(y - dt * v, there, cond)) / 2
      y, s = y - dt * v, below
    return paths.v_from_x0(x, y, t)

  return student


def guided_setting(solver):
  """A teacher that knows which system a video comes from, or (unconditional) does not."""
  both = mixture()
  one = dynamics()

  def teacher(params, x, t, cond):
    known = cond["known"].reshape(-1, 1, 1, 1, 1)
    return jnp.where(known, exact(params["one"], x, t, None), exact(params["both"], x, t, None))

  nets = {"teacher": {"one": one.params(), "both": both.params()}}
  empty = lambda cond: {"known": jnp.zeros_like(cond["known"])}
  oracle = lambda x, t: both.velocity(x, t) + 1.5 * (one.velocity(x, t) - both.velocity(x, t))
  options = {"guidance": 1.5, "unconditional": empty, "solver": solver}
  return teacher, nets, options, oracle


def check_fixed_point(source, solver):
  """The guided walk loses nothing on any sample; steps = 6, two at a time."""
  teacher, nets, options, oracle = guided_setting(solver)
  cond = {"known": jnp.ones(512, bool)}
  guided = lambda x, t, cond: (
    exact(nets["teacher"]["both"], x, t, cond) * -0.5
    + exact(nets["teacher"]["one"], x, t, cond) * 1.5
  )
  walk = walker(guided, stride=1 / 3, solver=solver)
  batch = Batch(batch_of(mixture(), 512), cond)
  objective = source.dcm(near(walk), teacher, steps=6, skip=2, shift=SHIFT, **options)

  x = np.random.default_rng(1).normal(size=(4, DIM))
  for t in (1.0, 0.9, 0.6, 0.2):
    expected = numpy_walk(oracle, x, t, stride=1 / 3, solver=solver)
    video = jnp.float32(x).reshape(-1, *SHAPE)
    found = paths.x0_from_v(video, walk(video, jnp.full(4, t), None), jnp.full(4, t))
    np.testing.assert_allclose(flat(found).reshape(4, DIM), expected, atol=1e-5)

  value, grads = run(objective, zeros(), nets, batch)
  away, steep = run(objective, displaced(), nets, batch)
  assert value < 1e-9 * away
  assert np.linalg.norm(grads) < 1e-4 * np.linalg.norm(steep)


@pytest.mark.parametrize("solver", ["euler", "heun"])
def test_the_teachers_walk_loses_nothing(solver):
  check_fixed_point(SOURCE, solver)


@pytest.mark.parametrize(
  ("old", "new"),
  [
    ("jnp.maximum(s - skip / steps, 0)", "jnp.maximum(s - skip / steps, 0.05)"),
    ("jnp.maximum(s - skip / steps, 0)", "jnp.maximum(s - 1 / steps, 0)"),
    ("t1, cond))) / 2", "t0, cond))) / 2"),
    ("apply_guidance(teacher, guidance,", "apply_guidance(teacher, 1,"),
  ],
)
def test_another_walk_fails_the_proof(old, new):
  assert_caught(check_fixed_point, mutant(SOURCE, old, new), "heun")


def test_times_a_frame_need_no_second_implementation():
  velocity = frame_velocity(dynamics())
  walk = walker(velocity, stride=1 / STEPS)
  teacher = lambda params, x, t, cond: velocity(x, t, cond)
  objective = dcm(near(walk), teacher, steps=STEPS, shift=SHIFT, chunk=1)
  batch = Batch(batch_of(dynamics(), 512))
  away, _ = run(objective, displaced(), {"teacher": None}, batch)
  assert run(objective, zeros(), {"teacher": None}, batch)[0] < 1e-8 * away


# ------------------------------------------------------------------------------------------------
# The way back
# ------------------------------------------------------------------------------------------------


def oracle_gradient(videos, params, other):
  """`2/D E (f(x_t0, t0) - f'(x_t1, t1)) df(x_t0, t0)/d(A_k, b_k)` for one Gaussian.

  The walk cancels: with x_t1 = P x + q, what is left of the difference is R x + r with
  R = -t0 A(t0) + t1 A'(t1) P and r = -t0 b(t0) + t1 (A'(t1) q + b'(t1)).
  """
  m, cov = videos.means[0], videos.covs[0]
  grad_a, grad_b = np.zeros_like(params["A"], np.float64), np.zeros_like(params["b"], np.float64)
  pieces = [shifted_quadrature(SHIFT, 200, 0, 1 / STEPS), shifted_quadrature(SHIFT, 200, 1 / STEPS)]
  for s, t0, w in np.concatenate([np.array(piece) for piece in pieces], 1).T:
    below = max(s - 1 / STEPS, 0)
    t1 = SHIFT * below / (1 + (SHIFT - 1) * below)
    total = (1 - t0) ** 2 * cov + t0**2 * np.eye(DIM)
    gain = (1 - t0) * cov @ np.linalg.inv(total)
    slope, offset = (np.eye(DIM) - gain) / t0, (gain @ m * (1 - t0) - m) / t0
    p, q = np.eye(DIM) - (t0 - t1) * slope, -(t0 - t1) * offset
    (a0, b0), (a1, b1) = at_time(params, t0), at_time(other, t1)
    big, small = t1 * a1 @ p - t0 * a0, t1 * (a1 @ q + b1) - t0 * b0
    mean = (1 - t0) * m
    square = total + np.outer(mean, mean)
    for k in range(len(grad_a)):
      factor = -w * 2 / DIM * t0 ** (k + 1)
      grad_a[k] += factor * (big @ square + np.outer(small, mean))
      grad_b[k] += factor * (big @ mean + small)
  return np.concatenate([grad_a.ravel(), grad_b.ravel()])


def check_gradient(source, target):
  """Away from the walk the gradient is the semi-gradient of the closed form."""
  videos = dynamics()
  teacher, nets = teacher_of(videos)
  walk = walker(lambda x, t, cond: exact(nets["teacher"], x, t, cond), stride=1 / STEPS)
  objective = source.dcm(near(walk), teacher, steps=STEPS, shift=SHIFT, target=target)
  nets["student.ema"] = displaced(seed=1)
  other = displaced() if target == "self" else nets["student.ema"]
  expected = oracle_gradient(videos, displaced(), other)
  _, found = run(objective, displaced(), nets, Batch(batch_of(videos, SAMPLES)))
  assert np.linalg.norm(found - expected) < 0.03 * np.linalg.norm(expected)


@pytest.mark.parametrize("target", ["self", "ema"])
def test_the_gradient_is_that_of_the_closed_form(target):
  check_gradient(SOURCE, target)


@pytest.mark.parametrize(
  ("old", "new"),
  [
    (
      "jax.lax.stop_gradient(jump(other, x_t1, t1, batch.cond))",
      "jump(other, x_t1, t1, batch.cond)",
    ),
    ('network(nets, "teacher"), x_t0, t0, t1', 'network(nets, "teacher"), x_t0, t1, t0'),
    ("jump(other, x_t1, t1", "jump(other, x_t1, t0"),
    ("jump(other, x_t1, t1", "jump(other, x_t0, t1"),
    ("jump(trainable, x_t0, t0", "jump(trainable, x_t1, t0"),
    ("return x - dt * v", "return x + dt * v"),
    ('network(nets, f"{role}.ema")', "trainable"),
  ],
)
def test_a_wrong_objective_fails_the_proof(old, new):
  target = "ema" if ".ema" in old else "self"
  assert_caught(check_gradient, mutant(SOURCE, old, new), target)


def hats(params, x, t):
  """A residual A(t) x + b(t), piecewise linear in unshifted time.

  Powers of t would not do: a target that moves with the weights diverges when each weight acts at
  all times.
  """
  knots = len(params["b"]) - 1
  s = paths.unshift_time(t, SHIFT)[:, None] * knots
  at = jnp.maximum(1 - jnp.abs(s - jnp.arange(knots + 1, dtype=s.dtype)[None]), 0)
  slope = jnp.einsum("nk,kij->nij", at, params["A"])
  return (jnp.einsum("nij,nj->ni", slope, x.reshape(-1, DIM)) + at @ params["b"]).reshape(x.shape)


def test_training_reaches_the_walk_and_keeps_its_bias():
  """From the teacher, one jump from noise: it ends at the 4-step walk, whose bias is known."""
  videos = dynamics()
  teacher, nets = teacher_of(videos)
  student = lambda params, x, t, cond: exact(nets["teacher"], x, t, cond) + hats(params, x, t)

  objective = dcm(student, teacher, steps=STEPS, shift=SHIFT)
  start = {"student": zeros(33), **nets}
  end = fit(objective, start, batch_of(videos, 2**13), steps=1000, rates={"student": 0.03})

  corners = np.concatenate([np.zeros((1, DIM)), np.eye(DIM)])  # an affine map, by its values
  walked = numpy_walk(videos.velocity, corners, 1.0, stride=1 / STEPS)
  video = jnp.float32(corners).reshape(-1, *SHAPE)
  jump = lambda params: flat(video - student(params, video, jnp.ones(len(video)), None))
  law = lambda y: (y[0], (y[1:] - y[0]).T @ (y[1:] - y[0]))
  truth = (videos.means[0], videos.covs[0])
  bias = wasserstein(*law(walked), *truth)
  before, after = (law(jump(p).reshape(-1, DIM)) for p in (start["student"], end["student"]))
  assert wasserstein(*before, *law(walked)) > 0.5
  assert wasserstein(*after, *law(walked)) < 0.03
  assert abs(wasserstein(*after, *truth) - bias) < 0.03 < bias


# ------------------------------------------------------------------------------------------------
# Details
# ------------------------------------------------------------------------------------------------


def test_the_last_interval_is_anchored_in_the_teacher_whatever_the_target_network_says():
  teacher, nets = teacher_of(dynamics())
  student = lambda params, x, t, cond: exact(nets["teacher"], x, t, cond) + residual(params, x, t)
  objective = dcm(student, teacher, steps=1, target="ema")
  batch = Batch(batch_of(dynamics(), 512))
  losses = [
    run(objective, zeros(), {**nets, "student.ema": displaced(size=size)}, batch)[0]
    for size in (0.0, 1e3)
  ]
  assert losses[0] == losses[1] < 1e-12


def test_forwards_are_two_of_the_student_and_one_of_the_teacher():
  calls = []

  def counted(name):
    def velocity(params, x, t, cond):
      calls.append(name)
      return params * x

    return velocity

  nets = {"teacher": jnp.float32(1)}
  batch = Batch(batch_of(dynamics(), 512), {})
  for options, expected in (
    ({}, 1),
    ({"solver": "heun"}, 2),
    ({"guidance": 2.0, "unconditional": lambda cond: cond}, 2),
  ):
    calls.clear()
    run(dcm(counted("student"), counted("teacher"), **options), jnp.float32(1), nets, batch)
    assert calls.count("student") == 2 and calls.count("teacher") == expected


def test_pseudo_huber_is_square_root_outside_and_square_inside():
  mse = np.array([0.0, 1e-10, 1e-6, 1.0])
  expected = np.sqrt(mse + 0.00054**2) - 0.00054
  found = SOURCE.DISTANCES["pseudo_huber"](jnp.float32(mse))
  np.testing.assert_allclose(found, expected, rtol=2e-6)
  assert np.isfinite(jax.grad(SOURCE.DISTANCES["pseudo_huber"])(jnp.float32(0)))


def test_scale_multiplies_the_loss():
  teacher, nets = teacher_of(dynamics())
  student = lambda params, x, t, cond: residual(params, x, t)
  batch = Batch(batch_of(dynamics(), 512))
  one, hundred = (
    run(dcm(student, teacher, scale=s), displaced(), nets, batch)[0] for s in (1, 100)
  )
  assert math.isclose(hundred, 100 * one, rel_tol=1e-5)


@pytest.mark.parametrize(
  ("options", "words"),
  [
    ({"solver": "rk4"}, "solver must be one of euler, heun"),
    ({"target": "teacher"}, "target must be one of self, ema"),
    ({"distance": "l1"}, "distance must be one of mse, pseudo_huber"),
    ({"skip": 0}, "skip must be between 1 and steps=48"),
    ({"skip": 49}, "skip must be between"),
    ({"double": 0}, "refined every `double` >= 1 steps"),
    ({"double": 10, "max_steps": 24}, "up to max_steps >= steps"),
    ({"weighting": "snr"}, "weighting must be one of none, gap"),
    ({"guidance": 3.0}, "needs unconditional"),
    ({"shift": 0.0}, "shift must be positive"),
  ],
)
def test_impossible_options_are_refused(options, words):
  velocity = lambda params, x, t, cond: x
  with pytest.raises(ValueError, match=words):
    dcm(velocity, velocity, **options)


def test_a_missing_moving_average_is_named():
  teacher, nets = teacher_of(dynamics())
  objective = dcm(lambda params, x, t, cond: residual(params, x, t), teacher, target="ema")
  with pytest.raises(ValueError, match=r"needs the network 'student.ema'"):
    run(objective, zeros(), nets, Batch(batch_of(dynamics(), 512)))
