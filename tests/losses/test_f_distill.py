"""Each divergence has its weight by quadrature; with reverse KL it is DMD2; covering shows."""

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
  log_density,
  matched,
  moved,
  numpy_log_density,
  one_gaussian,
  one_log_density,
  oracle_direction,
)
from mutation import assert_caught, mutant
from videos import DIM, SHAPE, Videos, batch_of, dynamics, exact, mixture, shifted_quadrature

from vidstep import paths
from vidstep.losses import Batch, f_distill, parts
from vidstep.losses.dmd2 import distribution_matching
from vidstep.losses.gan import adversarial_matching

SOURCE = importlib.import_module("vidstep.losses.f_distill")
SHIFT, SAMPLES = 2.0, 2**17
TIME = paths.Uniform(SHIFT)


def looks(params, x, t, cond):
  return [x, jnp.broadcast_to(t.reshape(-1, 1, 1, 1, 1), (*x.shape[:-1], 1))]


def ratio_critic(params, features):
  x, t = features[0], features[1][:, 0, 0, 0, 0]
  return log_density(params["p"], x, t) - log_density(params["q"], x, t)


def setting(teacher):
  student = moved(matched(dynamics()))
  law = drawn_by(student).params()
  critic = {"p": teacher.params(), "q": law}
  return {"teacher": teacher.params(), "student": student, "fake": law, "critic": critic}


# ------------------------------------------------------------------------------------------------
# The weights
# ------------------------------------------------------------------------------------------------

# D_f(p | q) = E_q f(p / q), as in books
F = {
  "rkl": lambda r: -np.log(r),
  "srkl": lambda r: (r + 1) * np.log(0.5 + 0.5 / r),
  "neyman": lambda r: (1 - r) ** 2 / r,
  "hellinger": lambda r: (1 - np.sqrt(r)) ** 2,
  "js": lambda r: r * np.log(r) - (r + 1) * np.log((r + 1) / 2),
  "jeffreys": lambda r: (r - 1) * np.log(r),
  "kl": lambda r: r * np.log(r),
}
GRID = np.linspace(-12, 12, 6001)


def normal(mean, std):
  return np.exp(-((GRID - mean) ** 2) / (2 * std**2)) / std / np.sqrt(2 * np.pi)


def check_weights(source):
  """On a line: E_q h (s_q - s_p) dx/dtheta is the gradient of the divergence, up to one factor."""
  p = 0.6 * normal(-1.0, 0.9) + 0.4 * normal(1.5, 1.1)
  step = GRID[1] - GRID[0]

  def divergence(f, mean, std):
    q = normal(mean, std)
    return np.sum(q * f(p / q)) * step

  mean, std, tiny = 0.3, 1.3, 1e-4
  q = normal(mean, std)
  slope = lambda density: np.gradient(np.log(density), step)
  moves = np.stack([np.ones_like(GRID), (GRID - mean) / std])  # dx/dmean, dx/dstd
  assert set(source.DIVERGENCES) == set(F)
  for name, f in F.items():
    differences = [
      divergence(f, mean + tiny, std) - divergence(f, mean - tiny, std),
      divergence(f, mean, std + tiny) - divergence(f, mean, std - tiny),
    ]
    h = np.asarray(source.DIVERGENCES[name](jnp.float32(p / q)), np.float64)
    found = np.sum(q * h * (slope(q) - slope(p)) * moves, 1) * step
    factor = found @ differences / (differences @ np.array(differences)) * 2 * tiny
    assert factor > 0
    np.testing.assert_allclose(
      found, factor * np.array(differences) / (2 * tiny), rtol=5e-3, atol=1e-4, err_msg=name
    )


def test_every_weight_is_that_of_its_divergence():
  check_weights(SOURCE)


@pytest.mark.parametrize(
  ("old", "new"),
  [
    ('"rkl": jnp.ones_like', '"rkl": lambda r: r'),
    ('"kl": lambda r: r,', '"kl": jnp.ones_like,'),
    ('"js": lambda r: r / (1 + r)', '"js": lambda r: 1 / (1 + r)'),
    ('"srkl": lambda r: 1 /', '"srkl": lambda r: r /'),
    ('"hellinger": jnp.sqrt', '"hellinger": jnp.square'),
    ('"neyman": lambda r: 1 / r', '"neyman": lambda r: 1 / r**2'),
    ('"jeffreys": lambda r: 1 + r', '"jeffreys": lambda r: 1 + 1 / r'),
  ],
)
def test_a_wrong_weight_fails_the_proof(old, new):
  assert_caught(check_weights, mutant(SOURCE, old, new))


# ------------------------------------------------------------------------------------------------
# The student
# ------------------------------------------------------------------------------------------------


def test_reverse_kl_is_dmd2():
  """Number for number: with the GAN, and without."""
  nets = setting(mixture())
  for gan_weight in (0.0, 0.3):
    options = {"time": TIME, "gan_weight": gan_weight}
    given = (linear, exact, exact, looks, ratio_critic)
    found = gradient(SOURCE.f_matching(*given, divergence="rkl", **options), "student", nets)
    np.testing.assert_allclose(
      found, gradient(adversarial_matching(*given, **options), "student", nets), rtol=1e-5
    )
  other = gradient(distribution_matching(linear, exact, exact, time=TIME), "student", nets)
  plain = SOURCE.f_matching(*given, divergence="rkl", time=TIME, gan_weight=0.0)
  np.testing.assert_allclose(gradient(plain, "student", nets), other, rtol=1e-5)


def off_by_time(params, features):
  """A critic that is wrong by a factor e^2t, which the running mean of the ratio takes away."""
  return ratio_critic(params, features) + 2 * features[1][:, 0, 0, 0, 0]


def weights(teacher, law, h, decay, n=2**13):
  """h of the clipped, normalised ratio of that critic at (x, t), divided by its mean; float64."""
  rng = np.random.default_rng(11)
  clipped = lambda x, t: np.clip(
    np.exp(numpy_log_density(teacher, x, t) - numpy_log_density(law, x, t) + 2 * t), 0.1, 20
  )
  nodes = [
    (t, w, (1 - t) * law.draw(rng, n) + t * rng.normal(size=(n, DIM)))
    for _, t, w in zip(*shifted_quadrature(SHIFT, 160), strict=True)
  ]
  mass, total = np.zeros(10), np.zeros(10)
  for t, w, x in nodes:
    mass[int(10 * t)] += w
    total[int(10 * t)] += w * clipped(x, t).mean()
  mean = decay + (1 - decay) * total / mass
  raw = lambda x, t: h(clipped(x, t) / mean[int(10 * t)])
  size = sum(w * raw(x, t).mean() for t, w, x in nodes)
  return lambda x, t: raw(x, t) / size


def check_direction(source, teacher, divergence, h):
  options = {"time": TIME, "gan_weight": 0.0, "divergence": divergence, "decay": 0.5}
  objective = source.f_matching(linear, exact, exact, looks, off_by_time, **options)
  nets = setting(teacher)
  exact_h = weights(teacher, drawn_by(nets["student"]), h, 0.5)
  expected = oracle_direction(nets["student"], teacher, SHIFT, h=exact_h)
  found = gradient(objective, "student", nets)
  assert np.linalg.norm(found - expected) < 0.05 * np.linalg.norm(expected)


def test_the_student_moves_by_the_weighted_gap():
  check_direction(SOURCE, mixture(), "kl", lambda r: r)


@pytest.mark.parametrize(
  ("old", "new"),
  [
    ("jnp.exp(parts.mean_like(logits, t))", "jnp.exp(-parts.mean_like(logits, t))"),
    ("jnp.clip(jnp.exp(parts.mean_like(logits, t)), *RANGE)", "jnp.exp(logits) * 0 + 1"),
    ("RANGE = (0.1, 20.0)", "RANGE = (0.1, 1.5)"),
    ("ratio / mean[index]", "ratio / jnp.mean(mean)"),
    ("h = h / jnp.mean(h)", "h = h / 2"),
  ],
)
def test_a_wrong_direction_fails_the_proof(old, new):
  assert_caught(check_direction, mutant(SOURCE, old, new), mixture(), "kl", lambda r: r)


def test_the_running_mean_of_the_ratio_is_carried_and_empty_bins_keep_theirs():
  constant = lambda params, features: jnp.full(features[0].shape[0], jnp.log(3.0))
  nets, batch = setting(dynamics()), Batch(jnp.zeros((SAMPLES, *SHAPE)))

  def run(time, aux):
    objective = SOURCE.f_matching(linear, exact, exact, looks, constant, time=time, decay=0.25)
    aux = objective.init_aux() if aux is None else aux
    return objective.loss["student"](nets["student"], nets, aux, batch, jax.random.key(0), 0)[1]

  metrics, aux = run(parts.OneOf((0.55,)), None)
  np.testing.assert_allclose(aux["ratio"], [1.0] * 5 + [2.5] + [1.0] * 4, rtol=1e-5)
  np.testing.assert_allclose(metrics["ratio"], 3.0, rtol=1e-5)
  for _ in range(6):
    metrics, aux = run(TIME, aux)
  np.testing.assert_allclose(aux["ratio"], 3.0, rtol=1e-3)
  np.testing.assert_allclose([metrics["h_min"], metrics["h_max"]], 1.0, rtol=1e-3)


# ------------------------------------------------------------------------------------------------
# All together
# ------------------------------------------------------------------------------------------------


def one_step(params, x, t, cond):
  jump = x.reshape(-1, DIM) @ params["W"].T + params["b"][None]
  return paths.v_from_x0(x, jump.reshape(x.shape), t)


def share_of_the_minor_mode(divergence):
  """A Gaussian student starts inside the larger of two modes, 7 to 3."""
  apart = 1.5 * np.ones(DIM) / np.sqrt(DIM)
  teacher = Videos(
    np.array([0.7, 0.3]), np.stack([apart, -apart]), 0.1 * np.stack([np.eye(DIM)] * 2)
  )
  known = teacher.params()

  def critic(params, features):
    x, t = features[0], features[1][:, 0, 0, 0, 0]
    return log_density(known, x, t) - one_log_density(params, x, t)

  objective = f_distill(
    one_step,
    exact,
    one_gaussian,
    looks,
    critic,
    divergence=divergence,
    decay=0.9,
    gan_weight=0.0,
    fake_weight=0.0,
    time=paths.Uniform(0.3),
    ratio=2,
  )
  start = {"W": jnp.float32(0.35 * np.eye(DIM)), "b": jnp.float32(apart)}
  nets = {"teacher": known, "student": start, "fake": start, "critic": start}
  rates = {"student": 0.01, "fake": 0.03, "critic": 0.03}
  end = fit(objective, nets, batch_of(teacher, 2**14), steps=600, rates=rates, b1=0.0)["student"]
  x = drawn_by(end).draw(np.random.default_rng(0), 20000)
  return np.mean(x @ apart < 0)


def test_reverse_kl_seeks_a_mode_and_forward_kl_covers_both():
  assert share_of_the_minor_mode("rkl") < 0.05
  assert abs(share_of_the_minor_mode("kl") - 0.3) < 0.1


@pytest.mark.parametrize(
  ("options", "words"),
  [
    ({"divergence": "tv"}, "divergence must be one of rkl"),
    ({"decay": 1.0}, "decay of the ratio's running mean"),
    ({"times": (0.5,)}, "times must start at 1"),
    ({"gan_weight": -1.0}, "gan_weight is the weight"),
  ],
)
def test_impossible_options_are_refused(options, words):
  with pytest.raises(ValueError, match=words):
    f_distill(one_step, exact, exact, looks, ratio_critic, **options)
