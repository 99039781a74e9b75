"""Paths: every conversion against NumPy float64 written from the definitions, to 1e-12."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from mutation import assert_caught, mutant

from vidstep import paths

TIMES = np.concatenate([[0.0, 1e-6], np.linspace(0.01, 0.99, 25), [1 - 1e-6, 1.0]])


def pair(n=TIMES.size):
  rng = np.random.default_rng(0)
  return rng.normal(size=(n, 2, 3)), rng.normal(size=(n, 2, 3))


def close(a, b, tol=1e-12):
  np.testing.assert_allclose(np.asarray(a), b, rtol=tol, atol=tol)


def on(t, x):
  return t.reshape(-1, *(1,) * (x.ndim - 1))


def check_rectified_flow(p):
  x0, eps = pair()
  t, v = TIMES, eps - x0
  x = (1 - on(t, x0)) * x0 + on(t, x0) * eps
  with jax.enable_x64(True):
    close(p.interpolate(x0, eps, t), x)
    close(p.velocity(x0, eps), v)
    close(p.x0_from_v(x, v, t), x0)
    close(p.eps_from_v(x, v, t), eps)
    inside = slice(2, -2)
    ti, xi, vi = t[inside], x[inside], v[inside]
    close(p.v_from_x0(xi, x0[inside], ti), vi)
    close(p.v_from_eps(xi, eps[inside], ti), vi)
    score = -eps[inside] / on(ti, xi)  # of the Gaussian N((1-t) x0, t^2) around this very x0
    close(p.score_from_v(xi, vi, ti), score)
    close(p.v_from_score(xi, score, ti), vi)


def check_trigflow(p):
  trig, (x0, eps) = p.TrigFlow(), pair()
  tau = np.arctan2(TIMES, 1 - TIMES)
  c, s = on(np.cos(tau), x0), on(np.sin(tau), x0)
  x, f = c * x0 + s * eps, c * eps - s * x0
  x_rf, v = (1 - on(TIMES, x0)) * x0 + on(TIMES, x0) * eps, eps - x0
  with jax.enable_x64(True):
    close(trig.time_from_rf(TIMES), tau)
    close(trig.time_to_rf(tau), TIMES)
    close(trig.interpolate(x0, eps, tau), x)
    close(trig.velocity(x0, eps, tau), f)
    close(trig.x0_from_f(x, f, tau), x0)
    got_x, got_f = trig.from_rf(x_rf, v, TIMES)
    close(got_x, x)
    close(got_f, f)
    back_x, back_v = trig.to_rf(got_x, got_f, tau)
    close(back_x, x_rf)
    close(back_v, v)


def check_edm(p):
  edm, (x0, eps) = p.EDM(sigma_data=0.5), pair()
  t = TIMES[:-1]  # sigma is infinite at t = 1
  x0, eps = x0[:-1], eps[:-1]
  sigma = t / (1 - t)
  x_rf, v = (1 - on(t, x0)) * x0 + on(t, x0) * eps, eps - x0
  with jax.enable_x64(True):
    close(edm.time_from_rf(t), sigma)
    close(edm.time_to_rf(sigma), t)
    x = x0 + on(sigma, x0) * eps
    got_x, got_d = edm.from_rf(x_rf, v, t)
    close(got_x, x, 1e-9)  # 1 / (1 - t) is 1e6 at the last time
    close(edm.interpolate(x0, eps, sigma), x, 1e-9)
    close(got_d, x0)
    inside = slice(2, -1)
    back_x, back_v = edm.to_rf(got_x[inside], got_d[inside], sigma[inside])
    close(back_x, x_rf[inside])
    close(back_v, v[inside])


def gaussian(mean=0.7, std=0.5):
  """Velocity, TrigFlow F and denoiser of N(mean, std^2) data, each written in its own time."""

  def rf(x, t, np=np):
    t = t[:, None, None]
    var = (1 - t) ** 2 * std**2 + t**2
    return -mean + (t - (1 - t) * std**2) / var * (x - (1 - t) * mean)

  def trig(x, tau):
    c, s = on(np.cos(tau), x), on(np.sin(tau), x)
    off = (x - c * mean) / (c**2 * std**2 + s**2)
    return c * (s * off) - s * (mean + c * std**2 * off)

  def edm(x, sigma):
    return mean + std**2 / (std**2 + on(sigma, x) ** 2) * (x - mean)

  return rf, trig, edm


def check_wrapped_networks(p):
  rf, trig, edm = gaussian()
  x, _ = pair()
  tau = np.linspace(0, np.pi / 2, len(x))
  sigma = np.concatenate([[0.0], np.geomspace(1e-3, 80, len(x) - 1)])
  with jax.enable_x64(True):
    close(p.TrigFlow().wrap(rf)(jnp.asarray(x), jnp.asarray(tau)), trig(x, tau))
    scaled = x * (1 + on(sigma, x))
    denoised = p.EDM().wrap(rf)(jnp.asarray(scaled), jnp.asarray(sigma))
    close(denoised, edm(scaled, sigma), 1e-11)


CHECKS = [check_rectified_flow, check_trigflow, check_edm, check_wrapped_networks]


@pytest.mark.parametrize("check", CHECKS, ids=lambda c: c.__name__)
def test_conversions_match_the_definitions(check):
  check(paths)


@pytest.mark.parametrize(
  "check, old, new",
  [
    (check_rectified_flow, "x + (1 - t) * v", "x - (1 - t) * v"),
    (check_rectified_flow, "-(x + (1 - t) * v), t", "(x + (1 - t) * v), t"),
    (check_rectified_flow, "-(x + t * score), 1 - t", "-(x + t * score), t"),
    (check_trigflow, "(1 - 2 * t) / b * x + b * v", "(1 - 2 * t) * x + b * v"),
    (check_trigflow, "(c + s) * (f - (c - s) * x)", "(c + s) * (f - (c - s) * x * (c + s))"),
    (check_trigflow, "jnp.arctan2(t, 1 - t)", "jnp.arctan2(1 - t, t)"),
    (check_edm, "x / (1 + sigma)", "x / sigma"),
    (check_wrapped_networks, "velocity(state, t), t)[1]", "velocity(x, t), t)[1]"),
    (check_wrapped_networks, "cast(state / (1 + wide))", "cast(state)"),
  ],
)
def test_proofs_of_conversions_fail_on_mutants(check, old, new):
  with np.errstate(all="ignore"):
    assert_caught(check, mutant(paths, old, new))


def test_trigflow_agrees_with_the_published_wrapper():
  # x0 = c_skip x_tau + c_out v with c_skip = 1/Z, c_out = -S/Z, and du/dtau = 1/Z^2.
  x0, eps = pair()
  tau = np.linspace(0, np.pi / 2, len(x0))
  z, s = np.cos(tau) + np.sin(tau), np.sin(tau)
  with jax.enable_x64(True):
    trig = paths.TrigFlow()
    x = trig.interpolate(x0, eps, tau)
    close(x0, on(1 / z, x0) * np.asarray(x) - on(s / z, x0) * (eps - x0))
    close(jax.vmap(jax.grad(trig.time_to_rf))(jnp.asarray(tau)), 1 / z**2)


def test_published_times_convert_into_each_other():
  with jax.enable_x64(True):
    trig = paths.TrigFlow()
    close(paths.time_from_sigma(np.array([15, 5, 5 / 3])), [15 / 16, 5 / 6, 5 / 8])
    close(paths.time_from_sigma(np.array([0, np.inf])), [0, 1])
    close(paths.sigma_from_time(np.array([0, 15 / 16])), [0, 15])
    close(trig.time_from_rf(np.array([15 / 16, 5 / 6, 5 / 8])), [1.504, 1.373, 1.030], 1e-3)
    close(trig.time_to_rf(np.arctan([80, np.tan(1.3)])), [0.9877, 0.7827], 1e-4)


def test_edm_preconditioning_keeps_unit_variance():
  # Karras et al., appendix B.6: inputs and targets of the raw network have variance 1.
  sigma, sd = np.geomspace(1e-3, 80, 9), 0.5
  with jax.enable_x64(True):
    c_skip, c_out, c_in, c_noise = paths.EDM(sigma_data=sd).coefficients(sigma)
  close(np.asarray(c_in) ** 2 * (sd**2 + sigma**2), np.ones(9))
  target = (1 - np.asarray(c_skip)) ** 2 * sd**2 + np.asarray(c_skip) ** 2 * sigma**2
  close(target / np.asarray(c_out) ** 2, np.ones(9))
  close(c_noise, np.log(sigma) / 4)


@pytest.mark.parametrize(
  "convert, t",
  [
    (paths.v_from_x0, 0.0),
    (paths.score_from_v, 0.0),
    (paths.v_from_eps, 1.0),
    (paths.v_from_score, 1.0),
  ],
)
def test_ends_without_information_give_zero_and_zero_gradient(convert, t):
  x, y = (jnp.asarray(a, jnp.float32) for a in pair(3))
  t = jnp.full(3, t)
  value, grads = jax.value_and_grad(lambda x, y: convert(x, y, t).sum(), argnums=(0, 1))(x, y)
  assert value == 0
  assert not np.any(grads)


def test_time_keeps_its_precision_against_bfloat16_states():
  x0, eps = (jnp.asarray(a, jnp.bfloat16) for a in pair(4))
  t = jnp.full(4, 0.9375 + 2.0**-12, jnp.float32)  # 937.5 / 1000 and a bit that bfloat16 drops
  got = paths.interpolate(x0, eps, t)
  wide = paths.interpolate(x0.astype(jnp.float32), eps.astype(jnp.float32), t)
  assert got.dtype == jnp.bfloat16
  np.testing.assert_array_equal(got, wide.astype(jnp.bfloat16))
  assert paths.expand(t, x0).dtype == jnp.float32
  assert paths.expand(t, x0).shape == (4, 1, 1)


def test_time_per_frame_and_scalar_time_broadcast_over_a_state():
  x0, eps = (jnp.asarray(a, jnp.float32) for a in pair(4))
  t = jnp.linspace(0, 1, 8).reshape(4, 2)
  per_frame = paths.interpolate(x0, eps, t)
  rows = jnp.stack([paths.interpolate(x0[:, f], eps[:, f], t[:, f]) for f in range(2)], axis=1)
  np.testing.assert_array_equal(per_frame, rows)
  np.testing.assert_array_equal(paths.interpolate(x0, eps, 0.5), (x0 + eps) / 2)


def test_bad_times_are_refused_with_a_sentence():
  x = jnp.zeros((4, 2, 3))
  with pytest.raises(ValueError, match="leading axes"):
    paths.expand(jnp.zeros(3), x)
  with pytest.raises(ValueError, match="floating point"):
    paths.expand(jnp.zeros(4, jnp.int32), x)
  with pytest.raises(ValueError, match="shift must be positive"):
    paths.shift_time(0.5, 0.0)
  for bad in (lambda: paths.Uniform(shift=-1.0), lambda: paths.LogNormal(0.0, 0.0)):
    with pytest.raises(ValueError, match="must be positive"):
      bad()
  with pytest.raises(ValueError, match="sigma_data"):
    paths.EDM(sigma_data=0.0)


@pytest.mark.parametrize("shift", [0.5, 1.0, 3.0, 5.0])
def test_shift_multiplies_sigma_and_unshift_undoes_it(shift):
  t = np.linspace(0, 0.99, 12)
  shifted = paths.shift_time(t, shift)
  close(shifted / (1 - shifted), shift * t / (1 - t))
  close(paths.unshift_time(shifted, shift), t)
  assert paths.shift_time(1.0, shift) == 1 and paths.unshift_time(1.0, shift) == 1
  assert paths.shift_time(0.0, shift) == 0


SAMPLERS = [
  paths.Uniform(),
  paths.Uniform(shift=5.0),
  paths.LogitNormal(0.5, 1.0),
  paths.LogNormal(),
  paths.LogNormal(mean=0.7, std=1.6),
]


def cdf_oracle(sampler, t):
  if hasattr(sampler, "shift"):
    return t / (sampler.shift + (1 - sampler.shift) * t)
  z = (np.log(t) - np.log1p(-t) - sampler.mean) / sampler.std
  return np.array([0.5 * (1 + math.erf(a / math.sqrt(2))) for a in z])


def check_draws(sampler, key):
  """Kolmogorov-Smirnov: 1.95 / sqrt(n) is passed with probability 0.999."""
  t = np.sort(np.asarray(sampler.sample(key, (20_000,)), np.float64))
  gap = np.abs(cdf_oracle(sampler, t) - (np.arange(t.size) + 0.5) / t.size).max()
  assert gap < 1.95 / math.sqrt(t.size)


@pytest.mark.parametrize("sampler", SAMPLERS, ids=str)
def test_draws_follow_the_distribution_in_float32(sampler, key):
  check_draws(sampler, key)
  with jax.enable_x64(True):
    t = sampler.sample(key, (3, 2))
  assert t.dtype == jnp.float32 and t.shape == (3, 2)
  assert sampler.sample(key).shape == ()


@pytest.mark.parametrize(
  "sampler, old, new",
  [
    (
      paths.Uniform(shift=5.0),
      "shift * t / (1 + (shift - 1) * t)",
      "t / (shift + (1 - shift) * t)",
    ),
    (paths.LogNormal(), "self.mean + self.std * jax", "self.mean - 0.1 + self.std * jax"),
    (paths.LogNormal(), "self.std * jax.random.normal", "jax.random.normal"),
  ],
)
def test_proof_of_draws_fails_on_mutants(sampler, old, new, key):
  broken = getattr(mutant(paths, old, new), type(sampler).__name__)
  assert_caught(check_draws, broken(**vars(sampler)), key)


@pytest.mark.parametrize("sampler", [SAMPLERS[1], SAMPLERS[-1]], ids=str)
def test_cdf_is_exact_and_icdf_inverts_it(sampler):
  t = np.linspace(0.01, 0.99, 21)
  with jax.enable_x64(True):
    close(sampler.cdf(t), cdf_oracle(sampler, t))
    close(sampler.icdf(sampler.cdf(t)), t, 1e-9)
    close(sampler.cdf(np.array([0.0, 1.0])), [0, 1])
    close(sampler.icdf(np.array([0.0, 1.0])), [0, 1])


def test_time_samplers_are_hashable_values():
  assert len({paths.Uniform(5.0), paths.Uniform(shift=5.0), paths.LogNormal()}) == 2
  assert hash(paths.TrigFlow()) == hash(paths.TrigFlow())
