"""The critic learns a log ratio, the student descends it, and real data mend a wrong teacher."""

import importlib

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
from videos import (
  DIM,
  SHAPE,
  batch_of,
  displaced,
  dynamics,
  exact,
  mixture,
  near,
  shifted_quadrature,
  velocity_gradient,
  wasserstein,
)

from vidstep import paths
from vidstep.losses import dmd2_gan

SOURCE = importlib.import_module("vidstep.losses.gan")
SHIFT, SAMPLES = 2.0, 2**17
TIME = paths.Uniform(SHIFT)
sigmoid = lambda d: 1 / (1 + np.exp(-d))


def looks(params, x, t, cond):
  """Features of a network: what it sees, and when."""
  return [x, jnp.broadcast_to(t.reshape(-1, 1, 1, 1, 1), (*x.shape[:-1], 1))]


def ratio_critic(params, features):
  """The log ratio of two mixtures."""
  x, t = features[0], features[1][:, 0, 0, 0, 0]
  return log_density(params["p"], x, t) - log_density(params["q"], x, t)


def setting(teacher):
  student = moved(matched(dynamics()))
  law = drawn_by(student).params()
  critic = {"p": teacher.params(), "q": law}
  return {"teacher": teacher.params(), "student": student, "fake": law, "critic": critic}


# ------------------------------------------------------------------------------------------------
# The student
# ------------------------------------------------------------------------------------------------


def check_student(source, teacher):
  """Distribution matching, and downhill on softplus(-D) through x_t."""
  objective = source.adversarial_matching(
    linear, exact, exact, looks, ratio_critic, gan_weight=0.5, time=TIME
  )
  nets = setting(teacher)
  law = drawn_by(nets["student"])

  def push(x, t, goal, own):
    d = numpy_log_density(teacher, x, t) - numpy_log_density(law, x, t)
    score_gap = (1 - t) * (goal - own) / t**2
    return -0.5 * (1 - t) * sigmoid(-d)[:, None] * score_gap

  expected = oracle_direction(nets["student"], teacher, SHIFT, push=push)
  found = gradient(objective, "student", nets)
  assert np.linalg.norm(found - expected) < 0.05 * np.linalg.norm(expected)


@pytest.mark.parametrize("teacher", [dynamics(), mixture()], ids=["gaussian", "mixture"])
def test_the_student_descends_the_score_gap_and_the_critic(teacher):
  check_student(SOURCE, teacher)


@pytest.mark.parametrize(
  ("old", "new"),
  [
    ("jnp.mean(jax.nn.softplus(-logits))", "jnp.mean(jax.nn.softplus(logits))"),
    ("jnp.mean(jax.nn.softplus(-logits))", "jnp.mean(-jax.nn.softplus(logits))"),
    ('(network(nets, "fake"), x_t, t, batch.cond)', '(network(nets, "fake"), held, t, batch.cond)'),
    ('(network(nets, "fake"), x_t, t, batch.cond)', '(network(nets, "fake"), x0, t, batch.cond)'),
    ("scale * pull(x0, direction) + ", "scale * pull(x0, -direction) + "),
    ("diffuse(time, x0, diffuse_key)", "diffuse(time, jax.lax.stop_gradient(x0), diffuse_key)"),
  ],
)
def test_a_wrong_student_fails_the_proof(old, new):
  assert_caught(check_student, mutant(SOURCE, old, new), dynamics())


# ------------------------------------------------------------------------------------------------
# The critic
# ------------------------------------------------------------------------------------------------


def near_ratio(params, features):
  """The exact log ratio, plus `c + t a x + x B x`, which probes the quadratics around it."""
  x, t = features[0].reshape(-1, DIM), features[1][:, 0, 0, 0, 0]
  known = ratio_critic({"p": dynamics().params(), "q": SAMPLED.params()}, features)
  bent = jnp.einsum("ni,ij,nj->n", x, params["B"], x)
  return known + params["c"] + t * (x @ params["a"]) + bent


SAMPLED = drawn_by(moved(matched(dynamics())))


def bends(size):
  rng = np.random.default_rng(3)
  draw = lambda *shape: jnp.float32(size * rng.normal(size=shape))
  return {"B": 0.2 * draw(DIM, DIM), "a": draw(DIM), "c": draw()}


def oracle_critic(params, n=2**13):
  """`E_q s(D) phi - E_p s(-D) phi`, phi = dD/dparams; Monte Carlo in float64."""
  rng = np.random.default_rng(5)
  big, a, c = (np.asarray(params[name], np.float64) for name in ("B", "a", "c"))
  total = 0.0
  for _, t, weight in zip(*shifted_quadrature(SHIFT, 32), strict=True):
    for law, sign in ((dynamics(), -1), (SAMPLED, 1)):
      x = (1 - t) * law.draw(rng, n) + t * rng.normal(size=(n, DIM))
      d = numpy_log_density(dynamics(), x, t) - numpy_log_density(SAMPLED, x, t)
      d += c + t * x @ a + np.sum(x @ big * x, 1)
      push = sign * sigmoid(sign * d)[:, None]
      square = (push * x).T @ x / n
      slope = np.concatenate([square.ravel(), np.mean(push * t * x, 0), push.mean(0)])
      total = total + weight * slope
  return total


def check_critic(source):
  objective = source.adversarial_matching(linear, exact, exact, looks, near_ratio, time=TIME)
  nets = setting(dynamics())
  data = batch_of(dynamics(), SAMPLES)
  away = gradient(objective, "critic", nets | {"critic": bends(0.5)}, x0=data)
  expected = oracle_critic(bends(0.5))
  assert np.linalg.norm(away - expected) < 0.04 * np.linalg.norm(expected)
  home = gradient(objective, "critic", nets | {"critic": bends(0.0)}, x0=data)
  assert np.linalg.norm(home) < 0.03 * np.linalg.norm(away)


def test_the_critic_ends_at_the_log_ratio_of_noised_data_to_noised_samples():
  check_critic(SOURCE)


@pytest.mark.parametrize(
  ("old", "new"),
  [
    ("real_loss(real) + generated_loss(generated)", "real_loss(generated) + generated_loss(real)"),
    ("judge(y_t), judge(x_t)", "judge(y_t), judge(x0)"),
    ("judge(y_t), judge(x_t)", "judge(y0), judge(x_t)"),
    ("paths.interpolate(y0, parts.noise_like(real_key, y0), t)", "diffuse(time, y0, real_key)[0]"),
    ("lambda d: jax.nn.softplus(-d), jax.nn.softplus,", "lambda d: -d, lambda d: d,"),
  ],
)
def test_a_wrong_critic_fails_the_proof(old, new):
  assert_caught(check_critic, mutant(SOURCE, old, new))


def test_the_forms_are_those_of_the_papers():
  d = np.linspace(-3, 3, 13)
  logs = np.log1p(np.exp(-d)), np.log1p(np.exp(d)), np.log1p(np.exp(-d))
  hinges = np.maximum(1 - d, 0), np.maximum(1 + d, 0), -d
  for name, expected in (("softplus", logs), ("hinge", hinges)):
    for function, values in zip(SOURCE.FORMS[name], expected, strict=True):
      np.testing.assert_allclose(function(jnp.float32(d)), values, rtol=1e-5, atol=1e-6)


def check_r1(source):
  """For a linear critic a x the step costs exactly sigma^2 |a|^2."""
  a = jnp.linspace(0.2, 1.2, DIM)
  tilted = lambda params, features: features[0].reshape(-1, DIM) @ params
  nets = setting(dynamics()) | {"critic": a}
  value = {}
  for r1 in (0.0, 3.0):
    objective = source.adversarial_matching(
      linear, exact, exact, looks, tilted, time=TIME, r1=r1, sigma=0.1
    )
    value[r1] = gradient(objective, "critic", nets, x0=batch_of(dynamics(), SAMPLES))
  # d/da of r1 sigma^2 |a|^2; the two runs share every other draw.
  expected = 3.0 * 0.1**2 * 2 * np.asarray(a, np.float64)
  np.testing.assert_allclose(value[3.0] - value[0.0], expected, rtol=0.05)


def test_approximate_r1_has_its_closed_form_on_a_linear_critic():
  check_r1(SOURCE)


@pytest.mark.parametrize(
  ("old", "new"),
  [
    ("judge(x + sigma * ", "judge(x0 + sigma * "),
    ("x + sigma * parts", "x + parts"),
    ("- logits) ** 2", "- jax.lax.stop_gradient(logits)) ** 2"),
    ("value + r1 * roughness", "value - r1 * roughness"),
  ],
)
def test_a_wrong_r1_fails_the_proof(old, new):
  broken = mutant(SOURCE, old, new)
  broken.x0 = jnp.zeros(SHAPE)[None]
  assert_caught(check_r1, broken)


# ------------------------------------------------------------------------------------------------
# The fake score, which carries the features
# ------------------------------------------------------------------------------------------------


def check_fake(source):
  """Denoising of the samples, and the critic's loss in what the critic sees."""
  law = SAMPLED.params()
  fake = near(lambda x, t, cond: exact(law, x, t, cond))
  gained = lambda params, x, t, cond: [params["gain"] * x]
  tilt = np.linspace(-0.6, 1.0, DIM)
  tilted = lambda params, features: features[0].reshape(-1, DIM) @ params
  nets = setting(dynamics()) | {"critic": jnp.float32(tilt)}
  nets["fake"] = displaced() | {"gain": jnp.float32(1.2)}
  data = batch_of(dynamics(), SAMPLES)

  rng, slope = np.random.default_rng(9), 0.0
  for _, t, weight in zip(*shifted_quadrature(SHIFT, 32), strict=True):
    for kind, sign in ((dynamics(), -1), (SAMPLED, 1)):
      x = (1 - t) * kind.draw(rng, 2**14) + t * rng.normal(size=(2**14, DIM))
      slope += weight * np.mean(sign * sigmoid(sign * 1.2 * x @ tilt) * (x @ tilt))
  denoising = velocity_gradient(SAMPLED, displaced(), SHIFT)

  for fake_weight in (0.0, 0.7):
    objective = source.adversarial_matching(
      linear, exact, fake, gained, tilted, fake_weight=fake_weight, time=TIME
    )
    found = gradient(objective, "fake", nets, x0=data)  # in the order A, b, gain
    assert np.linalg.norm(found[:-1] - denoising) < 0.03 * np.linalg.norm(denoising)
    np.testing.assert_allclose(found[-1], fake_weight * slope, rtol=0.05, atol=1e-6)


def test_the_fake_learns_the_score_and_the_features():
  check_fake(SOURCE)


@pytest.mark.parametrize(
  ("old", "new"),
  [
    ("value += fake_weight * separate", "value -= fake_weight * separate"),
    ("separate(trainable, head, nets", 'separate(network(nets, "fake"), head, nets'),
    ("regress(trainable, nets", 'regress(network(nets, "fake"), nets'),
  ],
)
def test_a_wrong_fake_fails_the_proof(old, new):
  assert_caught(check_fake, mutant(SOURCE, old, new))


# ------------------------------------------------------------------------------------------------
# All together
# ------------------------------------------------------------------------------------------------


def one_step(params, x, t, cond):
  jump = x.reshape(-1, DIM) @ params["W"].T + params["b"][None]
  return paths.v_from_x0(x, jump.reshape(x.shape), t)


def normal_critic(params, features):
  """The log ratio of two Gaussians, both learnt."""
  x, t = features[0], features[1][:, 0, 0, 0, 0]
  return one_log_density(params["p"], x, t) - one_log_density(params["q"], x, t)


def test_real_data_mend_a_wrong_teacher():
  """The teacher's score is that of other videos: only the critic knows the data."""
  videos, wrong = dynamics(), drawn_by(moved(matched(dynamics()), seed=4, size=0.15))
  start = moved(matched(videos))
  nets = {
    "teacher": wrong.params(),
    "student": start,
    "fake": matched(videos),
    "critic": {"p": start, "q": start},
  }
  objective = dmd2_gan(
    one_step,
    exact,
    one_gaussian,
    looks,
    normal_critic,
    times=(1.0,),
    gan_weight=10.0,
    fake_weight=0.0,
    time=paths.Uniform(3.0),
    ratio=2,
  )
  rates = {"student": 0.01, "fake": 0.02, "critic": 0.02}
  data = batch_of(videos, 2**14)
  end = drawn_by(fit(objective, nets, data, steps=1200, rates=rates, b1=0.0)["student"])
  gap = lambda law, to: wasserstein(law.means[0], law.covs[0], to.means[0], to.covs[0])
  assert gap(drawn_by(start), videos) > 1.0 and gap(wrong, videos) > 0.4
  assert gap(end, videos) < 0.15


def test_fake_and_critic_lead_and_the_student_follows():
  objective = dmd2_gan(one_step, exact, exact, looks, ratio_critic, ratio=3)
  assert [objective.due(i) for i in range(3)] == [
    ("fake", "critic"),
    ("fake", "critic"),
    ("student",),
  ]
  assert objective.roles == ("student", "fake", "critic") and objective.frozen == ("teacher",)


@pytest.mark.parametrize(
  ("options", "words"),
  [
    ({"gan_weight": -1.0}, "gan_weight is the weight of a loss"),
    ({"fake_weight": -1.0}, "fake_weight is the weight of a loss"),
    ({"r1": -1.0}, "r1 is the weight of a loss"),
    ({"sigma": 0.0}, "sigma, the step of the approximate R1"),
    ({"ratio": 1}, "ratio must be at least 2"),
    ({"guidance": 3.0}, "needs unconditional"),
    ({"times": (0.5,)}, "times must start at 1"),
  ],
)
def test_impossible_options_are_refused(options, words):
  with pytest.raises(ValueError, match=words):
    dmd2_gan(one_step, exact, exact, looks, ratio_critic, **options)
