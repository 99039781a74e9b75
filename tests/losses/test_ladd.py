"""The adversarial objective alone: both gradients in closed form, its generator, and its end."""

import importlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from fit import fit
from generators import drawn_by, gradient, linear, matched, moved
from mutation import assert_caught, mutant
from videos import DIM, SHAPE, batch_of, dynamics, shifted_quadrature, wasserstein

from vidstep import paths
from vidstep.losses import Batch, ladd

SOURCE = importlib.import_module("vidstep.losses.ladd")
SHIFT, SAMPLES = 2.0, 2**17
TIME = paths.Uniform(SHIFT)
SAMPLED = drawn_by(moved(matched(dynamics())))


def looks(params, x, t, cond):
  return [params["gain"] * x, jnp.broadcast_to(t.reshape(-1, 1, 1, 1, 1), (*x.shape[:-1], 1))]


def quadratic(params, features):
  """`sum_k t^k (c_k + a_k x + x B_k x)`."""
  x, t = features[0].reshape(-1, DIM), features[1][:, 0, 0, 0, 0]
  each = params["c"][None] + x @ params["a"].T + jnp.einsum("ni,kij,nj->nk", x, params["B"], x)
  return jnp.sum(each * t[:, None] ** jnp.arange(len(params["c"]), dtype=t.dtype)[None], 1)


def bends(size, powers=1, seed=3):
  rng = np.random.default_rng(seed)
  draw = lambda *shape: jnp.float32(size * rng.normal(size=(powers, *shape)))
  return {"B": 0.3 * draw(DIM, DIM), "a": draw(DIM), "c": draw()}


NETS = {
  "student": moved(matched(dynamics())),
  "critic": bends(0.5),
  "teacher": {"gain": jnp.float32(1.0)},
}


# ------------------------------------------------------------------------------------------------
# The two gradients
# ------------------------------------------------------------------------------------------------


def check_student(source):
  """It climbs D at x_t: for a quadratic D the moments of x_t say by how much."""
  big, a = (np.asarray(NETS["critic"][name][0], np.float64) for name in ("B", "a"))
  w, b = (np.asarray(NETS["student"][name], np.float64) for name in "Wb")
  both, grad_w, grad_b = big + big.T, 0.0, 0.0
  for _, t, weight in zip(*shifted_quadrature(SHIFT), strict=True):
    grad_w = grad_w - weight * (1 - t) ** 2 * both @ w
    grad_b = grad_b - weight * (1 - t) * (a + (1 - t) * both @ b)
  expected = np.concatenate([grad_w.ravel(), grad_b])
  objective = source.adversarial(linear, looks, quadratic, time=TIME)
  found = gradient(objective, "student", NETS)
  assert np.linalg.norm(found - expected) < 0.02 * np.linalg.norm(expected)


def test_the_student_climbs_the_critic():
  check_student(SOURCE)


@pytest.mark.parametrize(
  ("old", "new"),
  [
    ("score(parts.wide(", "-score(parts.wide("),
    ("diffuse(time, x0, diffuse_key)", "diffuse(time, jax.lax.stop_gradient(x0), diffuse_key)"),
    ('network(nets, "teacher"), x_t, t', 'network(nets, "teacher"), x0, t'),
  ],
)
def test_a_wrong_student_fails_the_proof(old, new):
  assert_caught(check_student, mutant(SOURCE, old, new))


def check_critic(source):
  """Hinge: data below 1 pull it up, samples above -1 push it down."""
  rng, expected, n = np.random.default_rng(5), 0.0, 2**13
  big, a, c = (np.asarray(NETS["critic"][name][0], np.float64) for name in ("B", "a", "c"))
  for _, t, weight in zip(*shifted_quadrature(SHIFT, 32), strict=True):
    for law, sign in ((dynamics(), -1), (SAMPLED, 1)):
      x = (1 - t) * law.draw(rng, n) + t * rng.normal(size=(n, DIM))
      d = c + x @ a + np.sum(x @ big * x, 1)
      push = sign * (1 + sign * d > 0)[:, None]
      slopes = [((push * x).T @ x / n).ravel(), np.mean(push * x, 0), push.mean(0)]
      expected = expected + weight * np.concatenate(slopes)
  objective = source.adversarial(linear, looks, quadratic, time=TIME)
  found = gradient(objective, "critic", NETS, x0=batch_of(dynamics(), SAMPLES))
  assert np.linalg.norm(found - expected) < 0.04 * np.linalg.norm(expected)


def test_the_critic_separates_with_a_hinge():
  check_critic(SOURCE)


@pytest.mark.parametrize(
  ("old", "new"),
  [
    ("critic, form, time, r1", 'critic, "softplus", time, r1'),
    ("nets, batch, key)\n    return", "nets, batch.replace(x0=-batch.x0), key)\n    return"),
  ],
)
def test_a_wrong_critic_fails_the_proof(old, new):
  assert_caught(check_critic, mutant(SOURCE, old, new))


def test_where_samples_are_data_and_the_critic_is_undecided_nothing_moves():
  data = batch_of(dynamics(), SAMPLES)
  objective = SOURCE.adversarial(linear, looks, quadratic, time=TIME)
  home = NETS | {"student": matched(dynamics()), "critic": bends(0.0)}
  for role in ("student", "critic"):
    away = np.linalg.norm(gradient(objective, role, NETS, x0=data))
    assert np.linalg.norm(gradient(objective, role, home, x0=data)) < 0.03 * away


# ------------------------------------------------------------------------------------------------
# The generator
# ------------------------------------------------------------------------------------------------


def check_generator(source):
  """Far-away data show the time of every frame; v = 1 shows the jump."""
  data = jnp.full((4096, *SHAPE), 1000.0)
  for chunk in (None, 1):
    generate = source.noised_data(lambda p, x, t, c: p + 0 * x, (1.0, 0.5), chunk)
    x0 = np.asarray(generate(jnp.float32(0), Batch(data), jax.random.key(1)))[:, :, 0, 0]
    t = 1 - np.round(x0 / 500) / 2
    assert set(np.unique(t)) == {0.5, 1.0} and abs(np.mean(t) - 0.75) < 0.02
    assert abs(np.std(x0[t == 1.0]) - 1) < 0.05 and abs(np.std(x0[t == 0.5]) - 0.5) < 0.05
    assert (t[:, 0] == t[:, 2]).all() == (chunk is None)
    moved = np.asarray(generate(jnp.float32(1), Batch(data), jax.random.key(1)))[:, :, 0, 0]
    np.testing.assert_allclose(x0 - moved, t, atol=1e-3)


def test_the_student_jumps_from_noised_data():
  check_generator(SOURCE)


@pytest.mark.parametrize(
  ("old", "new"),
  [
    ("paths.interpolate(y0, parts.noise_like(noise_key, y0), t)", "y0 * 1"),
    ("draw_times(grid, time_key, y0, chunk)", "draw_times(grid, time_key, y0)"),
    ("paths.x0_from_v(x, parts.wide(velocity(params, x, t, batch.cond)), t)", "x"),
  ],
)
def test_a_wrong_generator_fails_the_proof(old, new):
  assert_caught(check_generator, mutant(SOURCE, old, new))


# ------------------------------------------------------------------------------------------------
# All together
# ------------------------------------------------------------------------------------------------


def one_step(params, x, t, cond):
  jump = x.reshape(-1, DIM) @ params["W"].T + params["b"][None]
  return paths.v_from_x0(x, jump.reshape(x.shape), t)


@pytest.mark.parametrize("form", ["hinge", "softplus"])
def test_alternating_training_comes_close_to_the_data(form):
  videos = dynamics()
  start = moved(matched(videos))
  objective = ladd(
    one_step, looks, quadratic, times=(1.0,), form=form, r1=30.0, sigma=0.1, time=paths.Uniform()
  )
  nets = {**NETS, "student": start, "critic": bends(0.0, powers=3)}
  rates = {"student": 0.01, "critic": 0.03}
  end = fit(objective, nets, batch_of(videos, 2**14), steps=1500, rates=rates, b1=0.0)["student"]
  gap = lambda params: wasserstein(
    drawn_by(params).means[0], drawn_by(params).covs[0], videos.means[0], videos.covs[0]
  )
  assert gap(start) > 1.0 and gap(end) < 0.15


@pytest.mark.parametrize(
  ("options", "words"),
  [
    ({"form": "wasserstein"}, "form must be one of softplus, hinge"),
    ({"ratio": 1}, "ratio must be at least 2"),
    ({"r1": -1.0}, "r1 is the weight of a loss"),
    ({"times": (0.5,)}, "times must start at 1"),
  ],
)
def test_impossible_options_are_refused(options, words):
  with pytest.raises(ValueError, match=words):
    ladd(one_step, looks, quadratic, **options)


def test_the_critic_leads_and_the_student_follows():
  objective = ladd(one_step, looks, quadratic, ratio=2)
  assert objective.roles == ("student", "critic") and objective.frozen == ("teacher",)
  assert [objective.due(i) for i in range(2)] == [("critic",), ("student",)]
