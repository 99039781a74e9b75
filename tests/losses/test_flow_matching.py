"""Flow matching is proven: its gradient in closed form, its fixed points, and where it ends."""

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
  frame_velocity,
  mixture,
  near,
  residual,
  velocity_gradient,
  wasserstein,
  zeros,
)

from vidstep import paths
from vidstep.losses import Batch, flow_matching, parts

# The package exports the function under the name of its module.
SOURCE = importlib.import_module("vidstep.losses.flow_matching")
SHIFT, SAMPLES = 2.0, 2**17


def gradient(objective, params, batch, key=0):
  loss = objective.loss["model"]
  return flat(jax.grad(loss, has_aux=True)(params, {}, {}, batch, jax.random.key(key), 0)[0])


def check_gradient(source, videos):
  """Zero at the exact velocity, and the closed-form gradient away from it."""
  data = videos.params()
  velocity = near(lambda x, t, cond: exact(data, x, t, cond))
  objective = source.flow_matching(velocity, time=paths.Uniform(SHIFT), weight=source.bell)
  batch = Batch(batch_of(videos, SAMPLES))
  bell = lambda t: np.exp(-2 * (t - 0.5) ** 2) - np.exp(-0.5)
  expected = velocity_gradient(videos, displaced(), SHIFT, bell)
  size = np.linalg.norm(expected)
  assert np.linalg.norm(gradient(objective, zeros(), batch)) < 0.02 * size
  assert np.linalg.norm(gradient(objective, displaced(), batch) - expected) < 0.02 * size


@pytest.mark.parametrize("videos", [dynamics(), mixture()], ids=["gaussian", "mixture"])
def test_the_gradient_is_that_of_the_closed_form(videos):
  check_gradient(SOURCE, videos)


@pytest.mark.parametrize(
  ("old", "new"),
  [
    ("paths.velocity(x0, eps)", "paths.velocity(eps, x0)"),
    ("paths.interpolate(x0, eps, t)", "paths.interpolate(eps, x0, t)"),
    ("weight(t) * error", "error"),
    ("t, cond))", "1 - t, cond))"),
    ("jnp.exp(-0.5)", "jnp.exp(-1.0)"),
  ],
)
def test_a_wrong_objective_fails_the_proof(old, new):
  assert_caught(check_gradient, mutant(SOURCE, old, new), dynamics())


# ------------------------------------------------------------------------------------------------
# Training
# ------------------------------------------------------------------------------------------------


def test_training_from_zero_reaches_the_data():
  """A velocity linear in x, polynomial in t, no exact part: its ODE must end near the data."""
  videos, powers = dynamics(), 8
  velocity = lambda params, x, t, cond: residual(params, x, 2 * t - 1)
  objective, start = flow_matching(velocity), {"model": zeros(powers)}
  end = fit(objective, start, batch_of(videos, 2**14), steps=1500, rates={"model": 0.03})
  assert end_distance(start["model"], videos) > 1.5
  assert end_distance(end["model"], videos) < 0.05


def end_distance(params, videos, steps=200):
  """W2 to the data of where the ODE takes noise; a linear flow keeps Gaussians Gaussian."""
  mean, factor = np.zeros(DIM), np.eye(DIM)
  for i in range(steps, 0, -1):
    a, b = at_time(params, 2 * (i - 0.5) / steps - 1)  # midpoint in t, backwards
    step = np.linalg.inv(np.eye(DIM) + a / (2 * steps))
    mean = step @ (mean - a @ mean / (2 * steps) - b / steps)
    factor = step @ (factor - a @ factor / (2 * steps))
  return wasserstein(mean, factor @ factor.T, videos.mean(), videos.covs[0])


# ------------------------------------------------------------------------------------------------
# Times a frame, dropped conditions, precision
# ------------------------------------------------------------------------------------------------


def test_diffusion_forcing_is_the_same_objective_with_a_time_a_chunk():
  videos = dynamics()
  batch = Batch(batch_of(videos, 2**14))
  right = flow_matching(near(frame_velocity(videos)), chunk=1)
  moved = np.linalg.norm(gradient(right, displaced(), batch))
  assert np.linalg.norm(gradient(right, zeros(), batch)) < 0.05 * moved

  # The velocity for one time a video, given the mean time, is not its fixed point.
  data = videos.params()
  shared = near(lambda x, t, cond: exact(data, x, jnp.mean(t, 1), cond))
  assert np.linalg.norm(gradient(flow_matching(shared, chunk=1), zeros(), batch)) > 0.2 * moved


def test_frames_of_a_chunk_share_their_time():
  t = parts.draw_times(paths.Uniform(), jax.random.key(0), jnp.zeros((4, 5, 1, 1, 1)), chunk=2)
  assert t.shape == (4, 5) and t.dtype == jnp.float32
  assert (t[:, 0] == t[:, 1]).all() and (t[:, 2] == t[:, 3]).all()
  assert len(np.unique(t)) == 12


def test_dropped_conditions_teach_the_marginal():
  """Two classes of video: the fixed point is the class's Gaussian, or the mixture without it."""
  videos = mixture()
  rng = np.random.default_rng(0)
  data = videos.params()
  pick = lambda m: jax.tree.map(lambda a: a[m : m + 1], data)
  kind = rng.choice(2, size=SAMPLES, p=videos.weights)
  noise = np.einsum(
    "nij,nj->ni", np.linalg.cholesky(videos.covs)[kind], rng.normal(size=(SAMPLES, DIM))
  )
  x0 = jnp.float32(videos.means[kind] + noise).reshape(-1, *SHAPE)
  batch = Batch(x0, {"kind": jnp.int32(kind), "known": jnp.ones((SAMPLES, 1), bool)})

  def velocity(params, x, t, cond):
    first = (cond["kind"] == 0).reshape(-1, 1, 1, 1, 1)
    known = cond["known"].reshape(-1, 1, 1, 1, 1)
    given = jnp.where(first, exact(pick(0), x, t, None), exact(pick(1), x, t, None))
    base = jnp.where(known, given, exact(data, x, t, None))
    with_class, without = residual(params["with"], x, t), residual(params["without"], x, t)
    return base + jnp.where(known, with_class, without)

  empty = lambda cond: {"kind": cond["kind"], "known": jnp.zeros_like(cond["known"])}
  objective = flow_matching(velocity, drop=0.3, unconditional=empty)
  still = gradient(objective, {"with": zeros(), "without": zeros()}, batch)
  moved = gradient(objective, {"with": displaced(), "without": displaced()}, batch)
  kept, dropped = np.split(moved, 2)
  assert np.linalg.norm(still) < 0.03 * np.linalg.norm(moved)
  share = np.dot(dropped, kept + dropped) / np.dot(kept + dropped, kept + dropped)
  assert abs(share - 0.3) < 0.05

  # Dropping what the network cannot see dropped would leave the mixture where the class belongs.
  blind = flow_matching(
    velocity, drop=0.3, unconditional=lambda cond: cond | {"kind": 1 - cond["kind"]}
  )
  assert np.linalg.norm(gradient(blind, {"with": zeros(), "without": zeros()}, batch)) > 0.1


def test_each_sample_is_dropped_whole():
  cond = {"a": jnp.ones((4096, 3)), "b": jnp.ones((4096,), bool), "none": None}
  mixed = parts.drop_condition(
    cond, lambda c: jax.tree.map(jnp.zeros_like, c), 0.25, jax.random.key(0), 4096
  )
  assert mixed["b"].dtype == bool and mixed["none"] is None
  assert ((mixed["a"] == 1).all(1) == mixed["b"]).all()
  assert ((mixed["a"] == 0).all(1) == ~mixed["b"]).all()
  assert abs(float(jnp.mean(~mixed["b"])) - 0.25) < 0.03


def test_bfloat16_data_and_networks_are_compared_in_float32():
  times = []

  def velocity(params, x, t, cond):
    times.append(t)
    return (params * x.astype(jnp.bfloat16)).astype(jnp.bfloat16)

  objective = flow_matching(velocity)
  batch = Batch(jnp.ones((8, *SHAPE), jnp.bfloat16))
  value, _ = objective.loss["model"](jnp.bfloat16(1), {}, {}, batch, jax.random.key(0), 0)
  assert value.dtype == times[0].dtype == jnp.float32


def test_losses_by_quarter_of_time_are_unbiased_and_never_nan():
  time = paths.Uniform(3.0)
  t = time.sample(jax.random.key(0), (2**17,))
  found = parts.by_time("x", t, t, time)
  for k in range(4):
    inside = np.asarray(t)[(np.asarray(t) >= k / 4) & (np.asarray(t) < (k + 1) / 4)]
    assert abs(float(found[f"x_t{k}"]) / inside.mean() - 1) < 0.03
  one = parts.by_time("x", jnp.ones(1), jnp.ones(1), time)
  assert [float(one[f"x_t{k}"]) for k in range(3)] == [0, 0, 0] and one["x_t3"] > 0


@pytest.mark.parametrize(
  ("options", "words"),
  [
    ({"drop": 1.0}, "drop is a probability"),
    ({"drop": 0.1}, "needs unconditional"),
  ],
)
def test_impossible_options_are_refused(options, words):
  with pytest.raises(ValueError, match=words):
    flow_matching(lambda params, x, t, cond: x, **options)


def test_impossible_batches_are_refused():
  batch = Batch(jnp.zeros((2, *SHAPE)), {"text": jnp.zeros((2, 3))})
  velocity = lambda params, x, t, cond: params * x
  run = lambda **options: gradient(flow_matching(velocity, **options), jnp.float32(0), batch)
  with pytest.raises(ValueError, match="explicit text_mask"):
    run(drop=0.1, unconditional=lambda cond: cond | {"text_mask": jnp.zeros((2, 3))})
  with pytest.raises(ValueError, match="chunks hold at least one frame"):
    run(chunk=0)
