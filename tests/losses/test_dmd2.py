"""Distribution matching is proven part by part: direction, fake score, simulation, and the end."""

import importlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from fit import fit
from generators import (
  drawn_by,
  gradient,
  linear,
  matched,
  moved,
  one_gaussian,
  oracle_direction,
)
from mutation import assert_caught, mutant
from videos import (
  DIM,
  SHAPE,
  batch_of,
  displaced,
  dynamics,
  exact,
  flat,
  mixture,
  near,
  velocity_gradient,
  wasserstein,
  zeros,
)

from vidstep import paths
from vidstep.losses import Batch, dmd2

# The package exports the function under the name of its module.
SOURCE = importlib.import_module("vidstep.losses.dmd2")
SHIFT = 2.0
TIME = paths.Uniform(SHIFT)
TIMES = (1.0, 0.6)


# ------------------------------------------------------------------------------------------------
# The student's direction
# ------------------------------------------------------------------------------------------------


def check_direction(source, teacher):
  """With an exact fake score: the closed form away from the data, nothing at the data."""
  objective = source.distribution_matching(linear, exact, exact, time=TIME)
  nets = {"teacher": teacher.params(), "student": moved(matched(dynamics()))}
  nets["fake"] = drawn_by(nets["student"]).params()
  expected = oracle_direction(nets["student"], teacher, SHIFT)
  found = gradient(objective, "student", nets)
  assert np.linalg.norm(found - expected) < 0.04 * np.linalg.norm(expected)

  if len(teacher.weights) == 1:
    home = matched(teacher)
    away = flat(nets["student"]) - flat(home)
    assert found @ away > 0.3 * np.linalg.norm(found) * np.linalg.norm(away)
    nets |= {"student": home, "fake": drawn_by(home).params()}
    assert np.linalg.norm(gradient(objective, "student", nets)) < 1e-3 * np.linalg.norm(found)


@pytest.mark.parametrize("teacher", [dynamics(), mixture()], ids=["gaussian", "mixture"])
def test_the_student_moves_as_the_closed_form_says(teacher):
  check_direction(SOURCE, teacher)


@pytest.mark.parametrize(
  ("old", "new"),
  [
    ("(x0_fake - x0_teacher) / ", "(x0_teacher - x0_fake) / "),
    ("jax.lax.stop_gradient(x0 - direction)", "(x0 - direction)"),
    ("jnp.abs(x0 - x0_teacher)", "jnp.abs(x0 - x0_fake)"),
    ("jnp.abs(x0 - x0_teacher)", "jnp.abs(x_t - x0_teacher)"),
    ("parts.mean_like(jnp.abs(x0 - x0_teacher), t)", "t * 0 + jnp.mean(jnp.abs(x0 - x0_teacher))"),
    ("x0_from_v(x_t, v_fake, t)", "x0_from_v(x0, v_fake, t)"),
    ('network(nets, "fake"), x_t, t', 'network(nets, "fake"), x_t, 1 - t'),
    ('network(nets, "teacher"), x_t', 'network(nets, "fake"), x_t'),
  ],
)
def test_a_wrong_direction_fails_the_proof(old, new):
  assert_caught(check_direction, mutant(SOURCE, old, new), dynamics())


# ------------------------------------------------------------------------------------------------
# The fake score
# ------------------------------------------------------------------------------------------------


def check_fake(source):
  """It regresses the velocity of the student's own samples, not of the data."""
  student = moved(matched(dynamics()))
  law = drawn_by(student)
  fake = near(lambda x, t, cond: exact(law.params(), x, t, cond))
  objective = source.distribution_matching(linear, exact, fake, time=TIME)
  nets = {"student": student, "teacher": dynamics().params()}
  expected = velocity_gradient(law, displaced(), SHIFT)
  found = gradient(objective, "fake", nets | {"fake": displaced()})
  assert np.linalg.norm(found - expected) < 0.02 * np.linalg.norm(expected)
  still = gradient(objective, "fake", nets | {"fake": zeros()})
  assert np.linalg.norm(still) < 0.02 * np.linalg.norm(expected)


def test_the_fake_learns_the_students_velocity():
  check_fake(SOURCE)


@pytest.mark.parametrize(
  ("old", "new"),
  [
    ("paths.velocity(x0, eps)", "paths.velocity(eps, x0)"),
    ("fake(trainable, x_t, t", "fake(trainable, x_t, 1 - t"),
    ("generate_key))\n    x0 = parts", "generate_key)) * 0 + 1\n    x0 = parts"),
    ("paths.interpolate(x0, eps, t), t, eps", "paths.interpolate(eps, x0, t), t, eps"),
  ],
)
def test_a_wrong_fake_fails_the_proof(old, new):
  assert_caught(check_fake, mutant(SOURCE, old, new))


# ------------------------------------------------------------------------------------------------
# Backward simulation
# ------------------------------------------------------------------------------------------------


def table(params, x, t, cond):
  """A few-step student with an affine jump for each of TIMES: f = W_i x + b_i."""
  i = (t < 0.8).astype(jnp.int32)
  jump = jnp.einsum("nij,nj->ni", params["W"][i], x.reshape(-1, DIM)) + params["b"][i]
  return paths.v_from_x0(x, jump.reshape(x.shape), t)


def jumps(seed=0):
  rng = np.random.default_rng(seed)
  w, b = rng.normal(size=(2, DIM, DIM)) / np.sqrt(DIM), rng.normal(size=(2, DIM))
  return {"W": jnp.float32(w), "b": jnp.float32(b)}


def laws(params):
  """Mean and covariance of one-step and of two-step samples, float64."""
  (w0, w1), (b0, b1) = (np.asarray(params[name], np.float64) for name in "Wb")
  one, t = w0 @ w0.T, TIMES[1]
  two = w1 @ ((1 - t) ** 2 * one + t**2 * np.eye(DIM)) @ w1.T
  return (b0, one), (w1 @ ((1 - t) * b0) + b1, two)


def check_simulation(source):
  """Each draw has the law of one depth, both depths occur, and only the last step is trained."""
  generate, params = source.backward_simulation(table, TIMES), jumps()
  batch = Batch(jnp.zeros((2**14, *SHAPE)))
  weights = jnp.float32(np.random.default_rng(1).normal(size=SHAPE))

  @jax.jit
  def draw(key):
    def scalar(params):
      x0 = generate(params, batch, key)
      return jnp.mean(x0 * weights[None]), x0

    return jax.grad(scalar, has_aux=True)(params)

  seen = set()
  for seed in range(8):
    grads, x0 = draw(jax.random.key(seed))
    x0 = np.asarray(x0, np.float64).reshape(-1, DIM)
    gaps = [wasserstein(x0.mean(0), np.cov(x0.T), *law) for law in laws(params)]
    depth = int(np.argmin(gaps))
    assert gaps[depth] < 0.06 < 0.5 < gaps[1 - depth]
    sizes = [float(jnp.abs(grads["W"][i]).sum()) for i in range(2)]
    assert sizes[depth] > 0 and sizes[1 - depth] == 0
    seen.add(depth)
  assert seen == {0, 1}


def test_simulation_draws_every_depth_and_trains_its_last_step():
  check_simulation(SOURCE)


@pytest.mark.parametrize(
  ("old", "new"),
  [
    ("noise(i + 1), grid[i + 1]", "noise(i + 1), grid[i]"),
    ("noise(i + 1), grid[i + 1]", "noise(0), grid[i + 1]"),
    ("randint(depth_key, (), 0,", "randint(depth_key, (), 1,"),
    ("stop_gradient(x), last)", "stop_gradient(x), 0 * last)"),
  ],
)
def test_a_wrong_simulation_fails_the_proof(old, new):
  assert_caught(check_simulation, mutant(SOURCE, old, new))


def test_only_the_forwards_that_are_needed_are_executed():
  calls = []

  def counted(params, x, t, cond):
    jax.debug.callback(lambda t: calls.append(float(t)), t[0])
    return params * x

  times = (1.0, 0.9, 0.7, 0.4)
  generate = SOURCE.backward_simulation(counted, times)
  batch = Batch(jnp.zeros((2, *SHAPE)))
  run = jax.jit(lambda params, key: generate(params, batch, key))
  depths = set()
  for seed in range(12):
    calls.clear()
    jax.block_until_ready(run(jnp.float32(0.5), jax.random.key(seed)))
    jax.effects_barrier()
    np.testing.assert_allclose(sorted(calls)[::-1], times[: len(calls)], rtol=1e-6)
    depths.add(len(calls))
  assert depths == {1, 2, 3, 4}


# ------------------------------------------------------------------------------------------------
# All together
# ------------------------------------------------------------------------------------------------


def trained(times, steps):
  """Laws of one-step and two-step samples before and after training, and the data's."""
  videos = dynamics()
  start = moved(jax.tree.map(lambda x: jnp.stack([x, x]), matched(videos)))
  nets = {"teacher": videos.params(), "fake": matched(videos), "student": start}
  objective = dmd2(table, exact, one_gaussian, times=times, time=paths.Uniform(3.0), ratio=2)
  rates = {"student": 0.01, "fake": 0.02}
  x0 = jnp.zeros((257, *SHAPE))
  end = fit(objective, nets, x0, steps=steps, rates=rates, batch=256, b1=0.0)
  return laws(start), laws(end["student"]), (videos.means[0], videos.covs[0])


def test_alternating_training_reaches_the_data():
  before, after, truth = trained((1.0,), 1500)
  assert wasserstein(*before[0], *truth) > 1.0
  assert wasserstein(*after[0], *truth) < 0.08


def test_with_two_depths_only_their_mixture_is_matched():
  """One fake score for all depths: the samples of both together are right, each alone is not."""
  before, after, truth = trained(TIMES, 2500)
  assert wasserstein(*together(before), *truth) > 1.0
  whole = wasserstein(*together(after), *truth)
  assert whole < 0.2
  assert max(wasserstein(*law, *truth) for law in after) > 2 * whole


def together(both):
  """Mean and covariance of an even mixture."""
  mean = sum(m for m, _ in both) / 2
  return mean, sum(cov + np.outer(m, m) for m, cov in both) / 2 - np.outer(mean, mean)


def test_the_fake_leads_and_the_student_follows_every_ratio_th_step():
  velocity = lambda params, x, t, cond: x
  objective = dmd2(velocity, velocity, velocity, ratio=3)
  roles = [objective.due(step) for step in range(6)]
  assert roles == [("fake",), ("fake",), ("student",)] * 2
  assert objective.frozen == ("teacher",)


def test_the_teacher_is_guided_and_the_fake_is_not():
  """A teacher guided away from a fake that agrees with its conditional half: gap (w - 1)."""
  calls = []

  def velocity(params, x, t, cond):
    calls.append(params)
    return jnp.broadcast_to(cond.reshape(-1, 1, 1, 1, 1), x.shape)

  objective = SOURCE.distribution_matching(
    lambda params, batch, key: params + batch.x0,
    velocity,
    velocity,
    time=TIME,
    guidance=3.0,
    unconditional=jnp.zeros_like,
  )
  nets = {"student": jnp.float32(0), "fake": "fake", "teacher": "teacher"}
  batch = Batch(jnp.zeros((8, *SHAPE)), jnp.ones(8))
  value, (metrics, _) = objective.loss["student"](
    nets["student"], nets, {}, batch, jax.random.key(0), 0
  )
  assert calls.count("teacher") == 2 and calls.count("fake") == 1
  # f_fake - f_T = t (v_T - v_fake) = t ((0 + 3 (1 - 0)) - 1) = 2 t and x0 - f_T = 3 t - t eps.
  assert value > 0 and abs(float(metrics["gap"]) - 2 / 3) < 0.15


@pytest.mark.parametrize(
  ("options", "words"),
  [
    ({"times": ()}, "times must start at 1"),
    ({"times": (0.9, 0.5)}, "times must start at 1"),
    ({"times": (1.0, 0.5, 0.5)}, "fall strictly"),
    ({"times": (1.0, 0.0)}, "staying positive"),
    ({"ratio": 1}, "ratio must be at least 2"),
    ({"guidance": 3.0}, "needs unconditional"),
  ],
)
def test_impossible_options_are_refused(options, words):
  velocity = lambda params, x, t, cond: x
  with pytest.raises(ValueError, match=words):
    dmd2(velocity, velocity, velocity, **options)


def test_a_missing_teacher_is_named():
  objective = SOURCE.distribution_matching(linear, exact, exact)
  with pytest.raises(ValueError, match="needs the network 'teacher'"):
    nets = {"student": matched(dynamics()), "fake": dynamics().params()}
    gradient(objective, "student", nets)


def test_data_gives_the_shape_only():
  generate = SOURCE.backward_simulation(table, TIMES)
  draw = lambda x0: generate(jumps(), Batch(x0), jax.random.key(3))
  data = batch_of(dynamics(), 512)
  assert (draw(data) == draw(jnp.zeros_like(data))).all()
