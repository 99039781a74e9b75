"""Continuous-time consistency is proven against the flow it distils, in both of its forms."""

import dataclasses
import functools
import importlib
import inspect

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from fit import QUICK, fit
from mutation import assert_caught, mutant
from videos import (
  DIM,
  SHAPE,
  at_time,
  average_velocity,
  batch_of,
  displaced,
  dynamics,
  exact,
  flat,
  frame_velocity,
  mixture,
  near,
  numpy_average,
  residual,
  shifted_quadrature,
  wasserstein,
  zeros,
)

from experiments.objectives import make_objective
from vidstep import paths, samplers
from vidstep.attention import attention
from vidstep.losses import Batch, dcm, scm, sct

# The package exports the function under the name of its module.
SOURCE = importlib.import_module("vidstep.losses.scm")
TANGENTS = importlib.import_module("vidstep.losses.tangents")
SHIFT, SAMPLES = 2.0, 2**16
TIME = paths.Uniform(SHIFT)
VIDEOS = dynamics()
JUMP = average_velocity(VIDEOS)  # s = 0: the consistency function, as a velocity
NETS = {"teacher": VIDEOS.params()}
STUDENT = near(JUMP)
DATA = batch_of(VIDEOS, SAMPLES)
KEY = jax.random.key(0)


@functools.cache
def compiled(objective):
  (role,) = objective.roles
  loss = jax.value_and_grad(objective.loss[role], has_aux=True)
  return jax.jit(loss, compiler_options=QUICK)


def run(objective, params, x0=DATA, step=10**6, nets=NETS, cond=None):
  """Metrics and gradient, flattened."""
  (_, (metrics, _)), grads = compiled(objective)(params, nets, {}, Batch(x0, cond), KEY, step)
  return metrics, flat(grads)


# ------------------------------------------------------------------------------------------------
# The gradient in closed form
# ------------------------------------------------------------------------------------------------


def oracle_gradient(params, path, *, r=1.0, divide=lambda size: 1.0, data=False, n=2048):
  """`-2/D E t^k (g / n(|g|)) (x_t, 1)'` by Monte Carlo, all derivatives by float64 differences.

  Trig: the network is what the TrigFlow wrapper makes of it and x lives on the circle; at r = 1 the
  tangent is taken from the definition, cos(tau) df/dtau.
  """
  rng = np.random.default_rng(7)
  grad_a, grad_b = np.zeros_like(params["A"], np.float64), np.zeros_like(params["b"], np.float64)

  def student(x, t):
    a, b = at_time(params, t)
    return numpy_average(VIDEOS, x, t, 0.0) + x @ a.T + b

  def trig(velocity, x, tau):
    z = np.cos(tau) + np.sin(tau)
    t = np.sin(tau) / z
    return (np.cos(tau) - np.sin(tau)) * x / z + velocity(x / z, t) / z

  for _, t, w in zip(*shifted_quadrature(SHIFT, 64), strict=True):
    x0, eps = VIDEOS.draw(rng, n), rng.normal(size=(n, DIM))
    x, gain, h = (1 - t) * x0 + t * eps, 1.0, 1e-5 * t
    v = eps - x0 if data else VIDEOS.velocity(x, t)
    if path == "rf":
      change = (student(x + h * v, t + h) - student(x - h * v, t - h)) / (2 * h)
      g = v - student(x, t) - r * t * change
    else:
      tau, z = np.arctan2(t, 1 - t), 1 / np.hypot(t, 1 - t)
      cos, sin, y, gain = np.cos(tau), np.sin(tau), z * x, 1 / z
      u = cos * eps - sin * x0 if data else trig(VIDEOS.velocity, y, tau)
      ahead, behind = (trig(student, y + e * u, tau + e) for e in (h, -h))
      g = -(cos**2) * (trig(student, y, tau) - u)
      g -= r * cos * sin * (y + (ahead - behind) / (2 * h))
      f = lambda e, F: np.cos(tau + e) * (y + e * u) - np.sin(tau + e) * F  # noqa: B023
      definition = cos * (f(h, ahead) - f(-h, behind)) / (2 * h)
      assert r < 1 or np.abs(g - definition).max() < 1e-6
    g = g / divide(np.sqrt(np.mean(g**2, 1, keepdims=True)))
    for k in range(len(grad_a)):
      grad_a[k] -= w * 2 / DIM * gain * t**k * g.T @ x / n
      grad_b[k] -= w * 2 / DIM * gain * t**k * g.mean(0)
  return np.concatenate([grad_a.ravel(), grad_b.ravel()])


DIVIDE = {
  ("none", 1): lambda size: 1.0,
  ("rms", 1): lambda size: size + 0.3,
  ("rms", 2): lambda size: size**2 + 0.3,
  ("l2", 1): lambda size: size + 0.3 / np.sqrt(DIM),
  ("l2", 2): lambda size: size**2 + 0.3 / DIM,
}


@functools.cache
def expected_gradient(path, norm, power, r, data):
  divide = DIVIDE[norm, power]
  return oracle_gradient(displaced(), path, r=r, divide=divide, data=data)


def check_gradient(source, path, norm="rms", power=1, r=1.0, data=False):
  """The closed form away from the consistency function; nothing there, in every sample."""
  options = {"path": path, "norm": norm, "power": power, "c": 0.3, "warmup": 100, "time": TIME}
  objective = source.sct(STUDENT, **options) if data else source.scm(STUDENT, exact, **options)
  expected = expected_gradient(path, norm, power, r, data)
  size = np.linalg.norm(expected)
  metrics, found = run(objective, displaced(), step=round(100 * r))
  assert np.linalg.norm(found - expected) < 0.04 * size
  if r == 1:
    still, grads = run(objective, zeros())
    assert np.linalg.norm(grads) < (0.05 if data else 1e-4) * size
    assert data or still["tangent_norm"] < 1e-5 * metrics["tangent_norm"]


@pytest.mark.parametrize(
  ("path", "norm", "power", "r", "data"),
  [
    ("rf", "none", 1, 1.0, False),
    ("rf", "rms", 1, 0.5, False),
    ("trig", "rms", 2, 1.0, False),
    ("trig", "rms", 1, 1.0, True),
  ],
)
def test_the_gradient_is_that_of_the_closed_form(path, norm, power, r, data):
  check_gradient(SOURCE, path, norm, power, r, data)


def broken(old, new):
  """The objective with one mistake, in its own file or in the one that makes tangents."""
  if old in inspect.getsource(SOURCE):
    return mutant(SOURCE, old, new)
  copy = mutant(SOURCE, "", "")
  copy.tangents = mutant(TANGENTS, old, new)
  return copy


@pytest.mark.parametrize(
  ("path", "old", "new"),
  [
    ("rf", "value - r * change", "value + r * change"),
    ("rf", "value) - goal", "value) + goal"),
    ("rf", "jax.lax.stop_gradient(value)", "value"),
    ("rf", "jax.lax.stop_gradient(g)", "g"),
    ("rf", "paths.expand(t, x) * v, (t,)", "v, (t,)"),
    ("rf", "[along[i] for i in some]", "[along[i] * float(i == 0) for i in some]"),
    ("trig", "cos * sin * v", "v"),
    ("trig", "cos * sin * x + change", "change"),
  ],
)
def test_a_wrong_objective_fails_the_proof(path, old, new):
  assert_caught(check_gradient, broken(old, new), path)


def test_norms_are_those_of_the_equations():
  rng = np.random.default_rng(0)
  g = rng.normal(size=(4, 5, 2, 2, 1))
  for shape, axes in (((4,), (1, 2, 3, 4)), ((4, 5), (2, 3, 4))):
    for norm, power in DIVIDE:
      rms = np.sqrt(np.mean(g**2, axes, keepdims=True))
      count = np.prod([g.shape[axis] for axis in axes])
      c = 0.3 / count ** (power / 2) if norm == "l2" else 0.3
      expected = g if norm == "none" else g / (rms**power + c)
      found, size = TANGENTS.normalize(
        jnp.float32(g), jnp.zeros(shape), norm=norm, power=power, c=0.3
      )
      np.testing.assert_allclose(found, expected, rtol=1e-5)
      np.testing.assert_allclose(size, rms.reshape(shape), rtol=1e-5)


# ------------------------------------------------------------------------------------------------
# Tangents
# ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("tangent", ["semi", "difference"])
def test_differences_tend_to_the_exact_tangent(tangent):
  rng, student, params = np.random.default_rng(0), STUDENT, displaced()
  x, dx = (jnp.float32(rng.normal(size=(64, *SHAPE))) for _ in range(2))
  t = jnp.float32(rng.uniform(size=64))
  fn = lambda params, x, t: student(params, x, t, None)
  along = functools.partial(TANGENTS.derivative, fn, params, x, (t,), dx, (t,))
  value, exact_change = jax.jit(along, compiler_options=QUICK)()
  quotient = jax.jit(functools.partial(along, tangent=tangent), compiler_options=QUICK)
  gaps = []
  for delta in (1e-1, 1e-2, 1e-3):
    same, change = quotient(delta=delta)
    np.testing.assert_allclose(same, value, atol=1e-5)
    gaps.append(np.linalg.norm(change - exact_change) / np.linalg.norm(exact_change))
  assert gaps[0] < 0.2 and gaps[1] < 0.15 * gaps[0] and gaps[2] < 2e-3


def test_the_gradient_needs_one_forward_and_one_backward():
  """Attention runs once for value and tangent, once backwards; differences cost a forward more."""
  calls = []

  def student(params, x, t, cond):
    calls.append(t)
    h = jnp.concatenate([x, t[:, None, None, None, None] + 0 * x], -1).reshape(-1, 3, 1, 4)
    h = jnp.einsum("bnhd,de->bnhe", h, params)
    return attention(h, h, h).reshape(*x.shape[:-1], 4)[..., :2]

  weights, batch = jnp.eye(4), Batch(DATA[:2])
  for tangent, forwards in (("jvp", 1), ("semi", 2), ("difference", 2)):
    loss = scm(student, exact, tangent=tangent).loss["student"]
    step = jax.value_and_grad(lambda p, loss=loss: loss(p, NETS, {}, batch, KEY, 0)[0])
    calls.clear()
    program = str(jax.make_jaxpr(step)(weights))
    assert len(calls) == forwards
    kernels = [program.count(f"attention_{name}[") for name in ("forward_tangent", "backward")]
    assert kernels == [tangent != "difference", 1]
  assert np.isfinite(jax.jit(step, compiler_options=QUICK)(weights)[1]).all()


def test_the_two_forms_are_proportional_in_every_sample():
  """g = cos(tau) b^2 h and dF = b dv: what a sample's own shift of the velocity is told."""
  n, gradients = 512, {}
  params = displaced()
  shifted = lambda shift, x, t, cond: STUDENT(params, x, t, cond) + shift

  def times(t):
    seen.append(t)

  for path in ("rf", "trig"):
    seen = []
    objective = scm(
      lambda shift, x, t, cond: (jax.debug.callback(times, t), shifted(shift, x, t, cond))[1],
      exact, path=path, norm="none", time=TIME, warmup=0,
    )  # fmt: skip
    gradients[path] = run(objective, jnp.zeros((n, *SHAPE)), DATA[:n])[1].reshape(n, DIM)
    jax.effects_barrier()
  t = np.asarray(seen[0], np.float64)
  ratio = (1 - t) / np.hypot(t, 1 - t) * (t**2 + (1 - t) ** 2) ** 1.5
  size = np.abs(gradients["rf"]).max()
  np.testing.assert_allclose(gradients["trig"], ratio[:, None] * gradients["rf"], atol=1e-4 * size)


@dataclasses.dataclass(frozen=True)
class Late:
  """Times of density 2 t: what a discrete loss, whose gradient has a factor t, amounts to."""

  def sample(self, key, shape):
    return jnp.sqrt(jax.random.uniform(key, shape))

  def cdf(self, t):
    return t**2


def test_discrete_consistency_tends_to_it():
  """`dcm` moves f = x - t F over 1 / steps: its gradient is 1 / steps times E t h dF."""
  continuous = scm(STUDENT, exact, norm="none", warmup=0, time=Late())
  limit = run(continuous, displaced())[1] / 2
  gaps = []
  for steps in (16, 128):
    found = steps * run(dcm(STUDENT, exact, steps=steps, shift=1.0), displaced())[1]
    gaps.append(np.linalg.norm(found - limit) / np.linalg.norm(limit))
  assert gaps[0] > 2 * gaps[1] and gaps[1] < 0.04, gaps


# ------------------------------------------------------------------------------------------------
# Where it ends
# ------------------------------------------------------------------------------------------------


def law_of(velocity, t=1.0):
  """Mean and covariance of the jump from noise at time t, for an affine velocity."""
  corners = jnp.float32(np.concatenate([np.zeros((1, DIM)), np.eye(DIM)])).reshape(-1, *SHAPE)
  ends = flat(corners - t * velocity(corners, jnp.full(DIM + 1, t))).reshape(-1, DIM)
  slope = (ends[1:] - ends[0]).T
  return ends[0], slope @ slope.T


def distance(velocity):
  return wasserstein(*law_of(velocity), VIDEOS.means[0], VIDEOS.covs[0])


@pytest.mark.parametrize("path", ["rf", "trig"])
def test_training_from_the_teacher_reaches_the_data_in_one_step(path):
  powers = 8

  def student(params, x, t, cond):
    return exact(NETS["teacher"], x, t, cond) + residual(params, x, 2 * t - 1)

  objective = scm(student, exact, path=path, warmup=100)
  start = {"student": zeros(powers), **NETS}
  end = fit(objective, start, DATA[: 2**13], steps=1000, rates={"student": 0.02}, b1=0.0)
  one_step = lambda params: lambda x, t: student(params, x, t, None)
  assert distance(one_step(start["student"])) > 0.5
  assert distance(one_step(end["student"])) < 0.08


def flow_end(videos, steps=8):
  """The consistency function of a mixture as a velocity, by Runge-Kutta."""
  params = videos.params()

  def velocity(x, t, cond):
    h = paths.expand(t / steps, x)

    def step(y, i):
      at = lambda y, share: exact(params, y, t * share, cond)
      l, half, below = 1 - i / steps, 1 - (i + 0.5) / steps, 1 - (i + 1) / steps
      a = at(y, l)
      b = at(y - h / 2 * a, half)
      c = at(y - h / 2 * b, half)
      return y - h / 6 * (a + 2 * b + 2 * c + at(y - h * c, below)), None

    return paths.v_from_x0(x, jax.lax.scan(step, x, jnp.arange(steps, dtype=x.dtype))[0], t)

  return velocity


def test_from_data_normalised_tangents_have_another_optimum():
  """On a mixture the exact network is left by sct with a norm, and is kept by it without one."""
  student = near(flow_end(mixture()))
  x0, start, drift = batch_of(mixture(), 2**15), {"model": zeros()}, {}
  noise = jax.random.normal(KEY, (2**12, *SHAPE))
  jump = jax.jit(lambda params: noise - student(params, noise, jnp.ones(2**12), None))
  truth = flat(jump(zeros()))
  for norm in ("none", "rms"):
    objective = sct(student, norm=norm, c=0.01, warmup=0, time=paths.LogNormal(1.0, 0.5))
    end = fit(objective, start, x0, steps=400, rates={"model": 0.01}, batch=256)
    drift[norm] = np.sqrt(np.mean((flat(jump(end["model"])) - truth) ** 2))
  assert drift["none"] < 0.06 and drift["rms"] > 2 * drift["none"], drift


def test_two_steps_of_an_exact_network_reproduce_the_data():
  noise = jax.random.normal(jax.random.key(1), (2**16, *SHAPE))
  draw = jax.jit(lambda noise, key: samplers.sample(
    lambda x, t: JUMP(x, t, None), noise, [1.0, 0.6, 0.0], solver="consistency", key=key
  ))  # fmt: skip
  drawn = flat(draw(noise, KEY)).reshape(-1, DIM)
  assert wasserstein(drawn.mean(0), np.cov(drawn.T), VIDEOS.means[0], VIDEOS.covs[0]) < 0.02


# ------------------------------------------------------------------------------------------------
# Details
# ------------------------------------------------------------------------------------------------


def test_frames_with_times_of_their_own_become_clean_together():
  """The fixed point with chunk=1: where the flow along times (l t_1 .. l t_F), l -> 0, ends."""
  velocity = frame_velocity(VIDEOS)

  def walk(x, t, cond, steps=24):
    def step(y, i):
      l, h = 1 - i / steps, 1 / steps
      half = lambda y, l: paths.expand(t, x) * velocity(y, l * t, cond)
      middle = y - h / 2 * half(y, l)
      return y - h * half(middle, l - h / 2), None

    end = jax.lax.scan(step, x, jnp.arange(steps, dtype=jnp.float32))[0]
    return paths.v_from_x0(x, end, t)

  teacher = lambda params, x, t, cond: velocity(x, t, cond)
  objective = scm(near(walk), teacher, chunk=1, norm="none", warmup=0)
  still, moved = (run(objective, p, DATA[:512])[0]["tangent_norm"] for p in (zeros(), displaced()))
  assert still < 0.02 * moved


def test_guidance_ends_up_in_the_tangent():
  objective = scm(
    lambda params, x, t, cond: 0 * x + params,
    lambda params, x, t, cond: cond[:, None, None, None, None] + 0 * x,
    guidance=3.0, unconditional=jnp.zeros_like, norm="none", scale=5.0,
  )  # fmt: skip
  nets = {"teacher": jnp.float32(0)}
  metrics, _ = run(objective, jnp.float32(1.0), DATA[:8], step=0, nets=nets, cond=jnp.ones(8))
  assert np.isclose(metrics["tangent_norm"], 2) and np.isclose(metrics["loss"], 20)


def test_it_can_be_named_in_a_config():
  section = {"name": "scm", "time": "lognormal:0.7,1.6", "path": "trig", "tangent": "semi"}
  assert make_objective(section, {}).frozen == ("teacher",)
  assert make_objective({"name": "sct", "role": "net", "norm": "none"}, {}).roles == ("net",)


@pytest.mark.parametrize(
  ("options", "words"),
  [
    ({"path": "vp"}, "path must be one of rf, trig"),
    ({"norm": "max"}, "norm must be one of rms, l2, none"),
    ({"tangent": "exact"}, "tangent must be one of jvp, semi, difference"),
    ({"power": 3}, "power must be 1"),
    ({"delta": 0.0}, "delta is a share"),
    ({"c": 0.0}, "c keeps small tangents small"),
    ({"warmup": -1}, "warmup counts steps"),
    ({"guidance": 3.0}, "needs unconditional"),
  ],
)
def test_impossible_options_are_refused(options, words):
  with pytest.raises(ValueError, match=words):
    scm(STUDENT, exact, **options)


def test_a_missing_teacher_is_named():
  with pytest.raises(ValueError, match="needs the network 'teacher'"):
    run(scm(STUDENT, exact), zeros(), DATA[:8], nets={})
