"""Score identity distillation is proven per sample, as a Fisher divergence, and in training."""

import importlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from fit import fit
from generators import drawn_by, gradient, linear, matched, moved, one_gaussian
from mutation import assert_caught, mutant
from videos import DIM, SHAPE, dynamics, exact, flat, mixture, shifted_quadrature, wasserstein

from vidstep import paths
from vidstep.losses import Batch, sid
from vidstep.losses.dmd2 import distribution_matching

SOURCE = importlib.import_module("vidstep.losses.sid")
SHIFT = 2.0
TIME = paths.Uniform(SHIFT)


def setting(teacher):
  """Networks away from the optimum, the fake score exact."""
  student = moved(matched(dynamics()))
  return {"teacher": teacher.params(), "student": student, "fake": drawn_by(student).params()}


# ------------------------------------------------------------------------------------------------
# The student's direction
# ------------------------------------------------------------------------------------------------


def oracle_direction(params, teacher, alpha, n=3072):
  """The loss of each sample differentiated in x0 by finite differences, the fake held; float64."""
  rng = np.random.default_rng(7)
  w, b = (np.asarray(params[name], np.float64) for name in "Wb")
  law = drawn_by(params)
  grad_w, grad_b = np.zeros_like(w), np.zeros_like(b)
  for _, t, weight in zip(*shifted_quadrature(SHIFT, 24), strict=True):
    eps, noise = rng.normal(size=(2, n, DIM))
    x0 = eps @ w.T + b
    size = np.mean(np.abs(x0 - teacher.posterior_mean((1 - t) * x0 + t * noise, t)), 1)

    def each(x0, t=t, noise=noise, size=size):
      x = (1 - t) * x0 + t * noise
      goal = teacher.posterior_mean(x, t)
      gap = goal - law.posterior_mean(x, t)
      return np.mean(gap * ((goal - x0) - alpha * gap), 1) / size

    steps = 1e-4 * np.eye(DIM)
    slope = np.stack([(each(x0 + h) - each(x0 - h)) / 2e-4 for h in steps], 1)
    grad_w += weight * slope.T @ eps / n
    grad_b += weight * slope.mean(0)
  return np.concatenate([grad_w.ravel(), grad_b.ravel()])


def check_direction(source, teacher, alpha):
  objective = source.identity_matching(linear, exact, exact, time=TIME, alpha=alpha)
  nets = setting(teacher)
  expected = oracle_direction(nets["student"], teacher, alpha)
  found = gradient(objective, "student", nets)
  assert np.linalg.norm(found - expected) < 0.06 * np.linalg.norm(expected)

  if len(teacher.weights) == 1:
    home = matched(teacher)
    away = flat(nets["student"]) - flat(home)
    assert found @ away > 0.3 * np.linalg.norm(found) * np.linalg.norm(away)
    nets |= {"student": home, "fake": drawn_by(home).params()}
    assert np.linalg.norm(gradient(objective, "student", nets)) < 1e-3 * np.linalg.norm(found)


@pytest.mark.parametrize("teacher", [dynamics(), mixture()], ids=["gaussian", "mixture"])
def test_the_student_moves_as_finite_differences_of_each_sample_say(teacher):
  check_direction(SOURCE, teacher, 1.2)


@pytest.mark.parametrize(
  ("old", "new"),
  [
    ("gap * ((x0_teacher - x0)", "-gap * ((x0_teacher - x0)"),
    ("- alpha * gap", "+ alpha * gap"),
    ("diffuse(time, x0, diffuse_key)", "diffuse(time, jax.lax.stop_gradient(x0), diffuse_key)"),
    ("jax.lax.stop_gradient(jnp.maximum(size, 1e-5))", "jnp.maximum(size, 1e-5)"),
    ("jnp.abs(x0 - x0_teacher)", "jnp.abs(x_t - x0_teacher)"),
    ('teacher(network(nets, "teacher"), x_t', 'teacher(network(nets, "fake"), x_t'),
    ('fake(network(nets, "fake"), x_t, t', 'fake(network(nets, "fake"), x_t, 1 - t'),
    ("v_fake = parts.wide(", "v_fake = jax.lax.stop_gradient("),
    ("v_teacher = parts.wide(", "v_teacher = jax.lax.stop_gradient("),
  ],
)
def test_a_wrong_direction_fails_the_proof(old, new):
  assert_caught(check_direction, mutant(SOURCE, old, new), dynamics(), 1.2)


# ------------------------------------------------------------------------------------------------
# What it descends
# ------------------------------------------------------------------------------------------------


def fisher(vector, teacher):
  """`E mean |f_T - f*|^2 / 2` of the generator with parameters `vector`, in closed form."""
  w, b = vector[: DIM * DIM].reshape(DIM, DIM), vector[DIM * DIM :]
  total = 0.0
  for _, t, weight in zip(*shifted_quadrature(SHIFT, 64), strict=True):
    affine = []
    for mean, cov in ((teacher.means[0], teacher.covs[0]), (b, w @ w.T)):
      spread = (1 - t) ** 2 * cov + t**2 * np.eye(DIM)
      gain = (1 - t) * np.linalg.solve(spread, cov).T
      affine.append((gain, mean - (1 - t) * gain @ mean))
    a, c = affine[0][0] - affine[1][0], affine[0][1] - affine[1][1]
    shift = (1 - t) * a @ b + c
    total += weight * (np.trace(a @ spread @ a.T) + shift @ shift) / (2 * DIM)
  return total


def check_fisher(source):
  teacher = dynamics()
  nets = setting(teacher)
  at = np.concatenate([np.asarray(nets["student"][name], np.float64).ravel() for name in "Wb"])
  steps = 1e-5 * np.eye(len(at))
  expected = [(fisher(at + h, teacher) - fisher(at - h, teacher)) / 2e-5 for h in steps]
  options = {"time": TIME, "alpha": 0.5, "normalize": False}
  found = gradient(source.identity_matching(linear, exact, exact, **options), "student", nets)
  assert np.linalg.norm(found - expected) < 0.03 * np.linalg.norm(expected)


def test_at_one_half_it_is_the_gradient_of_the_fisher_divergence():
  """The fake depends on the student, and is held: at one half that changes nothing."""
  check_fisher(SOURCE)


def test_with_x_t_held_it_is_distribution_matching():
  """The habit from DMD turns one into the other: the identity, and why the trap is silent."""
  old = "diffuse(time, x0, diffuse_key)"
  held = mutant(SOURCE, old, old.replace("x0", "jax.lax.stop_gradient(x0)"))
  nets = setting(mixture())
  one = gradient(held.identity_matching(linear, exact, exact, time=TIME), "student", nets)
  other = gradient(distribution_matching(linear, exact, exact, time=TIME), "student", nets)
  np.testing.assert_allclose(2 * one, other, rtol=1e-3, atol=1e-5)
  assert_caught(check_fisher, held)


def test_at_one_the_value_says_nothing():
  nets = setting(dynamics())
  objective = SOURCE.identity_matching(linear, exact, exact, time=TIME, normalize=False)
  batch = Batch(jnp.zeros((2**17, *SHAPE)))
  value, (metrics, _) = objective.loss["student"](
    nets["student"], nets, {}, batch, jax.random.key(0), 0
  )
  assert abs(float(value)) < 0.02 and float(metrics["gap"]) > 0.2


# ------------------------------------------------------------------------------------------------
# All together
# ------------------------------------------------------------------------------------------------


def test_alternating_training_reaches_the_data():
  videos = dynamics()
  start = moved(matched(videos))
  one_step = lambda params, x, t, cond: paths.v_from_x0(x, jump(params, x), t)
  objective = sid(
    one_step, exact, one_gaussian, times=(1.0,), alpha=1.0, time=paths.Uniform(3.0), ratio=2
  )
  nets = {"teacher": videos.params(), "fake": matched(videos), "student": start}
  rates = {"student": 0.01, "fake": 0.02}
  x0 = jnp.zeros((257, *SHAPE))
  end = fit(objective, nets, x0, steps=1500, rates=rates, batch=256, b1=0.0)
  gap = lambda params: wasserstein(
    drawn_by(params).means[0], drawn_by(params).covs[0], videos.means[0], videos.covs[0]
  )
  assert gap(start) > 1.0
  assert gap(end["student"]) < 0.08


def jump(params, x):
  return (x.reshape(-1, DIM) @ params["W"].T + params["b"][None]).reshape(x.shape)


def test_the_teacher_is_guided_and_the_fake_regresses_samples():
  velocity = lambda params, x, t, cond: jnp.broadcast_to(cond.reshape(-1, 1, 1, 1, 1), x.shape)
  objective = SOURCE.identity_matching(
    lambda params, batch, key: params + batch.x0,
    velocity,
    velocity,
    time=TIME,
    guidance=3.0,
    unconditional=jnp.zeros_like,
    normalize=False,
  )
  nets = {"student": jnp.float32(0), "fake": 0, "teacher": 0}
  batch = Batch(jnp.zeros((2**17, *SHAPE)), jnp.ones(2**17))
  loss = lambda role: objective.loss[role](nets[role], nets, {}, batch, jax.random.key(0), 0)
  # f_T - f_fake = t (v_fake - v_T) = -2 t, and E t = SHIFT-Uniform's mean, 2 - 2 log 2.
  assert abs(float(loss("student")[1][0]["gap"]) - 4 * (1 - np.log(2))) < 0.02
  assert abs(float(loss("fake")[0]) - 2.0) < 0.05  # E |1 - (eps - 0)|^2
  assert objective.due(0) == ("fake",) and objective.due(4) == ("student",)


@pytest.mark.parametrize(
  ("options", "words"),
  [({"ratio": 1}, "ratio must be at least 2"), ({"guidance": 3.0}, "needs unconditional")],
)
def test_impossible_options_are_refused(options, words):
  velocity = lambda params, x, t, cond: x
  with pytest.raises(ValueError, match=words):
    sid(velocity, velocity, velocity, **options)
