"""Flow-map distillation is proven against the flow map of one Gaussian, start and end of a step."""

import dataclasses
import functools
import importlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from fit import QUICK, fit
from intervals import VIDEOS, expected_gradient, grown, law, numpy_student, student
from mutation import assert_caught, mutant
from videos import batch_of, displaced, exact, flat, wasserstein, zeros

from experiments.objectives import make_objective
from vidstep import paths
from vidstep.losses import Batch, flow_map, scm

# The package exports the function under the name of its module.
SOURCE = importlib.import_module("vidstep.losses.flow_map")
SHIFT = 2.0
TIME = paths.Uniform(SHIFT)
DATA = batch_of(VIDEOS, 2**16)
NETS = {"teacher": VIDEOS.params()}
KEY = jax.random.key(0)


@functools.cache
def compiled(objective):
  loss = jax.value_and_grad(objective.loss["student"], has_aux=True)
  return jax.jit(loss, compiler_options=QUICK)


def run(objective, params, x0=DATA, nets=NETS, cond=None):
  """Metrics and gradient, flattened."""
  (_, (metrics, _)), grads = compiled(objective)(params, nets, {}, Batch(x0, cond), KEY, 0)
  return metrics, flat(grads)


# ------------------------------------------------------------------------------------------------
# The gradient in closed form
# ------------------------------------------------------------------------------------------------


def residuals(identity):
  """`u` minus the right-hand side of the identity, derivatives by float64 differences."""
  network = functools.partial(numpy_student, displaced())

  def of(x, t, s, x0, eps):
    u = network(x, t, s)
    h = 1e-5 * (t - s)
    if identity == "eulerian":
      v = VIDEOS.velocity(x, t)
      change = network(x + h * v, t + h, s) - network(x - h * v, t - h, s) if h else 0
      return u - v + (t - s) * change / (2 * h or 1)
    v = VIDEOS.velocity(x - (t - s) * u, s)
    return u - v - (t - s) * (network(x, t, s + h) - network(x, t, s - h)) / (2 * h or 1)

  return of


@functools.cache
def expected(identity):
  weigh = lambda error: 1 / (error + 0.1)
  return expected_gradient(
    displaced(), residuals(identity), equal=0.3, zero=0.2, shift=SHIFT, weigh=weigh
  )


def check_gradient(source, identity):
  """The closed form away from the flow map, though normalised; nothing at it, in every sample."""
  options = {"equal": 0.3, "zero": 0.2, "time": TIME, "c": 0.1, "identity": identity}
  objective = source.flow_map(student, exact, **options)
  size = np.linalg.norm(expected(identity))
  metrics, found = run(objective, displaced())
  assert np.linalg.norm(found - expected(identity)) < 0.05 * size
  still, grads = run(objective, zeros())
  assert np.linalg.norm(grads) < 1e-3 * size and still["loss"] < 1e-8 * metrics["loss"]


@pytest.mark.parametrize("identity", ["eulerian", "lagrangian"])
def test_the_gradient_is_that_of_the_closed_form(identity):
  check_gradient(SOURCE, identity)


@pytest.mark.parametrize(
  ("old", "new"),
  [
    ("v - change, change", "v + change, change"),
    ("(None, s - t)", "(None, t - s)"),
    ("nets, end, s, cond", "nets, end, t, cond"),
    ("nets, end, s, cond", "nets, x, s, cond"),
    ("trainable, x, (t, s), None", "trainable, x, (s, t), None"),
  ],
)
def test_a_wrong_objective_fails_the_proof(old, new):
  assert_caught(check_gradient, mutant(SOURCE, old, new), "lagrangian")


@dataclasses.dataclass(frozen=True)
class Late:
  """The larger of two uniform times."""

  def sample(self, key, shape):
    return jnp.sqrt(jax.random.uniform(key, shape))

  def cdf(self, t):
    return t**2


def test_at_s_0_it_is_continuous_consistency_with_the_squared_norm():
  """The adaptive weight 1 / (|h|^2 + c) is what `scm` divides its tangent by with power=2."""
  jump = lambda params, x, t, cond: student(params, x, t, cond, s=0 * t)
  options = {"time": paths.Uniform(), "equal": 0.0, "zero": 1.0, "power": 1.0, "c": 0.1}
  found = run(flow_map(student, exact, **options), displaced())[1]
  wanted = run(scm(jump, exact, warmup=0, power=2, c=0.1, time=Late()), displaced())[1]
  assert np.linalg.norm(found - wanted) < 0.03 * np.linalg.norm(wanted)


def test_without_the_second_half_it_is_another_objective():
  """equal=1 regresses the teacher's velocity only; any network that agrees at s = t is content."""
  wrong = lambda params, x, t, cond, *, s: exact(NETS["teacher"], x, t, cond) + 0 * params
  loss = lambda equal: run(
    flow_map(wrong, exact, equal=equal, zero=0.0, power=0.0), jnp.float32(0), DATA[:512]
  )[0]["loss"]
  assert loss(1.0) < 1e-10 and loss(0.0) > 1e-2


# ------------------------------------------------------------------------------------------------
# Where it ends
# ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("identity", ["eulerian", "lagrangian"])
def test_training_reaches_the_data_in_any_number_of_steps(identity):
  base = lambda x, t, cond: exact(NETS["teacher"], x, t, cond)
  velocity, start = grown(base)
  options = {"identity": identity, "equal": 0.25, "zero": 0.25, "power": 0.5}
  objective = flow_map(velocity, exact, time=paths.Uniform(), **options)
  nets = {"student": start, **NETS}
  end = fit(objective, nets, DATA[: 2**13], steps=1500, rates={"student": 0.03}, batch=256)
  truth = VIDEOS.means[0], VIDEOS.covs[0]
  for times in ((1.0, 0.0), (1.0, 0.6, 0.0), (1.0, 0.75, 0.5, 0.25, 0.0)):
    before, after = (
      wasserstein(*law(lambda x, t, s, p=p: velocity(p, x, t, None, s=s), times), *truth)
      for p in (start, end["student"])
    )
    assert after < 0.08 and after < 0.5 * before, (times, before, after)


# ------------------------------------------------------------------------------------------------
# Details
# ------------------------------------------------------------------------------------------------


def test_guidance_acts_on_the_teacher():
  objective = flow_map(
    lambda params, x, t, cond, *, s: 0 * x + params,
    lambda params, x, t, cond: cond[:, None, None, None, None] + 0 * x,
    guidance=3.0, unconditional=jnp.zeros_like, power=0.0, scale=5.0,
  )  # fmt: skip
  metrics, _ = run(objective, jnp.float32(1.0), DATA[:8], {"teacher": 0.0}, jnp.ones(8))
  assert np.isclose(metrics["loss"], 20)


def test_it_can_be_named_in_a_config():
  section = {"name": "flow_map", "time": "uniform:5", "identity": "lagrangian", "zero": 0.0}
  assert make_objective(section, {}).frozen == ("teacher",)


@pytest.mark.parametrize(
  ("options", "words"),
  [
    ({"identity": "semigroup"}, "identity must be one of eulerian, lagrangian"),
    ({"tangent": "exact", "identity": "lagrangian"}, "tangent must be one of"),
    ({"zero": 0.9}, "equal and zero are shares"),
    ({"guidance": 2.0}, "needs unconditional"),
  ],
)
def test_impossible_options_are_refused(options, words):
  with pytest.raises(ValueError, match=words):
    flow_map(student, exact, **options)


@pytest.mark.parametrize("identity", ["eulerian", "lagrangian"])
def test_differences_ask_for_times_within_the_interval_and_agree_with_the_tangent(identity):
  asked, losses = [], {}

  def watched(params, x, t, cond, *, s):
    jax.debug.callback(lambda *r: asked.append(np.array(r)), t, s)
    return student(params, x, t, cond, s=s)

  for tangent in ("jvp", "semi", "difference"):
    options = {"identity": identity, "tangent": tangent, "equal": 0.0, "power": 0.0}
    losses[tangent] = run(flow_map(watched, exact, **options), displaced(), DATA[:64])[0]["loss"]
    jax.effects_barrier()
  np.testing.assert_allclose(losses["semi"], losses["jvp"], rtol=0.02)
  np.testing.assert_allclose(losses["difference"], losses["jvp"], rtol=0.02)
  t, s = asked[0]
  for later, earlier in asked:
    assert (later <= t).all() and (earlier >= s).all() and (earlier <= later).all()
