"""Shortcut models are proven against the Euler walk that their jumps must become."""

import functools
import importlib
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from fit import fit
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
  residual,
  shifted_quadrature,
  wasserstein,
  zeros,
)

from vidstep import paths
from vidstep.losses import Batch, shortcut

# The package exports the function under the name of its module.
SOURCE = importlib.import_module("vidstep.losses.shortcut")
SHIFT, STEPS, SAMPLES = 3.0, 4, 2**17
OPTIONS = {"steps": STEPS, "shift": SHIFT, "time": paths.Uniform(2.0)}


def two_time(params, x, t, s):
  """`(A_0 + t A_1 + s A_2) x + b_0 + t b_1 + s b_2`; s and t are [B]."""
  each = jnp.einsum("kij,nj->nki", params["A"], x.reshape(-1, DIM)) + params["b"][None]
  basis = jnp.stack([jnp.ones_like(t), t, s], 1)
  return jnp.einsum("nk,nki->ni", basis, each).reshape(x.shape)


def run(objective, params, batch, nets=None):
  """Loss and gradient, flattened."""
  (role,) = objective.roles
  loss = jax.value_and_grad(objective.loss[role], has_aux=True)
  nets = {role: params} | (nets or {})
  (value, _), grads = loss(params, nets, {}, batch, jax.random.key(0), 0)
  return float(value), flat(grads)


# ------------------------------------------------------------------------------------------------
# The gradient
# ------------------------------------------------------------------------------------------------


def at(params, t, s):
  basis = np.array([1.0, t, s])
  a, b = np.float64(params["A"]), np.float64(params["b"])
  return np.tensordot(basis, a, 1), basis @ b


def oracle_gradient(videos, params, other, every):
  """`2/D E phi_k(t, s) (u(x_t, t, s) - goal) (x_t, 1)'`; all is affine in one Gaussian."""
  m, cov = videos.means[0], videos.covs[0]
  grad_a, grad_b = np.zeros((3, DIM, DIM)), np.zeros((3, DIM))

  def add(weight, t, s, matrix, offset):
    a, b = at(params, t, s)
    mean = (1 - t) * m
    square = (1 - t) ** 2 * cov + t**2 * np.eye(DIM) + np.outer(mean, mean)
    for k, basis in enumerate((1.0, t, s)):
      factor = weight * basis * 2 / DIM
      grad_a[k] += factor * ((a - matrix) @ square + np.outer(b - offset, mean))
      grad_b[k] += factor * ((a - matrix) @ mean + b - offset)

  for _, t, w in zip(*shifted_quadrature(2.0, 64), strict=True):
    offset = videos.velocity(np.zeros((1, DIM)), t)[0]
    slope = (videos.velocity(np.eye(DIM), t) - offset).T
    add(w * (every - 1) / every, t, t, slope, offset)

  shifted = lambda u: SHIFT * u / (1 + (SHIFT - 1) * u)
  for n in (1, 2):
    for i in range(1, n + 1):
      t, mid, s = (shifted((i - back) / n) for back in (0, 0.5, 1))
      (a1, b1), (a2, b2) = (at(other, x, x if n == 2 else y) for x, y in ((t, mid), (mid, s)))
      to_mid = np.eye(DIM) - (t - mid) * a1
      matrix = ((t - mid) * a1 + (mid - s) * a2 @ to_mid) / (t - s)
      offset = ((t - mid) * b1 + (mid - s) * (b2 - (t - mid) * a2 @ b1)) / (t - s)
      add(1 / every / 2 / n, t, s, matrix, offset)
  return np.concatenate([grad_a.ravel(), grad_b.ravel()])


def check_gradient(source, target="self"):
  videos, ema = dynamics(), displaced(seed=1)
  velocity = lambda params, x, t, cond, s: two_time(params, x, t, s)
  objective = source.shortcut(velocity, None, every=2, target=target, **OPTIONS)
  batch = Batch(batch_of(videos, SAMPLES))
  _, found = run(objective, displaced(), batch, {"model.ema": ema})
  other = displaced() if target == "self" else ema
  expected = oracle_gradient(videos, displaced(), other, 2)
  assert np.linalg.norm(found - expected) < 0.02 * np.linalg.norm(expected)


@pytest.mark.parametrize("target", ["self", "ema"])
def test_the_gradient_is_that_of_the_closed_form(target):
  check_gradient(SOURCE, target)


@pytest.mark.parametrize(
  ("old", "new"),
  [
    ("jax.lax.stop_gradient(two_steps(ask, x, t, m, s))", "two_steps(ask, x, t, m, s)"),
    ("jnp.where(smallest, t, s)", "s"),
    ("n == steps // 2", "n == steps"),
    ("velocity(trainable, x, t, cond, s=s)", "velocity(trainable, x, s, cond, s=t)"),
    ("velocity(trainable, x, t, cond, s=t)", "velocity(trainable, x, t, cond, s=0 * t)"),
    ("two_steps(ask, x, t, m, s)", "two_steps(ask, x, t, s, m)"),
    ("levels * unit(level_key)) - 1)", "levels * unit(level_key)))"),
    ("(every - 1) * jnp.mean(flow)", "(every + 1) * jnp.mean(flow)"),
  ],
)
def test_a_wrong_objective_fails_the_proof(old, new):
  assert_caught(check_gradient, mutant(SOURCE, old, new))


# ------------------------------------------------------------------------------------------------
# The fixed point
# ------------------------------------------------------------------------------------------------


def walker(field):
  """Average velocity of the Euler walk on the grid of STEPS; the field itself at s = t."""

  @jax.jit
  def velocity(x, t, s):
    y, u = x, paths.unshift_time(t, SHIFT)
    for _ in range(STEPS):
      below = jnp.maximum(u - 1 / STEPS, paths.unshift_time(s, SHIFT))
      here, there = paths.shift_time(u, SHIFT), paths.shift_time(below, SHIFT)
      y, u = y - paths.expand(here - there, x) * field(y, here), below
    jump, gap = x - y, paths.expand(t - s, x)
    return jnp.where(gap == 0, field(x, t), jump / jnp.where(gap == 0, 1, gap))

  return velocity


@functools.cache
def guided_walk():
  both, one = mixture().params(), dynamics().params()
  return walker(lambda x, t: 1.5 * exact(one, x, t, None) - 0.5 * exact(both, x, t, None))


def check_fixed_point(source):
  """With a guided teacher the walk on the finest grid loses nothing on any sample."""
  both, one = mixture().params(), dynamics().params()

  @jax.jit
  def teacher(params, x, t, cond):
    known = cond["known"].reshape(-1, 1, 1, 1, 1)
    return jnp.where(known, exact(params[0], x, t, None), exact(params[1], x, t, None))

  student = lambda params, x, t, cond, s: guided_walk()(x, t, s) + two_time(params, x, t, s)
  empty = lambda cond: {"known": jnp.zeros_like(cond["known"])}
  options = {"source": "teacher", "guidance": 1.5, "unconditional": empty}
  objective = source.shortcut(student, teacher, **options, **OPTIONS)
  assert objective.roles == ("student",) and objective.frozen == ("teacher",)
  batch = Batch(batch_of(mixture(), 512), {"known": jnp.ones(512, bool)})
  nets = {"teacher": (one, both)}
  value, grads = run(objective, zeros(), batch, nets)
  away, steep = run(objective, displaced(), batch, nets)
  assert value < 1e-8 * away
  assert np.linalg.norm(grads) < 1e-4 * np.linalg.norm(steep)


def test_the_walk_on_the_finest_grid_loses_nothing():
  check_fixed_point(SOURCE)


@pytest.mark.parametrize(
  ("old", "new"),
  [
    ("apply_guidance(teacher, guidance,", "apply_guidance(teacher, 1,"),
    ("for back in (0, 0.5, 1)", "for back in (0, 0.25, 1)"),
  ],
)
def test_another_walk_fails_the_proof(old, new):
  assert_caught(check_fixed_point, mutant(SOURCE, old, new))


# ------------------------------------------------------------------------------------------------
# Training
# ------------------------------------------------------------------------------------------------


def test_training_from_zero_gives_every_dyadic_step_count():
  """From data alone: a flow, and jumps that end where its walk in STEPS steps ends."""
  videos = dynamics()
  starts = jnp.float32([0, 0, 0.5])  # unshifted: the jumps 1 -> 0, 1/2 -> 0 and 1 -> 1/2
  ends = jnp.float32([1, 0.5, 1])

  def velocity(params, x, t, cond, s):
    u, below = (paths.unshift_time(time, SHIFT)[:, None] for time in (t, s))
    which = jnp.argmin(jnp.abs(u - ends[None]) + jnp.abs(below - starts[None]), 1)
    jump = jnp.einsum("nij,nj->ni", params["A"][which], x.reshape(-1, DIM)) + params["b"][which]
    flow = residual(params["flow"], x, 2 * t - 1)
    return jnp.where(paths.expand(s, x) == paths.expand(t, x), flow, jump.reshape(x.shape))

  objective = shortcut(velocity, None, every=2, **OPTIONS)
  start = {"model": zeros(3) | {"flow": zeros(8)}}
  data = batch_of(videos, 2**13)
  params = fit(objective, start, data, steps=1200, rates={"model": 0.03})["model"]

  def jump(y, t, s):
    full = lambda time: jnp.full(len(y), time, jnp.float32)
    v = velocity(params, jnp.float32(y).reshape(-1, *SHAPE), full(t), None, full(s))
    return y - (t - s) * flat(v).reshape(-1, DIM)

  law = lambda y: (y[0], (y[1:] - y[0]).T @ (y[1:] - y[0]))
  corners = np.concatenate([np.zeros((1, DIM)), np.eye(DIM)])
  walk = corners
  for here, there in ((1, 0.9), (0.9, 0.75), (0.75, 0.5), (0.5, 0)):  # shift 3 of quarters
    walk = walk - (here - there) * videos.velocity(walk, here)
  for times in ((1, 0), (1, 0.75, 0)):
    y = corners
    for t, s in itertools.pairwise(times):
      y = jump(y, t, s)
    assert wasserstein(*law(y), *law(walk)) < 0.05
  assert wasserstein(*law(corners), *law(walk)) > 1


# ------------------------------------------------------------------------------------------------
# Details
# ------------------------------------------------------------------------------------------------


def test_frames_of_a_chunk_share_both_times():
  seen = []

  def velocity(params, x, t, cond, s):
    seen.append((t.shape, s.shape, t.dtype, s.dtype))
    return params * x

  loss = shortcut(velocity, None, chunk=2, **OPTIONS).loss["model"]
  batch = Batch(batch_of(dynamics(), 512))
  jax.eval_shape(loss, jnp.float32(1), {}, {}, batch, jax.random.key(0), 0)
  few, most = (((n, 3), (n, 3), jnp.float32, jnp.float32) for n in (128, 384))
  assert seen == [most, few, few, few]  # the flow; two halves and the jump


@pytest.mark.parametrize(
  ("options", "words"),
  [
    ({"steps": 6}, "steps must be a power of two"),
    ({"every": 1}, "every must be at least 2"),
    ({"source": "path"}, "source must be one of data, teacher"),
    ({"target": "teacher"}, "target must be one of self, ema"),
    ({"guidance": 3.0}, 'use source="teacher" or guidance=1'),
    ({"guidance": 3.0, "source": "teacher"}, "needs unconditional"),
  ],
)
def test_impossible_options_are_refused(options, words):
  with pytest.raises(ValueError, match=words):
    shortcut(exact, exact, **options)


def test_a_batch_that_cannot_be_split_is_refused():
  velocity = lambda params, x, t, cond, s: params * x
  with pytest.raises(ValueError, match="A batch of 6 cannot give one sample in every=4"):
    run(shortcut(velocity, None, **OPTIONS), jnp.float32(1), Batch(jnp.zeros((6, *SHAPE))))
