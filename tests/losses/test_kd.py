"""Output regression is proven against the teacher's walk, which a whole clip can learn exactly."""

import functools
import importlib
import itertools

import jax
import jax.numpy as jnp
import mlp
import numpy as np
import pytest
from fit import fit
from mutation import assert_caught, mutant
from videos import (
  DIM,
  FRAMES,
  SHAPE,
  Videos,
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
from vidstep.losses import Batch, kd, parts

# The package exports the function under the name of its module.
SOURCE = importlib.import_module("vidstep.losses.kd")
SHIFT, STEPS, SAMPLES = 3.0, 6, 2**15
TIMES = (1.0, 0.75)  # shift 3 of 1 and 1/2: both on the grid of 6 steps
OPTIONS = {"times": TIMES, "steps": STEPS, "shift": SHIFT}
CORNERS = np.concatenate([np.zeros((1, DIM)), np.eye(DIM)])


def numpy_walk(velocity, x, above, below, *, solver="euler"):
  """x carried from time above to time below, both on the grid of STEPS steps."""
  unshift = lambda t: t / (SHIFT - (SHIFT - 1) * t)
  index = lambda t: round(STEPS * unshift(t))
  for i in range(index(above), index(below), -1):
    here, there = (SHIFT * u / (STEPS + (SHIFT - 1) * u) for u in (i, i - 1))
    v = velocity(x, here)
    if solver == "heun" and i > 1:
      v = (v + velocity(x - (here - there) * v, there)) / 2
    x = x - (here - there) * v
  return x


def affine(function):
  """Matrix and offset of an affine map of points, by its values at the corners."""
  values = function(CORNERS)
  return (values[1:] - values[0]).T, values[0]


def walks(velocity, **options):
  """From noise to each of TIMES and to 0, as (matrix, offset)."""
  to = lambda t: affine(lambda x: numpy_walk(velocity, x, 1.0, t, **options))
  return [to(t) for t in TIMES], to(0.0)


@functools.lru_cache(maxsize=4)
def compiled(objective):
  return jax.jit(jax.value_and_grad(objective.loss["student"], has_aux=True))


def run(objective, params, nets, batch):
  """Loss and gradient, flattened."""
  nets = {"student": params, **nets}
  (value, _), grads = compiled(objective)(params, nets, {}, batch, jax.random.key(0), 0)
  return float(value), flat(grads)


def teacher_of(videos):
  return lambda params, x, t, cond: exact(params, x, t, cond), {"teacher": videos.params()}


# ------------------------------------------------------------------------------------------------
# The gradient
# ------------------------------------------------------------------------------------------------


def oracle_gradient(videos, params, depths):
  """`-2/D E t^(j+1) (x - t (A x + b) - x_0) (x, 1)'`, all states affine in one Gaussian noise.

  depths: for each equally likely case the index into TIMES of every frame.
  """
  states, (end, end_offset) = walks(videos.velocity)
  powers = len(params["b"])
  grad_a, grad_b = np.zeros((powers, DIM, DIM)), np.zeros((powers, DIM))
  for depth in depths:
    rows = np.repeat(depth, DIM // FRAMES)
    t = np.array(TIMES)[rows]
    matrix = np.stack([states[k][0][i] for i, k in enumerate(rows)])
    offset = np.array([states[k][1][i] for i, k in enumerate(rows)])
    a, b = np.zeros((DIM, DIM)), np.zeros(DIM)
    for i in range(DIM):
      a_i, b_i = at_time(params, t[i])
      a[i], b[i] = a_i[i], b_i[i]
    big = matrix - t[:, None] * (a @ matrix) - end
    small = offset - t * (a @ offset + b) - end_offset
    for j in range(powers):
      factor = -2 / DIM / len(depths) * t ** (j + 1)
      grad_a[j] += factor[:, None] * (big @ matrix.T + np.outer(small, offset))
      grad_b[j] += factor * small
  return np.concatenate([grad_a.ravel(), grad_b.ravel()])


SHARED = [(0, 0, 0), (1, 1, 1)]
EACH = list(itertools.product((0, 1), repeat=FRAMES))


def check_gradient(source, chunk):
  videos = dynamics()
  teacher, nets = teacher_of(videos)
  velocity = lambda params, x, t, cond: residual(params, x, t)
  objective = source.kd(velocity, teacher, chunk=chunk, **OPTIONS)
  expected = oracle_gradient(videos, displaced(), EACH if chunk else SHARED)
  batch = Batch(jnp.zeros((SAMPLES, *SHAPE)))
  _, found = run(objective, displaced(), nets, batch)
  assert np.linalg.norm(found - expected) < 0.02 * np.linalg.norm(expected)


@pytest.mark.parametrize("chunk", [None, 1])
def test_the_gradient_is_that_of_the_closed_form(chunk):
  check_gradient(SOURCE, chunk)


@pytest.mark.parametrize(
  ("old", "new"),
  [
    ("== grid,", "== grid[:, ::-1],"),
    ("(guess - x0)", "(guess - x)"),
    ("velocity(trainable, x, t,", "velocity(trainable, x, 1 - t,"),
    ("jnp.stack(path, 1), x", "jnp.stack(path, 1), path[-1]"),
  ],
)
def test_a_wrong_objective_fails_the_proof(old, new):
  assert_caught(check_gradient, mutant(SOURCE, old, new), None)


# ------------------------------------------------------------------------------------------------
# The fixed point
# ------------------------------------------------------------------------------------------------


def table(maps):
  """A student that jumps by the affine map of its time."""
  matrices, offsets = (jnp.float32(np.stack(column)) for column in zip(*maps, strict=True))

  def velocity(x, t, cond):
    k = jnp.argmin(jnp.abs(t[:, None] - jnp.float32(TIMES)[None]), 1)
    jump = jnp.einsum("nij,nj->ni", matrices[k], x.reshape(-1, DIM)) + offsets[k]
    return paths.v_from_x0(x, jump.reshape(x.shape), t)

  return velocity


def check_fixed_point(source, solver):
  """The guided walk from each time loses nothing on any sample."""
  one = dynamics()
  other = Videos(np.ones(1), mixture().means[1:], mixture().covs[1:])
  guided = lambda x, t: other.velocity(x, t) + 1.5 * (one.velocity(x, t) - other.velocity(x, t))

  def teacher(params, x, t, cond):
    known = cond["known"].reshape(-1, 1, 1, 1, 1)
    return jnp.where(known, exact(params[0], x, t, None), exact(params[1], x, t, None))

  empty = lambda cond: {"known": jnp.zeros_like(cond["known"])}
  to_end = lambda t: affine(lambda x: numpy_walk(guided, x, t, 0.0, solver=solver))
  student = near(table([to_end(t) for t in TIMES]))
  objective = source.kd(
    student, teacher, guidance=1.5, unconditional=empty, solver=solver, **OPTIONS
  )
  batch = Batch(jnp.zeros((512, *SHAPE)), {"known": jnp.ones(512, bool)})
  nets = {"teacher": (one.params(), other.params())}
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
    ("apply_guidance(teacher, guidance,", "apply_guidance(teacher, 1,"),
    ("steps * (ends[0] - ends[1])", "steps * ends[0]"),
    ("[paths.unshift_time(t, shift) for", "[paths.unshift_time(t, 2.0) for"),
    ("steps=steps, shift=shift, solver=solver)", "steps=steps, shift=shift)"),
  ],
)
def test_another_walk_fails_the_proof(old, new):
  assert_caught(check_fixed_point, mutant(SOURCE, old, new), "heun")


def test_a_causal_student_of_a_bidirectional_teacher_learns_a_mean_with_too_little_spread():
  """The end of frame f given the states up to f only: a regression, and the fixed point."""
  states, (end, end_offset) = walks(dynamics().velocity)
  seen = np.kron(np.tril(np.ones((FRAMES, FRAMES))), np.ones((2, 2))) > 0
  maps, spread = [], []
  for matrix, offset in states:
    best = np.zeros((DIM, DIM))
    for i, allowed in enumerate(seen):
      best[i, allowed] = np.linalg.lstsq(matrix[allowed].T, end[i], rcond=None)[0]
    maps.append((best, end_offset - best @ offset))
    spread.append(np.sum((best @ matrix) ** 2) / np.sum(end**2))
  assert spread[0] < 0.85 and spread[1] < 0.95  # share of the walk's variance that is left

  teacher, nets = teacher_of(dynamics())
  objective = kd(near(table(maps)), teacher, **OPTIONS)
  batch = Batch(jnp.zeros((SAMPLES, *SHAPE)))
  _, still = run(objective, zeros(), nets, batch)
  _, moved = run(objective, displaced(), nets, batch)
  causal = np.concatenate([np.tile(seen.ravel(), 3), np.ones(3 * DIM, bool)])
  size = np.linalg.norm(moved[causal])
  assert np.linalg.norm(still[causal]) < 0.02 * size < np.linalg.norm(still[~causal])


# ------------------------------------------------------------------------------------------------
# Training
# ------------------------------------------------------------------------------------------------


def test_training_from_zero_reaches_the_walk_from_each_time():
  videos = dynamics()
  teacher, nets = teacher_of(videos)
  depth = lambda t: (t < 1).astype(jnp.int32)

  def student(params, x, t, cond):
    each = jnp.einsum("nij,nj->ni", params["A"][depth(t)], x.reshape(-1, DIM))
    return (each + params["b"][depth(t)]).reshape(x.shape)

  objective = kd(student, teacher, **OPTIONS)
  start = {"student": zeros(2), **nets}
  end = fit(objective, start, jnp.zeros((2**10, *SHAPE)), steps=400, rates={"student": 0.05})

  states, (walk, walk_offset) = walks(videos.velocity)
  law = lambda matrix, offset: (offset, matrix @ matrix.T)
  for k, (t, (matrix, offset)) in enumerate(zip(TIMES, states, strict=True)):
    a, b = (np.float64(end["student"][name][k]) for name in "Ab")
    jump = np.eye(DIM) - t * a
    found = law(jump @ matrix, jump @ offset - t * b)
    assert wasserstein(*law(matrix, offset), *law(walk, walk_offset)) > 0.5
    assert wasserstein(*found, *law(walk, walk_offset)) < 0.01


def test_every_noise_has_its_answer_so_every_mode_keeps_its_share():
  """A small network learns the jump to two modes of weights 0.7 and 0.3."""
  teacher, nets = teacher_of(mixture())
  objective = kd(mlp.velocity, teacher, times=(1.0,), steps=8, shift=SHIFT, solver="heun")
  start = {"student": mlp.weights(), **nets}
  end = fit(objective, start, jnp.zeros((2**10, *SHAPE)), steps=1200, rates={"student": 0.005})
  truth = mlp.share(flat(batch_of(mixture(), 2**14)).reshape(-1, DIM), mixture())
  assert abs(mlp.share(mlp.one_step(end["student"]), mixture()) - truth) < 0.015


# ------------------------------------------------------------------------------------------------
# Details
# ------------------------------------------------------------------------------------------------


def test_a_stored_path_needs_no_teacher():
  teacher, nets = teacher_of(dynamics())
  noise = parts.noise_like(jax.random.key(1), jnp.zeros((512, *SHAPE)))
  field = lambda x, t: teacher(nets["teacher"], x, t, None)
  path, x0 = SOURCE.ode_path(field, noise, TIMES, steps=STEPS, shift=SHIFT)
  states, (matrix, offset) = walks(dynamics().velocity)
  eps = flat(noise).reshape(-1, DIM)
  for k, (m, o) in enumerate(states):
    np.testing.assert_allclose(flat(path[:, k]).reshape(-1, DIM), eps @ m.T + o, atol=1e-5)
  np.testing.assert_allclose(flat(x0).reshape(-1, DIM), eps @ matrix.T + offset, atol=1e-5)

  maps = [(matrix @ np.linalg.inv(m), offset - matrix @ np.linalg.inv(m) @ o) for m, o in states]
  objective = kd(near(table(maps)), None, source="path", times=TIMES)
  assert objective.frozen == ()
  value, _ = run(objective, zeros(), {}, Batch(x0, path=path))
  assert value < 1e-9 * run(objective, displaced(), {}, Batch(x0, path=path))[0]


def test_losses_by_quarter_of_time_add_up_to_the_loss():
  t = jnp.float32([1.0, 0.75, 1.0, 0.2])
  found = parts.by_time("x", jnp.float32([1, 2, 3, 5]), t, parts.OneOf((1.0, 0.75, 0.5, 0.2)))
  assert [float(found[f"x_t{k}"]) for k in range(4)] == [5.0, 0.0, 0.0, 3.0]
  drawn = parts.OneOf(TIMES).sample(jax.random.key(0), (4096,))
  assert drawn.dtype == jnp.float32 and abs(float(jnp.mean(drawn == 1)) - 0.5) < 0.03


@pytest.mark.parametrize(
  ("options", "words"),
  [
    ({"times": (0.9, 0.5)}, "times must start at 1"),
    ({"times": (1.0, 0.5, 0.5)}, "fall strictly"),
    ({"times": (1.0, 0.0)}, "staying positive"),
    ({"source": "data"}, "source must be one of teacher, path"),
    ({"solver": "consistency"}, "solver must be one of dpmpp_2m"),
    ({"guidance": 3.0}, "needs unconditional"),
  ],
)
def test_impossible_options_are_refused(options, words):
  with pytest.raises(ValueError, match=words):
    kd(exact, exact, **options)


def test_a_path_that_is_missing_or_of_other_times_is_refused():
  objective = kd(exact, exact, source="path", times=TIMES)
  batch = Batch(jnp.zeros((2, *SHAPE)))
  with pytest.raises(ValueError, match=r"batch\.path, which is None"):
    run(objective, zeros(), {}, batch)
  with pytest.raises(ValueError, match="holds 3 states a video, but times names 2"):
    run(objective, zeros(), {}, batch.replace(path=jnp.zeros((2, 3, *SHAPE))))
