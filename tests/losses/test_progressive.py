"""Progressive distillation is proven against two steps of the teacher, stage after stage."""

import importlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from fit import fit
from mutation import assert_caught, mutant
from videos import (
  DIM,
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
from vidstep.losses import Batch, progressive

# The package exports the function under the name of its module.
SOURCE = importlib.import_module("vidstep.losses.progressive")
SHIFT, STEPS, SAMPLES = 3.0, 3, 2**17
CORNERS = np.concatenate([np.zeros((1, DIM)), np.eye(DIM)])


def grid(steps):
  """0 = t_0 < t_1 < .. < t_steps = 1."""
  u = np.arange(steps + 1) / steps
  return SHIFT * u / (1 + (SHIFT - 1) * u)


def numpy_pair(velocity, x, t, m, s):
  """Where two Euler steps end."""
  x = x - (t - m) * velocity(x, t)
  return x - (m - s) * velocity(x, m)


def run(objective, params, nets, batch):
  """Loss and gradient, flattened."""
  loss = jax.value_and_grad(objective.loss["student"], has_aux=True)
  nets = {"student": params, **nets}
  (value, _), grads = loss(params, nets, {}, batch, jax.random.key(0), 0)
  return float(value), flat(grads)


def teacher_of(videos):
  return lambda params, x, t, cond: exact(params, x, t, cond), {"teacher": videos.params()}


# ------------------------------------------------------------------------------------------------
# The gradient and the fixed point
# ------------------------------------------------------------------------------------------------


def oracle_gradient(videos, params):
  """`2/D E_t t^k (A x_t + b - (x_t - x_s) / (t - s)) (x_t, 1)'` for one Gaussian."""
  m, cov = videos.means[0], videos.covs[0]
  grad_a, grad_b = np.zeros_like(params["A"], np.float64), np.zeros_like(params["b"], np.float64)
  fine = grid(2 * STEPS)
  for i in range(2, 2 * STEPS + 1, 2):
    t, mid, s = fine[i], fine[i - 1], fine[i - 2]
    ends = numpy_pair(videos.velocity, CORNERS, t, mid, s)
    goal, offset = (np.eye(DIM) - (ends[1:] - ends[0]).T) / (t - s), -ends[0] / (t - s)
    a, b = at_time(params, t)
    mean = (1 - t) * m
    square = (1 - t) ** 2 * cov + t**2 * np.eye(DIM) + np.outer(mean, mean)
    for k in range(len(grad_a)):
      factor = t**k * 2 / DIM / STEPS
      grad_a[k] += factor * ((a - goal) @ square + np.outer(b - offset, mean))
      grad_b[k] += factor * ((a - goal) @ mean + b - offset)
  return np.concatenate([grad_a.ravel(), grad_b.ravel()])


def check_gradient(source):
  videos = dynamics()
  teacher, nets = teacher_of(videos)
  velocity = lambda params, x, t, cond: residual(params, x, t)
  objective = source.progressive(velocity, teacher, steps=STEPS, shift=SHIFT)
  expected = oracle_gradient(videos, displaced())
  _, found = run(objective, displaced(), nets, Batch(batch_of(videos, SAMPLES)))
  assert np.linalg.norm(found - expected) < 0.02 * np.linalg.norm(expected)


def test_the_gradient_is_that_of_the_closed_form():
  check_gradient(SOURCE)


@pytest.mark.parametrize(
  ("old", "new"),
  [
    ("for back in (0, 0.5, 1)", "for back in (0, 0.25, 1)"),
    ("for back in (0, 0.5, 1)", "for back in (0, 1, 2)"),
    ("jnp.ceil(steps *", "jnp.floor(steps *"),
    ("velocity(x - upper * first, m, s)", "velocity(x - upper * first, t, s)"),
    ("velocity(x - upper * first, m, s)", "velocity(x, m, s)"),
    ("(upper * first + lower * second)", "(upper * first + upper * second)"),
    ("velocity(trainable, x, t,", "velocity(trainable, x, m,"),
  ],
)
def test_a_wrong_objective_fails_the_proof(old, new):
  assert_caught(check_gradient, mutant(SOURCE, old, new))


def check_fixed_point(source, chunk):
  """Two guided steps lose nothing on any sample."""
  both, one = mixture().params(), dynamics().params()
  guided = lambda x, t: 1.5 * exact(one, x, t, None) - 0.5 * exact(both, x, t, None)

  @jax.jit
  def teacher(params, x, t, cond):
    t = t if t.ndim == 1 else t[:, 0]  # with chunk: one chunk, so one time
    known = cond["known"].reshape(-1, 1, 1, 1, 1)
    return jnp.where(known, exact(params[0], x, t, None), exact(params[1], x, t, None))

  @jax.jit
  def student(x, t, cond):
    t = t if t.ndim == 1 else t[:, 0]
    u = paths.unshift_time(t, SHIFT)
    m, s = (paths.shift_time(u - back / STEPS, SHIFT) for back in (0.5, 1))
    y = x - paths.expand(t - m, x) * guided(x, t)
    y = y - paths.expand(m - s, x) * guided(y, m)
    return (x - y) / paths.expand(t - s, x)

  empty = lambda cond: {"known": jnp.zeros_like(cond["known"])}
  options = {"guidance": 1.5, "unconditional": empty, "chunk": chunk}
  objective = source.progressive(near(student), teacher, steps=STEPS, shift=SHIFT, **options)
  batch = Batch(batch_of(mixture(), 512), {"known": jnp.ones(512, bool)})
  nets = {"teacher": (one, both)}
  value, grads = run(objective, zeros(), nets, batch)
  away, steep = run(objective, displaced(), nets, batch)
  assert value < 1e-9 * away
  assert np.linalg.norm(grads) < 1e-4 * np.linalg.norm(steep)


@pytest.mark.parametrize("chunk", [None, 3])
def test_two_steps_of_the_teacher_lose_nothing(chunk):
  check_fixed_point(SOURCE, chunk)


def test_guidance_is_the_teachers():
  wrong = mutant(SOURCE, "apply_guidance(teacher, guidance,", "apply_guidance(teacher, 1,")
  assert_caught(check_fixed_point, wrong, None)


# ------------------------------------------------------------------------------------------------
# Training, three stages
# ------------------------------------------------------------------------------------------------


def test_three_stages_carry_eight_steps_into_one():
  """8 -> 4 -> 2 -> 1: the last student jumps where the teacher's eight steps end."""
  videos = dynamics()
  data = batch_of(videos, 2**13)
  teacher, nets = teacher_of(videos)

  def table(steps):
    def velocity(params, x, t, cond):
      k = jnp.round(steps * paths.unshift_time(t, SHIFT)).astype(jnp.int32) - 1
      v = jnp.einsum("nij,nj->ni", params["A"][k], x.reshape(-1, DIM)) + params["b"][k]
      return v.reshape(x.shape)

    return velocity

  for steps in (4, 2, 1):
    student = table(steps)
    objective = progressive(student, teacher, steps=steps, shift=SHIFT)
    nets["student"] = zeros(steps)
    nets = fit(objective, nets, data, steps=500, rates={"student": 0.1})
    teacher, nets = student, {"teacher": nets["student"]}

  walked, fine = CORNERS, grid(8)
  for here, there in zip(fine[:0:-1], fine[-2::-1], strict=True):
    walked = walked - (here - there) * videos.velocity(walked, here)
  a, b = (np.float64(nets["teacher"][name][0]) for name in "Ab")
  law = lambda matrix, offset: (offset, matrix @ matrix.T)
  walk = law((walked[1:] - walked[0]).T, walked[0])
  truth = (videos.means[0], videos.covs[0])
  assert wasserstein(*law(np.eye(DIM) - a, -b), *walk) < 0.02
  assert abs(wasserstein(*walk, *truth) - wasserstein(*law(np.eye(DIM) - a, -b), *truth)) < 0.02


@pytest.mark.parametrize(
  ("options", "words"),
  [
    ({"steps": 0}, "at least 1 step, got steps=0"),
    ({"shift": 0.0}, "shift must be positive"),
    ({"guidance": 3.0}, "needs unconditional"),
  ],
)
def test_impossible_options_are_refused(options, words):
  with pytest.raises(ValueError, match=words):
    progressive(exact, exact, **options)
