"""Causal objectives are the others: proven on a Gaussian chain, whose every frame is known."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from chain import CHAIN, DIM, DRIFT, FRAMES, NOISE, SHAPE, SHIFT, TRI, A, B, D, gradient
from mutation import assert_caught
from test_dcm import numpy_walk, walker

from vidstep import paths
from vidstep.losses import Batch, dcm, flow_map, flow_matching, mean_flow, parts, scm
from vidstep.models import Cond
from vidstep.teachers import gaussian
from vidstep.teachers.analytic import causal

pytestmark = pytest.mark.usefixtures("unoptimized")


# ------------------------------------------------------------------------------------------------
# The teacher: each frame given the clean one before it
# ------------------------------------------------------------------------------------------------


def video_batch(n, seed=0):
  """Videos of the chain behind one frame of context, with actions and their clean selves."""
  keys = jax.random.split(jax.random.key(seed))
  actions = gaussian.random_actions(keys[0], n, 1 + FRAMES, 1)
  video = gaussian.draw(CHAIN, keys[1], (n, 1 + FRAMES, 1, 1, D), Cond(actions=actions))
  x0 = video[:, 1:]
  return Batch(x0, Cond(actions=actions, context=video[:, :1], clean=x0))


def teacher_forced(fn, chunk=1):
  """A whole-clip function as a causal one that reads the clean frames of its condition."""
  fn = causal(fn, chunk)
  return lambda params, x, t, cond, **s: fn(
    CHAIN, x, t, cond.replace(clean=None), clean=cond.clean, **s
  )


TEACHER = teacher_forced(gaussian.velocity)


def numpy_velocity(previous, action):
  """`E[eps - x | x_t]` of x ~ N(A previous + B action + drift, noise), float64: (x, t) -> v."""
  mean = previous @ A.T + action @ B.T + DRIFT

  def velocity(x, t):
    total = (1 - t) ** 2 * NOISE + t**2 * np.eye(D)
    solved = np.linalg.solve(total, (x - (1 - t) * mean).T).T
    return t * solved - mean - (1 - t) * solved @ NOISE

  return velocity


def test_the_teacher_is_each_frame_given_its_past():
  batch = video_batch(4)
  x = np.random.default_rng(0).normal(size=(4, *SHAPE))
  t = np.float32([0.2, 0.5, 0.7, 1.0])
  found = np.asarray(jax.jit(TEACHER)(None, jnp.float32(x), jnp.asarray(t), batch.cond))
  video = np.concatenate([batch.cond.context, batch.x0], 1)[:, :, 0, 0].astype(np.float64)
  for b in range(4):
    for f in range(FRAMES):
      right = numpy_velocity(video[b, f : f + 1], np.asarray(batch.cond.actions[b, f + 1])[None])
      np.testing.assert_allclose(found[b, f, 0, 0], right(x[b, f, 0], t[b])[0], atol=2e-5)


# ------------------------------------------------------------------------------------------------
# Teacher forcing
# ------------------------------------------------------------------------------------------------


def near(base, past="past"):
  """`base + sum_k t^k (A_k x + C_k clean + b_k)`, own frame of x, earlier clean ones."""
  mask = lambda name: jnp.float32(np.kron(TRI[name], np.ones((D, D))))[None]

  def velocity(params, x, t, cond, **s):
    rows = lambda a: a.reshape(len(a), DIM)
    each = jnp.einsum("kij,nj->nki", params["A"] * mask("own"), rows(x))
    each += jnp.einsum("kij,nj->nki", params["C"] * mask(past), rows(cond.clean))
    each += params["b"][None]
    powers = t[:, None] ** jnp.arange(2, dtype=t.dtype)[None]
    return base(params, x, t, cond, **s) + jnp.einsum("nki,nk->ni", each, powers).reshape(x.shape)

  return velocity


def residual(size=0.0, seed=0):
  rng = np.random.default_rng(seed)
  shapes = {"A": (2, DIM, DIM), "C": (2, DIM, DIM), "b": (2, DIM)}
  return {name: jnp.float32(size * rng.normal(size=shape)) for name, shape in shapes.items()}


def check_flow_matching(base=TEACHER, past="past"):
  batch = video_batch(2**15)
  objective = flow_matching(near(base, past), time=paths.Uniform(SHIFT))
  _, still = gradient(objective, residual(), batch)
  _, moved = gradient(objective, residual(0.3), batch)
  assert np.linalg.norm(still) < 0.02 * np.linalg.norm(moved)


def test_teacher_forced_flow_matching_has_the_causal_teacher_as_fixed_point():
  check_flow_matching()


def late(params, x, t, cond, **s):
  return TEACHER(params, x, t, cond.replace(actions=jnp.roll(cond.actions, 1, 1)), **s)


def forgetful(params, x, t, cond, **s):
  """The last clean frame that is read is dropped with the one that is not."""
  return TEACHER(params, x, t, cond.replace(clean=cond.clean.at[:, -2:].set(0)), **s)


@pytest.mark.parametrize(
  "broken",
  [{"past": "until"}, {"base": late}, {"base": forgetful}],
  ids=["own clean frame seen", "action off by one", "clean frame dropped"],
)
def test_flow_matching_finds_what_is_wrong_with_the_forcing(broken):
  assert_caught(lambda: check_flow_matching(**broken))


def check_consistency(objective_of, base, **broken):
  """Exact for every sample: no loss at the fixed point, against that of a neighbour."""
  batch = video_batch(512)
  objective = objective_of(near(base, **broken))
  value, still = gradient(objective, residual(), batch)
  away, moved = gradient(objective, residual(0.3), batch)
  assert value < 1e-7 * away
  assert np.linalg.norm(still) < 1e-3 * np.linalg.norm(moved)


WALK = walker(lambda x, t, cond: TEACHER(None, x, t, cond), stride=1 / 4, shift=SHIFT)
TF_DCM = lambda velocity: dcm(velocity, TEACHER, steps=4, shift=SHIFT)
TF_SCM = lambda velocity: scm(velocity, TEACHER, norm="none")
END = teacher_forced(gaussian.consistency)
TO_END = lambda params, x, t, cond: paths.v_from_x0(x, END(params, x, t, cond), t)


def test_teacher_forced_discrete_consistency_is_the_causal_teachers_walk():
  check_consistency(TF_DCM, lambda params, x, t, cond: WALK(x, t, cond))
  batch = video_batch(2)
  x = np.random.default_rng(0).normal(size=(2, *SHAPE))
  found = np.asarray(jnp.float32(x) - jax.jit(WALK)(jnp.float32(x), jnp.ones(2), batch.cond))
  video = np.concatenate([batch.cond.context, batch.x0], 1)[:, :, 0, 0].astype(np.float64)
  for b in range(2):
    right = numpy_velocity(video[b, 1:2], np.asarray(batch.cond.actions[b, 2])[None])
    expected = numpy_walk(right, x[b, 1, 0], 1.0, stride=1 / 4, shift=SHIFT)
    np.testing.assert_allclose(found[b, 1, 0], expected, atol=1e-5)


def test_teacher_forced_continuous_consistency_is_the_causal_consistency_function():
  check_consistency(TF_SCM, TO_END)


FLOW = teacher_forced(gaussian.flow_map)


def average(params, x, t, cond, s):
  """The average velocity of the causal teacher's flow over [s, t]."""
  gap = t - s
  wide = (gap > 1e-3).reshape(-1, 1, 1, 1, 1)
  u = (x - FLOW(params, x, t, cond, s=s)) / jnp.where(wide, gap.reshape(wide.shape), 1)
  return jnp.where(wide, u, TEACHER(params, x, t, cond))


def test_a_teacher_forced_flow_map_is_the_causal_teachers():
  check_consistency(lambda velocity: flow_map(velocity, TEACHER, power=0.0), average)


def test_teacher_forced_mean_flow_is_the_average_velocity_of_the_causal_flow():
  batch = video_batch(2**14)
  objective = mean_flow(near(average), power=0.0)
  _, still = gradient(objective, residual(), batch)
  _, moved = gradient(objective, residual(0.3), batch)
  assert np.linalg.norm(still) < 0.05 * np.linalg.norm(moved)


def test_a_student_that_forgets_its_past_is_not_consistent():
  short = lambda params, x, t, cond: TO_END(
    params, x, t, cond.replace(clean=jnp.zeros_like(cond.clean))
  )
  assert_caught(check_consistency, TF_SCM, short)


# ------------------------------------------------------------------------------------------------
# Diffusion forcing
# ------------------------------------------------------------------------------------------------


def test_chunks_draw_their_own_times_also_where_the_first_is_shorter():
  t = parts.draw_times(paths.Uniform(), jax.random.key(0), jnp.zeros((8, 6, 1)), chunk=(1, 2))
  np.testing.assert_array_equal(t[:, [1, 3]], t[:, [2, 4]])
  assert t.shape == (8, 6) and len(np.unique(t)) == 8 * 4


def test_diffusion_forcing_has_the_teacher_behind_noisy_frames_as_fixed_point():
  """A velocity of each frame given the noisy ones before it; later ones it must not see."""
  batch = video_batch(2**12)
  batch = batch.replace(cond=batch.cond.replace(clean=None))
  behind_noise = causal(gaussian.velocity)

  def velocity(fn):
    def moved(params, x, t, cond):
      rows = jnp.einsum("ij,nj->ni", params, x.reshape(len(x), DIM))
      return fn(CHAIN, x, t, cond) + rows.reshape(x.shape)

    return moved

  def norm(fn, size):
    lower = np.kron(TRI["until"], np.ones((D, D)))
    probe = jnp.float32(size * lower * np.random.default_rng(0).normal(size=(DIM, DIM)))
    objective = flow_matching(velocity(fn), chunk=1, time=paths.Uniform(SHIFT))
    _, found = gradient(objective, probe, batch)
    return np.linalg.norm(found.reshape(DIM, DIM) * lower)

  assert norm(behind_noise, 0) < 0.1 * norm(behind_noise, 0.3)
  blind = lambda params, x, t, cond: behind_noise(params, x, jnp.ones_like(t), cond)
  assert norm(blind, 0) > 0.2 * norm(behind_noise, 0.3)
