"""Analytic teachers against an oracle in information form: NumPy float64, no code in common.

The oracle never forms the covariance of a clip from powers of A. It writes the chain as a sparse
precision matrix J and potential h, conditions on clean frames by deleting rows, on noisy ones by
adding (1 - t)^2 / t^2 to the diagonal, and integrates flows with SciPy's DOP853.
"""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.integrate
import scipy.linalg
from mutation import assert_caught, mutant

from vidstep.models.cond import Cond
from vidstep.teachers import analytic, gaussian, mixture

pytestmark = pytest.mark.usefixtures("unoptimized")
SHAPE, FRAMES, ACTIONS, BATCH = (2, 1, 2), 4, 2, 3
D = 4


@pytest.fixture(autouse=True)
def float64():
  with jax.enable_x64(True):
    yield


# ------------------------------------------------------------------------------------------------
# The oracle
# ------------------------------------------------------------------------------------------------


def numpy_params(params):
  return jax.tree.map(lambda p: np.asarray(p, np.float64), params)


def information(p, frames, actions):
  """Precision J and potential h of one clip, from the factors of the chain."""
  j, h = np.zeros((frames * D, frames * D)), np.zeros(frames * D)
  first, noise = np.linalg.inv(p.start_cov), np.linalg.inv(p.noise_cov)
  j[:D, :D] += first
  h[:D] += first @ p.start_mean
  for f in range(1, frames):
    now, before = slice(f * D, (f + 1) * D), slice((f - 1) * D, f * D)
    push = p.drift + p.action @ actions[f]
    j[now, now] += noise
    j[before, before] += p.transition.T @ noise @ p.transition
    j[now, before] -= noise @ p.transition
    j[before, now] -= p.transition.T @ noise
    h[now] += noise @ push
    h[before] -= p.transition.T @ noise @ push
  return j, h


def given_past(j, h, past):
  """Conditions on clean first frames, given flat."""
  n = past.size
  return j[n:, n:], h[n:] - j[n:, :n] @ past


def clip_oracle(p, actions, context, frames):
  seen = 0 if context is None else context.shape[0]
  j, h = information(p, seen + frames, actions[: seen + frames])
  return given_past(j, h, np.zeros(0) if context is None else context.reshape(-1))


def gaussian_oracle(j, h, x, t):
  """`(v, log density)` at a flat noisy clip x with one time per number, all above 0."""
  s = 1 - t
  x0 = np.linalg.solve(j + np.diag(s**2 / t**2), h + s / t**2 * x)
  k = s[:, None] * np.linalg.inv(j) * s + np.diag(t**2)
  off = x - s * np.linalg.solve(j, h)
  log_density = -0.5 * (off @ np.linalg.solve(k, off) + np.linalg.slogdet(2 * np.pi * k)[1])
  return (x - s * x0) / t - x0, log_density


def part(params, k):
  return jax.tree.map(lambda p: p[k], params.components)


def oracle(params, x, t, actions, context):
  """Velocity of one clip `[F, H, W, C]` under a Gaussian or a mixture; t is `[F]`."""
  frames = x.shape[0]
  flat, per_number = x.reshape(-1), np.repeat(t, D)
  if isinstance(params, gaussian.GaussianVideo):
    return gaussian_oracle(*clip_oracle(params, actions, context, frames), flat, per_number)[0]
  vs, logs = [], []
  for k, log_weight in enumerate(params.log_weight):
    p = part(params, k)
    v, log_density = gaussian_oracle(*clip_oracle(p, actions, context, frames), flat, per_number)
    if context is not None:  # how well component k explains the clean past
      j, h = information(p, context.shape[0], actions)
      off = context.reshape(-1) - np.linalg.solve(j, h)
      log_density += -0.5 * off @ j @ off + 0.5 * np.linalg.slogdet(j / (2 * np.pi))[1]
    vs.append(v)
    logs.append(log_weight + log_density)
  gamma = np.exp(np.array(logs) - max(logs))
  return np.array(vs).T @ gamma / gamma.sum()


def flow_oracle(params, x, t, s, actions, context):
  field = lambda r, y: oracle(params, y.reshape(x.shape), np.full(len(x), r), actions, context)
  out = scipy.integrate.solve_ivp(field, (t, s), x.reshape(-1), "DOP853", rtol=1e-9, atol=1e-9)
  return out.y[:, -1].reshape(x.shape)


# ------------------------------------------------------------------------------------------------
# Velocity, score, flow
# ------------------------------------------------------------------------------------------------


def bench(module, seen=0):
  """Parameters and a batch: noisy clips, times, condition."""
  options = dict(shape=SHAPE, actions=ACTIONS)
  if module.__name__.startswith("vidstep.teachers.gaussian"):
    params = gaussian.random_gaussian(3, **options)
  else:
    params = mixture.random_mixture(3, spread=1.0, **options)
  rng = np.random.default_rng(0)
  x = rng.normal(size=(BATCH, FRAMES, *SHAPE))
  context = 0.5 * rng.normal(size=(BATCH, seen, *SHAPE)) if seen else None
  actions = rng.choice([-1.0, 1.0], size=(BATCH, seen + FRAMES, ACTIONS))
  actions[:, 0] = 0
  t = np.array([0.1, 0.5, 0.95])
  return params, jnp.asarray(x), jnp.asarray(t), Cond(actions=actions, context=context)


def each(fn, params, x, t, cond, *more):
  """An oracle over the batch, as one array."""
  params, t = numpy_params(params), np.broadcast_to(t, (x.shape[1], BATCH)).T if t.ndim == 1 else t
  out = []
  for b in range(BATCH):
    context = None if cond.context is None else cond.context[b]
    rest = (m[b] for m in more)
    out.append(fn(params, np.asarray(x[b]), np.asarray(t[b]), *rest, cond.actions[b], context))
  return np.array(out).reshape(x.shape)


def close(a, b, tol=1e-9):
  np.testing.assert_allclose(np.asarray(a), b, rtol=tol, atol=tol)


def check_velocity(module, seen=0):
  params, x, t, cond = bench(module, seen)
  close(jax.jit(module.velocity)(params, x, t, cond), each(oracle, params, x, t, cond))


def check_velocity_given_frames(module):
  check_velocity(module, seen=2)


def check_velocity_with_a_time_per_frame(module):
  params, x, _, cond = bench(module, seen=1)
  t = jnp.asarray(np.random.default_rng(1).uniform(0.05, 1, (BATCH, FRAMES)))
  close(jax.jit(module.velocity)(params, x, t, cond), each(oracle, params, x, t, cond))


def check_flow_map(module):
  params, x, t, cond = bench(module, seen=1)
  flow = lambda params, x, t, s, *given: flow_oracle(params, x, t[0], s, *given)
  s = jnp.array([0.9, 0.2, 0.01])  # the first goes up, to more noise
  expected = each(flow, params, x, t, cond, np.asarray(s))
  close(jax.jit(module.flow_map)(params, x, t, cond, s=s), expected, 2e-6)


CHECKS = [
  check_velocity,
  check_velocity_given_frames,
  check_velocity_with_a_time_per_frame,
  check_flow_map,
]


@pytest.mark.parametrize("module", [gaussian, mixture], ids=["gaussian", "mixture"])
@pytest.mark.parametrize("check", CHECKS, ids=lambda c: c.__name__)
def test_closed_forms_match_the_oracle(module, check):
  check(module)


@pytest.mark.parametrize(
  "module, check, old, new",
  [
    (gaussian, check_velocity, "(1 - t) ** 2 * law.lam[None] + t**2", "law.lam[None] + t**2"),
    (gaussian, check_velocity, "x0=(law.mean +", "x0=((1 - t) * law.mean +"),
    (gaussian, check_velocity, "at[:, 0].set(params.start_mean)", "at[:, 0].set(0)"),
    (gaussian, check_velocity_given_frames, "+ frames)[:, seen:]", "+ frames)[:, :frames]"),
    (gaussian, check_velocity_given_frames, "params.replace(start_cov=params.noise_cov)", "params"),
    (gaussian, check_velocity, "for j in range(frames)] for i", "for i in range(frames)] for j"),
    (gaussian, check_velocity_with_a_time_per_frame, "* (1 - t)[:, None, :]", ""),
    (gaussian, check_velocity_with_a_time_per_frame, "rows.at[:, i].set(row)", "rows"),
    (gaussian, check_flow_map, "width(s) / width(t)", "width(t) / width(s)"),
    (gaussian, check_flow_map, "(1 - s) * mean", "(1 - t) * mean"),
    (mixture, check_velocity, "jax.nn.softmax(joint, axis=1)", "jax.nn.softmax(joint, axis=0)"),
    (mixture, check_velocity, "jnp.broadcast_to(law.log_weight, log_density.shape) +", ""),
    (mixture, check_velocity_given_frames, "cond is None or cond.context is None", "True"),
    (mixture, check_flow_map, "wide / 6 * (a + 2 * b", "wide / 6 * (a + 3 * b"),
    (mixture, check_flow_map, "(s - t) / steps", "(t - s) / steps"),
  ],
)
def test_proofs_of_closed_forms_fail_on_mutants(module, check, old, new):
  assert_caught(check, mutant(module, old, new))


@pytest.mark.parametrize("module", [gaussian, mixture], ids=["gaussian", "mixture"])
def test_score_is_the_gradient_of_the_log_density(module):
  params, x, t, cond = bench(module, seen=1)
  log_density = lambda x: module.posterior(params, x, t, cond).log_density.sum()
  p = jax.jit(module.posterior)(params, x, t, cond)
  close(p.score, jax.jit(jax.grad(log_density))(x))
  wide = t[:, None, None, None, None]
  close(p.eps, -wide * p.score)
  close((1 - wide) * p.x0 + wide * p.eps, x)
  total = np.exp(log_density_on_grid(module))
  assert abs(total.sum() - 1) < 1e-6


def log_density_on_grid(module):
  """log of density times cell area for clips of one two-pixel frame: must sum to 1."""
  options = dict(shape=(1, 2, 1), actions=1)
  make = gaussian.random_gaussian if module is gaussian else mixture.random_mixture
  axis = np.linspace(-8, 8, 161)
  x = np.stack(np.meshgrid(axis, axis), -1).reshape(-1, 1, 1, 2, 1)
  t = jnp.full(len(x), 0.4)
  log_density = jax.jit(module.posterior)(make(1, **options), jnp.asarray(x), t).log_density
  return np.asarray(log_density) + 2 * np.log(axis[1] - axis[0])


@pytest.mark.parametrize("module", [gaussian, mixture], ids=["gaussian", "mixture"])
def test_ends_of_time_are_data_and_noise(module):
  params, x, _, cond = bench(module, seen=1)
  posterior, velocity = jax.jit(module.posterior), jax.jit(module.velocity)
  data = posterior(params, x, jnp.zeros(BATCH), cond)
  close(data.x0, x)
  close(data.eps, np.zeros(x.shape))
  noise = posterior(params, x, jnp.ones(BATCH), cond)
  close(noise.eps, x)
  close(noise.score, -x)
  close(noise.x0, posterior(params, 0 * x, jnp.ones(BATCH), cond).x0)
  one, many = jnp.full(BATCH, 0.3), jnp.full((BATCH, FRAMES), 0.3)
  close(velocity(params, x, one, cond), velocity(params, x, many, cond))


def test_velocity_is_the_conditional_expectation_of_simulated_pairs():
  # E[(eps - x0 - v(x_t)) g(x_t)] = 0 for every g: simulated in NumPy, both teachers, five sigma.
  n, rng = 40_000, np.random.default_rng(0)
  actions = np.zeros((n, 2, ACTIONS))
  actions[:, 1] = rng.choice([-1.0, 1.0], size=(n, ACTIONS))
  params = mixture.random_mixture(3, spread=1.0, shape=SHAPE, actions=ACTIONS)
  p = numpy_params(params)
  which = rng.choice(3, size=n, p=np.exp(p.log_weight))
  normal = rng.normal(size=(2, n, D))
  c = jax.tree.map(lambda leaf: leaf[which], p.components)
  root = np.linalg.cholesky
  first = c.start_mean + np.einsum("nij,nj->ni", root(c.start_cov), normal[0])
  second = np.einsum("nij,nj->ni", c.transition, first) + c.drift
  second += np.einsum("nij,nj->ni", c.action, actions[:, 1])
  second += np.einsum("nij,nj->ni", root(c.noise_cov), normal[1])
  x0 = np.stack([first, second], 1).reshape(n, 2, *SHAPE)
  eps, t = rng.normal(size=x0.shape), rng.uniform(0.05, 0.95, n)
  wide = t[:, None, None, None, None]
  x = (1 - wide) * x0 + wide * eps
  v = jax.jit(mixture.velocity)(params, jnp.asarray(x), jnp.asarray(t), Cond(actions=actions))
  residual = (eps - x0 - np.asarray(v)).reshape(n, -1)
  x = x.reshape(n, -1)
  for g in (np.ones_like(x), x, np.tanh(3 * x), np.roll(x, D, axis=1), np.sign(x[:, :1]) * x):
    terms = residual * g
    assert (np.abs(terms.mean(0)) < 5 * terms.std(0) / np.sqrt(n)).all()


def test_flow_maps_compose_and_start_with_the_velocity():
  params, x, t, cond = bench(gaussian, seen=1)
  flow = jax.jit(lambda x, t, s: gaussian.flow_map(params, x, t, cond, s=s))
  middle, end = 0.7 * t, 0.2 * t
  close(flow(flow(x, t, middle), middle, end), flow(x, t, end))
  close(flow(x, t, t), x)
  slope = jax.jvp(lambda s: flow(x, t, s), (t,), (jnp.ones(BATCH),))[1]
  close(slope, jax.jit(gaussian.velocity)(params, x, t, cond))
  for module in (gaussian, mixture):
    params, x, t, cond = bench(module)
    end = jax.jit(module.flow_map)(params, x, t, cond, s=0 * t)
    close(jax.jit(module.consistency)(params, x, t, cond), end, 1e-12)
    with pytest.raises(ValueError, match="one time per clip"):
      module.flow_map(params, x, jnp.ones((BATCH, FRAMES)), cond, s=t)


# ------------------------------------------------------------------------------------------------
# Causality, actions, draws
# ------------------------------------------------------------------------------------------------


def check_causal(module, chunk=2, teacher=mixture):
  """Chunk by chunk, against the oracle that is only ever shown the past."""
  params, x, t, cond = bench(teacher, seen=1)
  clean, s = x[:, ::-1] * 0.5, 0.1 * t
  velocity = jax.jit(module.causal(teacher.velocity, chunk))
  forced = velocity(params, x, t, cond, clean=clean)
  times = jnp.asarray(np.random.default_rng(1).uniform(0.05, 1, (BATCH, FRAMES)))
  noisy = velocity(params, x, times, cond)
  if teacher is gaussian:
    flow = lambda params, x, t, s, *given: flow_oracle(params, x, t[0], s, *given)
    mapped = jax.jit(module.causal(teacher.flow_map, chunk))(params, x, t, cond, clean=clean, s=s)
  for start in range(0, FRAMES, chunk):
    now, upto = slice(start, start + chunk), slice(0, start + chunk)
    known = cond.replace(context=np.concatenate([cond.context, clean[:, :start]], axis=1))
    close(forced[:, now], each(oracle, params, x[:, now], t, known))
    close(noisy[:, now], each(oracle, params, x[:, upto], times[:, upto], cond)[:, now])
    if teacher is gaussian:
      close(mapped[:, now], each(flow, params, x[:, now], t, known, np.asarray(s)), 2e-6)


@pytest.mark.parametrize("chunk, teacher", [(2, mixture), (3, gaussian)], ids=["2", "3"])
def test_causal_teachers_know_their_past_and_nothing_else(chunk, teacher):
  check_causal(analytic, chunk, teacher)


@pytest.mark.parametrize(
  "old, new",
  [
    ("clean[:, :start]", "x[:, :start]"),
    ("[cond.context]", "[jnp.zeros_like(cond.context)]"),
    ("per_frame[:, :stop]", "per_frame[:, start:start + 1]"),
  ],
)
def test_proof_of_causality_fails_on_mutants(old, new):
  assert_caught(check_causal, mutant(analytic, old, new))


def test_bad_causal_requests_are_refused():
  params, x, t, cond = bench(gaussian)
  with pytest.raises(ValueError, match="at least 1 frame"):
    analytic.causal(gaussian.velocity, 0)
  with pytest.raises(ValueError, match=r"pass clean="):
    analytic.causal(gaussian.flow_map)(params, x, t, cond, s=t)
  with pytest.raises(ValueError, match="Actions cover"):
    gaussian.velocity(params, x, t, cond.replace(actions=cond.actions[:, 1:]))


def test_an_action_leads_into_its_frame():
  params, x, _, cond = bench(gaussian)
  law = jax.jit(lambda actions: gaussian.law(params, x, Cond(actions=actions)))
  mean = lambda actions: law(actions).mean.reshape(BATCH, FRAMES, D)
  base = jnp.zeros_like(jnp.asarray(cond.actions))
  for f in range(FRAMES):
    moved = np.asarray(mean(base.at[:, f].set(1.0)) - mean(base))
    assert not moved[:, :f].any()
    if f:
      close(moved[:, f], np.broadcast_to(np.asarray(params.action).sum(1), (BATCH, D)))
    else:
      assert not moved.any()  # nothing leads into the first frame of a video
  close(mean(base), gaussian.law(params, x).mean.reshape(BATCH, FRAMES, D))


@pytest.mark.parametrize("seen", [0, 2])
@pytest.mark.parametrize("module", [gaussian, mixture], ids=["gaussian", "mixture"])
def test_draws_have_the_moments_of_the_oracle(module, seen):
  n = 20_000
  params, _, _, cond = bench(module, seen)
  p = numpy_params(params)
  same = lambda a: None if a is None else jnp.broadcast_to(a[:1], (n, *a.shape[1:]))
  given = Cond(actions=same(cond.actions), context=same(cond.context))
  draw = jax.jit(module.draw, static_argnums=2)
  x = draw(params, jax.random.key(0), (n, FRAMES, *SHAPE), given)
  context = None if seen == 0 else cond.context[0]
  parts = [p] if module is gaussian else [part(p, k) for k in range(3)]
  js_hs = [clip_oracle(q, cond.actions[0], context, FRAMES) for q in parts]
  means = np.array([np.linalg.solve(j, h) for j, h in js_hs])
  covs = np.array([np.linalg.inv(j) for j, _ in js_hs])
  weight = np.ones(1)
  if module is mixture:
    weight = np.exp(jax.jit(mixture.context_log_weight)(params, given))
    weight = weight[0] if seen else weight
  mean = weight @ means
  cov = np.einsum("k,kij->ij", weight, covs + np.einsum("ki,kj->kij", means - mean, means - mean))
  got_mean, got_cov = analytic.fit(x)
  scale = np.sqrt(np.diag(cov))
  assert np.abs((got_mean - mean) / scale).max() < 5 / np.sqrt(n)
  assert np.abs((got_cov - cov) / np.outer(scale, scale)).max() < 8 / np.sqrt(n)
  if seen == 0:
    moments = jax.jit(module.moments, static_argnums=(1, 2))
    exact_mean, exact_cov = moments(params, BATCH, FRAMES, jnp.asarray(cond.actions))
    close(exact_mean[0], mean)
    close(np.asarray(exact_cov).reshape(-1, *cov.shape)[0], cov)


def test_random_actions_use_the_encoding_of_the_library():
  a = np.asarray(gaussian.random_actions(jax.random.key(0), 64, 5, 3))
  assert a.dtype == np.float32 and a.shape == (64, 5, 3)
  assert not a[:, 0].any()
  assert set(np.unique(a[:, 1:])) == {-1.0, 1.0}
  assert abs(a[:, 1:].mean()) < 0.2


def test_precision_follows_the_clip():
  with jax.enable_x64(False):
    for module in (gaussian, mixture):
      params, x, t, cond = bench(module, seen=1)
      v = jax.jit(module.velocity)(params, x, t, cond)
      assert v.dtype == jnp.float32
  with jax.enable_x64(True):
    close(v, jax.jit(mixture.velocity)(*bench(mixture, seen=1)), 2e-4)


# ------------------------------------------------------------------------------------------------
# Distances and modes
# ------------------------------------------------------------------------------------------------


def covariances(seed):
  rng = np.random.default_rng(seed)
  roots = rng.normal(size=(2, 5, 7))
  return rng.normal(size=(2, 5)), roots @ roots.transpose(0, 2, 1) / 7


def check_distance(module):
  (ma, mb), (ca, cb) = covariances(0)
  cross = scipy.linalg.sqrtm(ca @ cb).real
  expected = ((ma - mb) ** 2).sum() + np.trace(ca + cb - 2 * cross)
  close(module.gaussian_frechet(ma, ca, mb, cb), expected)
  close(module.wasserstein(ma, ca, mb, cb), np.sqrt(expected))
  # The cost of the optimal map x -> mb + M (x - ma), written out.
  root = scipy.linalg.sqrtm(ca).real
  m = np.linalg.inv(root) @ scipy.linalg.sqrtm(root @ cb @ root).real @ np.linalg.inv(root)
  move = np.eye(5) - m
  close(
    module.gaussian_frechet(ma, ca, mb, cb), ((ma - mb) ** 2).sum() + np.trace(move @ ca @ move.T)
  )


def test_frechet_and_wasserstein_are_exact():
  check_distance(analytic)
  (ma, _), (ca, _) = covariances(1)
  assert analytic.gaussian_frechet(ma, ca, ma, ca) < 1e-12
  point = jnp.zeros((5, 5))
  close(analytic.gaussian_frechet(ma, ca, ma, point), np.trace(ca))


@pytest.mark.parametrize(
  "old, new",
  [
    ("- 2 * jnp.sqrt", "- jnp.sqrt"),
    ("root @ cov_b @ root", "cov_a @ cov_b"),
    ("(mean_a - mean_b) ** 2", "mean_a**2"),
  ],
)
def test_proof_of_distances_fails_on_mutants(old, new):
  assert_caught(check_distance, mutant(analytic, old, new))


def test_fit_is_the_unbiased_moment_estimate():
  x = np.random.default_rng(0).normal(size=(50, 2, 3))
  mean, cov = analytic.fit(jnp.asarray(x))
  close(mean, x.reshape(50, 6).mean(0))
  close(cov, np.cov(x.reshape(50, 6).T))


def test_mode_coverage_sees_dropped_modes():
  params, key = mixture.random_mixture(0, shape=SHAPE, actions=ACTIONS), jax.random.key(0)
  shares, coverage = jax.jit(mixture.mode_shares), jax.jit(mixture.mode_coverage)
  weight = np.exp(np.asarray(params.log_weight))
  shape = (2000, FRAMES, *SHAPE)
  x = jax.jit(mixture.draw, static_argnums=2)(params, key, shape)
  assert np.abs(np.asarray(shares(params, x)) - weight).max() < 0.04
  assert coverage(params, x) > 0.95
  only = jax.jit(gaussian.draw, static_argnums=2)(part(params, 0), key, shape)
  assert shares(params, only)[0] > 0.99
  assert abs(coverage(params, only) - weight[0]) < 0.01
  # Given a context that only one component can explain, that component is all there is to cover.
  assert coverage(params, only[:, 2:], Cond(context=only[:, :2])) > 0.97
