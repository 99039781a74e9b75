"""MeanFlow is proven against the flow map of one Gaussian, and its bias on a mixture."""

import functools
import importlib
import inspect

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from fit import QUICK, fit
from intervals import VIDEOS, expected_gradient, grown, law, numpy_student, student
from mutation import assert_caught, mutant
from videos import (
  DIM,
  SHAPE,
  batch_of,
  displaced,
  exact,
  flat,
  mixture,
  near,
  residual,
  velocity_gradient,
  wasserstein,
  zeros,
)

from experiments.objectives import make_objective
from vidstep import paths
from vidstep.losses import Batch, mean_flow
from vidstep.models.cond import Cond
from vidstep.models.dit import VideoDiT
from vidstep.models.velocity import velocity_fn

# The package exports the function under the name of its module.
SOURCE = importlib.import_module("vidstep.losses.mean_flow")
TANGENTS = importlib.import_module("vidstep.losses.tangents")
SHIFT, SAMPLES = 2.0, 2**16
TIME = paths.Uniform(SHIFT)
DATA = batch_of(VIDEOS, SAMPLES)
KEY = jax.random.key(0)


@functools.cache
def compiled(objective):
  loss = jax.value_and_grad(objective.loss["model"], has_aux=True)
  return jax.jit(loss, compiler_options=QUICK)


def run(objective, params, x0=DATA, cond=None, key=KEY):
  """Metrics and gradient, flattened."""
  (_, (metrics, _)), grads = compiled(objective)(params, {}, {}, Batch(x0, cond), key, 0)
  return metrics, flat(grads)


# ------------------------------------------------------------------------------------------------
# The gradient in closed form
# ------------------------------------------------------------------------------------------------


def residuals(direction):
  """`u - v + (t - s) du/dt`, the derivative by a float64 difference along the sample's own v."""

  def of(x, t, s, x0, eps):
    u = numpy_student(displaced(), x, t, s)
    v = eps - x0
    if s == t:
      return u - v
    along = numpy_student(displaced(), x, t, t) if direction == "network" else v
    h = 1e-5 * (t - s)
    ahead, behind = (numpy_student(displaced(), x + e * along, t + e, s) for e in (h, -h))
    return u - v + (t - s) * (ahead - behind) / (2 * h)

  return of


@functools.cache
def expected(direction, power):
  weigh = lambda error: (error + 0.1) ** -power
  return expected_gradient(
    displaced(), residuals(direction), equal=0.3, zero=0.2, shift=SHIFT, weigh=weigh
  )


def check_gradient(source, direction="data", power=0.0):
  """The closed form away from the average velocity, nothing at it (by symmetry, for any power)."""
  options = {"equal": 0.3, "zero": 0.2, "time": TIME, "c": 0.1}
  objective = source.mean_flow(student, direction=direction, power=power, **options)
  size = np.linalg.norm(expected(direction, power))
  found = run(objective, displaced())[1]
  assert np.linalg.norm(found - expected(direction, power)) < 0.05 * size
  assert np.linalg.norm(run(objective, zeros())[1]) < 0.05 * size


@pytest.mark.parametrize(("direction", "power"), [("data", 0.0), ("data", 1.0), ("network", 0.5)])
def test_the_gradient_is_that_of_the_closed_form(direction, power):
  check_gradient(SOURCE, direction, power)


def broken(old, new):
  """The objective with one mistake, in its own file or in the one that makes tangents."""
  if old in inspect.getsource(SOURCE):
    return mutant(SOURCE, old, new)
  copy = mutant(SOURCE, "", "")
  copy.tangents = mutant(TANGENTS, old, new)
  return copy


@pytest.mark.parametrize(
  ("old", "new"),
  [
    ("v - change, change", "v + change, change"),
    ("trainable, x, (t, s)", "trainable, x, (s, t)"),
    ("(t - s, None)", "(t - s, s - t)"),
    ("paths.expand(t - s, x) * along", "along"),
    ("jax.lax.stop_gradient(target)", "target"),
    ("jax.lax.stop_gradient((error + c) ** -power)", "(error + c) ** -power"),
    ("jnp.where(kind < self.equal, t, s)", "s"),
    ("[along[i] for i in some]", "[0 * along[i] for i in some]"),
  ],
)
def test_a_wrong_objective_fails_the_proof(old, new):
  assert_caught(check_gradient, broken(old, new), "data", 1.0 if "error + c" in old else 0.0)


def test_with_s_equal_to_t_it_is_flow_matching():
  """The gradient is that of velocity regression at the larger of two times: density 2 t."""
  law = VIDEOS.params()
  instant = near(lambda x, t, cond: exact(law, x, t, cond))
  network = lambda params, x, t, cond, *, s: instant(params, x, s, cond)
  objective = mean_flow(network, equal=1.0, power=0.0, time=paths.Uniform())
  wanted = velocity_gradient(VIDEOS, displaced(), 1.0, lambda t: 2 * t)
  found = run(objective, displaced())[1]
  assert np.linalg.norm(found - wanted) < 0.03 * np.linalg.norm(wanted)


# ------------------------------------------------------------------------------------------------
# Bias and noise
# ------------------------------------------------------------------------------------------------


def test_the_adaptive_weight_moves_the_optimum_where_modes_are_several():
  """At the exact velocity of a mixture: no gradient without the weight, a clear one with it."""
  both = mixture()
  x0, data = batch_of(both, SAMPLES), both.params()
  instant = near(lambda x, t, cond: exact(data, x, t, cond))
  network = lambda params, x, t, cond, *, s: instant(params, x, t, cond)
  pull = {}
  for power in (0.0, 1.0):
    objective = mean_flow(network, equal=1.0, power=power, time=TIME)
    still, moved = (np.linalg.norm(run(objective, p, x0)[1]) for p in (zeros(), displaced()))
    pull[power] = still / moved
  assert pull[0.0] < 0.02 and pull[1.0] > 10 * pull[0.0], pull


def test_the_noise_of_the_residual_goes_through_the_jacobian_of_the_map():
  """Along eps - x0 it is multiplied by dX/dx: a Gaussian contracts, so that is the quieter one."""
  noise = {}
  for direction in ("data", "network"):
    objective = mean_flow(student, direction=direction, equal=0.0, power=0.0, time=TIME)
    each = [run(objective, zeros(), DATA[:64], key=jax.random.key(i))[1] for i in range(40)]
    noise[direction] = np.sqrt(np.mean(np.square(each)))
  assert noise["data"] < 0.95 * noise["network"], noise


@pytest.mark.parametrize(("mix", "right"), [(0.5, True), (0.5, False), (0.0, True)])
def test_guidance_is_learned_from_dropped_conditions(mix, right):
  """Two kinds of video; the fixed point is v_u + w (v_c - v_u) given the kind, v_u without."""
  both, w, n = mixture(), 3.0, 2**15
  data = both.params()
  pick = lambda m: jax.tree.map(lambda a: a[m : m + 1], data)
  rng = np.random.default_rng(0)
  kind = rng.choice(2, size=n, p=both.weights)
  noise = np.einsum("nij,nj->ni", np.linalg.cholesky(both.covs)[kind], rng.normal(size=(n, DIM)))
  x0 = jnp.float32(both.means[kind] + noise).reshape(-1, *SHAPE)
  cond = {"kind": jnp.int32(kind), "known": jnp.ones(n, bool)}

  def network(params, x, t, cond, *, s):
    first, known = (cond[name].reshape(-1, 1, 1, 1, 1) for name in ("kind", "known"))
    given = jnp.where(first == 0, exact(pick(0), x, t, None), exact(pick(1), x, t, None))
    alone = exact(data, x, t, None)
    guided = alone + (w if right else 1.0) * (given - alone)
    probe = jnp.where(first == 0, residual(params["with"], x, t), 0)  # over kinds, v_c - v_u is 0
    return jnp.where(known, guided + probe, alone + residual(params["without"], x, t))

  empty = lambda cond: cond | {"known": jnp.zeros_like(cond["known"])}
  options = {"guidance": w, "mix": mix, "drop": 0.3, "unconditional": empty, "equal": 1.0}
  objective = mean_flow(network, power=0.0, time=paths.LogNormal(1.5, 0.5), **options)
  still, moved = (
    np.linalg.norm(run(objective, {"with": p, "without": p}, x0, cond)[1])
    for p in (zeros(), displaced())
  )
  assert (still < 0.05 * moved) == right, still / moved


# ------------------------------------------------------------------------------------------------
# Where it ends
# ------------------------------------------------------------------------------------------------


def test_training_from_data_reaches_them_in_one_step_and_in_two():
  velocity, start = grown(lambda x, t, cond: 0 * x)
  objective = mean_flow(velocity, direction="network", equal=0.5, power=0.0, time=paths.Uniform())
  end = fit(
    objective, {"model": start}, DATA[: 2**14], steps=1500, rates={"model": 0.02}, batch=512
  )
  for times in ((1.0, 0.0), (1.0, 0.5, 0.0)):
    before, after = (
      wasserstein(*law(lambda x, t, s, p=p: velocity(p, x, t, None, s=s), times), *TRUTH)
      for p in (start, end["model"])
    )
    assert after < 0.1 < 1.0 < before, (times, before, after)


TRUTH = VIDEOS.means[0], VIDEOS.covs[0]


# ------------------------------------------------------------------------------------------------
# Details
# ------------------------------------------------------------------------------------------------


def test_pairs_are_ordered_and_have_their_shares():
  t, s = SOURCE.Pairs(TIME, 0.5, 0.25).sample(KEY, jnp.zeros((2**14, 3)), chunk=2)
  t, s = np.asarray(t), np.asarray(s)
  assert t.shape == s.shape == (2**14, 3) and (s <= t).all() and (t[:, 0] == t[:, 1]).all()
  equal, zero = (s == t).all(1), (s == 0).all(1)
  assert abs(equal.mean() - 0.5) < 0.02 and abs(zero.mean() - 0.25) < 0.02
  assert ((s < t).all(1) | equal).all()
  u = np.linspace(0.1, 0.9, 5)
  found = np.searchsorted(np.sort(t[:, 0]), u) / len(t)
  np.testing.assert_allclose(found, SOURCE.Pairs(TIME, 0, 0).cdf(u), atol=0.02)


def test_a_network_of_one_time_is_refused_when_traced():
  model = VideoDiT(
    dim=8, heads=2, depth=1, ffn_dim=8, patch=(1, 1, 1), in_channels=2, out_channels=2
  )
  objective = mean_flow(velocity_fn(model))
  with pytest.raises(ValueError, match="second_time=True"):
    run(objective, {}, DATA[:2], Cond())


def test_it_can_be_named_in_a_config():
  section = {"name": "mean_flow", "time": "logitnormal:-0.4,1", "guidance": 2.0, "drop": 0.1}
  assert make_objective(section, {}).roles == ("model",)


@pytest.mark.parametrize(
  ("options", "words"),
  [
    ({"direction": "teacher"}, "direction must be one of data, network"),
    ({"tangent": "exact"}, "tangent must be one of jvp, semi, difference"),
    ({"equal": 0.8, "zero": 0.3}, "equal and zero are shares"),
    ({"drop": 1.0}, "drop and mix are shares"),
    ({"drop": 0.1}, "need unconditional"),
    ({"guidance": 2.0, "unconditional": lambda cond: cond}, "needs drop > 0"),
    ({"power": -1.0}, "power must not be negative"),
    ({"c": 0.0}, "c must be positive"),
  ],
)
def test_impossible_options_are_refused(options, words):
  with pytest.raises(ValueError, match=words):
    mean_flow(student, **options)
