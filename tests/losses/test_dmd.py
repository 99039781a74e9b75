"""DMD is the sum of two objectives, and its pairs bring back the mode that matching loses."""

import importlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from fit import fit
from generators import drawn_by, gradient, matched, moved, one_gaussian, oracle_direction
from mutation import assert_caught, mutant
from videos import DIM, SHAPE, Videos, dynamics, exact, wasserstein

from vidstep import paths
from vidstep.losses import Batch, dmd
from vidstep.losses.dmd2 import dmd2
from vidstep.losses.kd import kd

SOURCE = importlib.import_module("vidstep.losses.dmd")
SHIFT, STEPS = 2.0, 6
TIME = paths.Uniform(SHIFT)
OPTIONS = {"time": TIME, "steps": STEPS, "shift": 1.0}


def one_step(params, x, t, cond):
  jump = x.reshape(-1, DIM) @ params["W"].T + params["b"][None]
  return paths.v_from_x0(x, jump.reshape(x.shape), t)


def solved(videos):
  """The Euler solver's map from noise to data, for one Gaussian: matrix and offset, float64."""
  corners = np.concatenate([np.zeros((1, DIM)), np.eye(DIM)])
  for i in range(STEPS, 0, -1):
    corners = corners - videos.velocity(corners, i / STEPS) / STEPS
  return (corners[1:] - corners[0]).T, corners[0]


def setting(videos):
  student = moved(matched(videos))
  return {"teacher": videos.params(), "student": student, "fake": drawn_by(student).params()}


def check_student(source):
  """Matching as its own oracle has it, plus the regression to the solver's map in closed form."""
  videos, nets = dynamics(), setting(dynamics())
  w, b = (np.asarray(nets["student"][name], np.float64) for name in "Wb")
  goal, offset = solved(videos)
  pull = np.concatenate([(2 / DIM * (w - goal)).ravel(), 2 / DIM * (b - offset)])
  expected = oracle_direction(nets["student"], videos, SHIFT) + 3.0 * pull
  objective = source.dmd(one_step, exact, exact, regression=3.0, **OPTIONS)
  found = gradient(objective, "student", nets)
  assert np.linalg.norm(found - expected) < 0.02 * np.linalg.norm(expected)


def test_the_student_matches_and_regresses():
  check_student(SOURCE)


@pytest.mark.parametrize(
  ("old", "new"),
  [
    ("value + regression * distance", "value - regression * distance"),
    ("value + regression * distance", "regression * distance"),
    ("steps=steps", "steps=2 * steps"),
    ("shift=shift", "shift=3.0"),
    ("(velocity, (1.0,))", "(velocity, (1.0, 0.5))"),
    ("time=time", "time=TIME"),
  ],
)
def test_a_wrong_student_fails_the_proof(old, new):
  assert_caught(check_student, mutant(SOURCE, old, new))


def test_stored_pairs_are_read_and_without_regression_it_is_dmd2():
  nets = setting(dynamics())
  noise, end = np.random.default_rng(0).normal(size=(2, 2**17, *SHAPE)).astype(np.float32)
  batch = Batch(jnp.asarray(end), path=jnp.asarray(noise)[:, None])
  run = lambda objective, key: objective.loss["student"](nets["student"], nets, {}, batch, key, 0)
  key = jax.random.key(0)
  first, second = jax.random.split(key)
  alone = run(dmd2(one_step, exact, exact, times=(1.0,), time=TIME), first)[0]
  pairs = run(kd(one_step, exact, times=(1.0,), source="path"), second)[0]
  value, (metrics, _) = run(dmd(one_step, exact, exact, source="path", time=TIME), key)
  np.testing.assert_allclose(value, alone + 0.25 * pairs, rtol=1e-5)
  np.testing.assert_allclose(metrics["regression"], pairs, rtol=1e-5)
  value, (metrics, _) = run(dmd(one_step, exact, exact, regression=0.0, time=TIME), key)
  np.testing.assert_allclose(value, alone, rtol=1e-5)
  assert "regression" not in metrics


def test_alternating_training_reaches_the_data():
  videos = dynamics()
  start = moved(matched(videos))
  objective = dmd(one_step, exact, one_gaussian, time=paths.Uniform(3.0), steps=24, shift=1.0)
  nets = {"teacher": videos.params(), "fake": matched(videos), "student": start}
  rates = {"student": 0.01, "fake": 0.02}
  end = fit(objective, nets, jnp.zeros((257, *SHAPE)), steps=1000, rates=rates, b1=0.0)["student"]
  gap = lambda params: wasserstein(
    drawn_by(params).means[0], drawn_by(params).covs[0], videos.means[0], videos.covs[0]
  )
  assert gap(start) > 1.0 and gap(end) < 0.1


def share_of_the_minor_mode(regression):
  """A Gaussian student starts inside the larger of two modes, 7 to 3."""
  apart = 1.5 * np.ones(DIM) / np.sqrt(DIM)
  teacher = Videos(
    np.array([0.7, 0.3]), np.stack([apart, -apart]), 0.1 * np.stack([np.eye(DIM)] * 2)
  )
  start = {"W": jnp.float32(0.35 * np.eye(DIM)), "b": jnp.float32(apart)}
  objective = dmd(
    one_step,
    exact,
    one_gaussian,
    regression=regression,
    time=paths.Uniform(0.3),
    steps=8,
    shift=1.0,
  )
  nets = {"teacher": teacher.params(), "student": start, "fake": start}
  rates = {"student": 0.01, "fake": 0.03}
  end = fit(objective, nets, jnp.zeros((257, *SHAPE)), steps=600, rates=rates, b1=0.0)["student"]
  return np.mean(drawn_by(end).draw(np.random.default_rng(0), 20000) @ apart < 0)


def test_pairs_bring_back_the_mode_that_matching_leaves_out():
  assert share_of_the_minor_mode(0.0) < 0.05
  assert abs(share_of_the_minor_mode(1.0) - 0.3) < 0.1


@pytest.mark.parametrize(
  ("options", "words"),
  [
    ({"regression": -1.0}, "regression is the weight of a loss"),
    ({"ratio": 1}, "ratio must be at least 2"),
    ({"source": "disk"}, "source must be one of teacher, path"),
    ({"guidance": 2.0}, "needs unconditional"),
  ],
)
def test_impossible_options_are_refused(options, words):
  with pytest.raises(ValueError, match=words):
    dmd(one_step, exact, exact, **options)
