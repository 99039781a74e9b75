"""rCM is its two parts: their gradients add up, in their schedule, and lead to one optimum."""

import functools
import importlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from fit import QUICK, fit
from mutation import assert_caught, mutant
from videos import (
  DIM,
  SHAPE,
  average_velocity,
  batch_of,
  displaced,
  dynamics,
  exact,
  flat,
  near,
  residual,
  wasserstein,
  zeros,
)

from experiments.objectives import make_objective
from vidstep import paths
from vidstep.losses import Batch, dmd2, rcm, scm

# The package exports the function under the name of its module.
SOURCE = importlib.import_module("vidstep.losses.rcm")
VIDEOS = dynamics()
DATA = batch_of(VIDEOS, 2**13)
KEY = jax.random.key(0)
STUDENT = near(average_velocity(VIDEOS))
FAKE = near(lambda x, t, cond: exact(VIDEOS.params(), x, t, cond))
NETS = {"teacher": VIDEOS.params(), "fake": displaced(3), "student": displaced()}
TIMES = (1.0, 0.6)
REVERSE = {"times": TIMES, "ratio": 3}
FORWARD_ALONE = scm(STUDENT, exact, warmup=50)
REVERSE_ALONE = dmd2(STUDENT, exact, FAKE, **REVERSE)
WHOLE = rcm(STUDENT, exact, FAKE, reverse=0.5, warmup=50, **REVERSE)


@functools.cache
def compiled(objective):
  loss = jax.value_and_grad(objective.loss["student"], has_aux=True)
  return jax.jit(loss, compiler_options=QUICK)


def run(objective, key=KEY, step=100, nets=NETS):
  """Value, metrics and gradient, flattened."""
  (value, (metrics, _)), grads = compiled(objective)(
    nets["student"], nets, {}, Batch(DATA), key, step
  )
  return float(value), metrics, flat(grads)


def check_sum(source):
  """`scm` on the key, plus lambda `dmd2` on another one, from step `warmup` on."""
  whole = (
    WHOLE
    if source is SOURCE
    else source.rcm(STUDENT, exact, FAKE, reverse=0.5, warmup=50, **REVERSE)
  )
  for step, weight in ((20, 0.0), (49, 0.0), (50, 0.5)):
    forward = run(FORWARD_ALONE, step=step)
    backward = run(REVERSE_ALONE, jax.random.fold_in(KEY, 1), step)
    value, metrics, found = run(whole, step=step)
    wanted = forward[2] + weight * backward[2]
    np.testing.assert_allclose(found, wanted, atol=1e-5 * np.linalg.norm(wanted))
    assert np.isclose(value, forward[0] + weight * backward[0])
    assert np.isclose(metrics["loss"], value) and np.isclose(metrics["loss_forward"], forward[0])
    assert np.isclose(metrics["loss_reverse"], backward[0] if weight else 0)
    assert {"tangent_norm", "tangent_norm_t0", "gap", "gap_t3", "normalizer"} <= set(metrics)


def test_the_gradient_is_the_sum_of_its_parts():
  check_sum(SOURCE)


@pytest.mark.parametrize(
  ("old", "new"),
  [
    ("value + reverse * extra", "value + extra"),
    ("step >= warmup", "step > warmup"),
    ("jax.random.fold_in(key, 1)", "key"),
    ("time=reverse_time", "time=time"),
  ],
)
def test_a_wrong_sum_fails_the_proof(old, new):
  assert_caught(check_sum, mutant(SOURCE, old, new))


def test_without_the_reverse_part_it_is_scm_to_the_bit():
  ours, theirs = (
    run(objective) for objective in (rcm(STUDENT, exact, FAKE, reverse=0.0), scm(STUDENT, exact))
  )
  assert ours[0] == theirs[0] and (ours[2] == theirs[2]).all()


def test_the_student_starts_alone_and_then_follows_the_fake():
  objective = rcm(STUDENT, exact, FAKE, warmup=2, **REVERSE)
  roles = [objective.due(step) for step in range(8)]
  assert roles == [("student",)] * 2 + [("fake",), ("fake",), ("student",)] * 2
  assert objective.roles == ("student", "fake") and objective.frozen == ("teacher",)


def test_its_parts_have_one_optimum():
  """At the consistency function and its exact fake score neither part moves the student."""
  nets = NETS | {"student": zeros(), "fake": zeros()}
  assert np.linalg.norm(run(WHOLE, nets=nets)[2]) < 1e-3 * np.linalg.norm(run(WHOLE)[2])


def test_alternating_training_reaches_the_data():
  def student(params, x, t, cond):
    return exact(NETS["teacher"], x, t, cond) + residual(params, x, 2 * t - 1)

  options = {"reverse": 0.3, "warmup": 200, "times": (1.0,), "ratio": 2}
  objective = rcm(student, exact, FAKE, reverse_time=paths.Uniform(3.0), **options)
  nets = {"teacher": NETS["teacher"], "student": zeros(8), "fake": zeros()}
  rates = {"student": 0.02, "fake": 0.02}
  end = fit(objective, nets, DATA, steps=1200, rates=rates, b1=0.0)
  corners = jnp.float32(np.concatenate([np.zeros((1, DIM)), np.eye(DIM)])).reshape(-1, *SHAPE)
  distances = []
  for params in (nets["student"], end["student"]):
    y = flat(corners - student(params, corners, jnp.ones(DIM + 1), None)).reshape(-1, DIM)
    slope = (y[1:] - y[0]).T
    distances.append(wasserstein(y[0], slope @ slope.T, VIDEOS.means[0], VIDEOS.covs[0]))
  assert distances[0] > 0.5 and distances[1] < 0.08, distances


def test_it_can_be_named_in_a_config():
  section = {
    "name": "rcm",
    "reverse": 0.1,
    "time": "lognormal:0.7,1.6",
    "reverse_time": "uniform:3",
  }
  assert make_objective(section, {}).roles == ("student", "fake")


@pytest.mark.parametrize(
  ("options", "words"),
  [
    ({"reverse": -1.0}, "reverse is the weight"),
    ({"norm": "max"}, "norm must be one of"),
    ({"ratio": 1}, "ratio must be at least 2"),
  ],
)
def test_impossible_options_are_refused(options, words):
  with pytest.raises(ValueError, match=words):
    rcm(STUDENT, exact, FAKE, **options)
