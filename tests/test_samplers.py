"""Samplers: order of convergence, exactness, honest counting, on a flow known in closed form."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from mutation import assert_caught, mutant

from vidstep import samplers, solvers
from vidstep.samplers import guided, nfe, sample, stages, timestep_list, timesteps

MEAN, STD = 0.7, 0.5
DETERMINISTIC = [
  name for name in samplers.SOLVERS if name not in (*solvers.STOCHASTIC, *solvers.TWO_TIMES)
]


def velocity(x, t, s=None):
  """Exact velocity of N(MEAN, STD^2) data."""
  t = t[:, None]
  var = (1 - t) ** 2 * STD**2 + t**2
  return -MEAN + (t - (1 - t) * STD**2) / var * (x - (1 - t) * MEAN)


def flow(x, t, s):
  """Where that flow carries x from time t to time s: Gaussian quantiles are kept."""
  width = lambda r: np.sqrt((1 - r) ** 2 * STD**2 + r**2)
  return (1 - s) * MEAN + width(s) / width(t) * (x - (1 - t) * MEAN)


def grid(steps, first=0.95, last=0.05):
  """Short first steps, so that low-order starts do not hide the order; steps alternate 5 : 3."""
  lam = lambda t: math.log((1 - t) / t)
  u = np.arange(steps + 1.0)
  u[1:-1:2] += 0.25
  knots = lam(first) + (lam(last) - lam(first)) * (u / steps) ** 2
  return 1 / (1 + np.exp(knots))


def errors(solver, counts):
  with jax.enable_x64(True):
    x, out = jnp.linspace(-2, 2, 5)[:, None], []
    for n in counts:
      times = grid(n)
      y = sample(velocity, x, times, solver=solver)
      out.append(np.abs(np.asarray(y) - flow(np.asarray(x), times[0], times[-1])).max())
  return np.array(out)


ORDERS = {"euler": 1, "heun": 2, "dpmpp_2m": 2, "dpmpp_3m": 2, "unipc": 3, "unipc_3": 4}


def slope(solver, counts=(64, 128, 256)):
  return -np.polyfit(np.log2(counts), np.log2(errors(solver, counts)), 1)[0]


def check_order(solver):
  assert abs(slope(solver) - ORDERS[solver]) < 0.15


@pytest.mark.parametrize("solver", DETERMINISTIC)
def test_every_solver_converges_at_its_order(solver):
  check_order(solver)


@pytest.mark.parametrize(
  "solver, old, new",
  [
    ("euler", "= ratio, 1 - ratio", "= ratio, 1.01 - ratio"),
    ("heun", "correct[X], correct[M] = half / t_next", "correct[X], correct[M] = half / t"),
    ("dpmpp_2m", "+= -0.5 * alpha", "-= -0.5 * alpha"),
    ("dpmpp_2m", "* h / (lam[i - j] - lam[i - j - 1])", ""),
    ("dpmpp_3m", "(np.expm1(-h) / h + 1)", "np.expm1(-h) / h"),
    ("unipc", "origin=1, corrector=True", "origin=1, corrector=False"),
    ("unipc", "phi * math.factorial(k)", "phi * math.factorial(k + 1)"),
    ("unipc_3", "(lam[i - j] - lam[i]) / h", "(lam[i] - lam[i - j]) / h"),
  ],
)
def test_proof_of_order_fails_on_mutants(solver, old, new, monkeypatch):
  monkeypatch.setattr(samplers, "SOLVERS", mutant(solvers, old, new).SOLVERS)
  assert_caught(check_order, solver)


def test_published_3m_is_a_factor_of_two_away_from_third_order(monkeypatch):
  doubled = mutant(solvers, "row[M:] -= alpha * ((", "row[M:] -= 2 * alpha * ((")
  monkeypatch.setattr(samplers, "SOLVERS", doubled.SOLVERS)
  assert slope("dpmpp_3m") > 2.7


def interpolation_weights(t, t_next, nodes, curvature=1.0):
  """Weights of m at `nodes` (times) in `t_next * integral of e^lambda m dlambda`, by quadrature.

  m is the polynomial through the nodes; its second-order Taylor term at t counts `curvature` times.
  """
  lam = lambda t: np.log((1 - t) / t)
  h = lam(t_next) - lam(t)
  z, w = np.polynomial.legendre.leggauss(40)
  s = (z + 1) / 2
  basis = np.linalg.inv(np.vander((lam(nodes) - lam(t)) / h, increasing=True))
  basis[2:3] *= curvature
  density = (w / 2) * h * np.exp(lam(t) + s * h) * t_next
  return (density @ np.vander(s, len(nodes), increasing=True)) @ basis


def check_weights(module):
  t, i = grid(20), 4  # a step with full history, before the orders come down
  close = lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-9)
  ahead = interpolation_weights(t[i], t[i + 1], t[i - np.arange(3)])
  halved = interpolation_weights(t[i], t[i + 1], t[i - np.arange(3)], curvature=0.5)
  close(module.dpmpp_3m(t).state[i, module.M :], halved)
  for order, solver in ((2, module.unipc), (3, module.unipc_3)):
    plan = solver(t)
    nodes = t[i - np.arange(order + 1)]  # the corrector reaches from t[i - 1] to t[i]
    close(plan.base[i, module.M :], interpolation_weights(t[i - 1], t[i], nodes))
    close(plan.base[i, module.BASE], t[i] / t[i - 1])
  predictor = plan.state[i] - t[i + 1] / t[i] * plan.base[i]
  close(predictor[module.M : -1], ahead)


def test_multistep_weights_integrate_the_interpolating_polynomial():
  check_weights(solvers)


@pytest.mark.parametrize(
  "old, new",
  [
    ("slopes[0] + r0 * curve", "slopes[0]"),
    ("/ h**2 - 0.5", "/ h**2 - 0.6"),
    ("increasing=True).T", "increasing=True)"),
    ("1 / math.factorial(k + 1)", "1 / math.factorial(k)"),
    ("times[i] / times[i - 1]", "times[i - 1] / times[i]"),
  ],
)
def test_proof_of_weights_fails_on_mutants(old, new):
  assert_caught(check_weights, mutant(solvers, old, new))


@pytest.mark.parametrize("solver", DETERMINISTIC)
@pytest.mark.parametrize("steps", [1, 3, 20])
def test_straight_flows_are_exact_in_any_number_of_steps(solver, steps):
  # Data at one point: every trajectory is a line and the data prediction is constant.
  with jax.enable_x64(True):
    x = jnp.linspace(-2, 2, 5)[:, None]
    y = sample(lambda x, t: (x - MEAN) / t[:, None], x, timesteps(steps, shift=3.0), solver=solver)
  np.testing.assert_allclose(y, np.full((5, 1), MEAN), atol=1e-12)


@pytest.mark.parametrize("solver", DETERMINISTIC)
def test_full_sampling_from_noise_to_data_converges_in_float32(solver):
  x = jnp.linspace(-2, 2, 5, dtype=jnp.float32)[:, None]
  times = timesteps(50, shift=2.0)
  y = sample(velocity, x, times, solver=solver)
  assert y.dtype == jnp.float32
  tolerance = 0.05 if solver == "euler" else 0.01
  np.testing.assert_allclose(y, flow(np.asarray(x), 1.0, 0.0), atol=tolerance)
  with jax.enable_x64(True):
    wide = sample(velocity, x.astype(jnp.float64), times, solver=solver)
  np.testing.assert_allclose(y, wide, atol=2e-5)


def test_one_step_of_every_solver_is_the_data_prediction_at_noise(key):
  x = jnp.linspace(-2, 2, 5, dtype=jnp.float32)[:, None]
  for solver in samplers.SOLVERS:
    y = sample(velocity, x, timesteps(1), solver=solver, key=key)
    np.testing.assert_allclose(y, x - velocity(x, jnp.ones(5)), atol=1e-6)


def check_consistency_sampling(preset="causal", n=40_000):
  """With the exact consistency function each jump lands on data, at any list of times."""
  std, mean = np.array([0.2, 0.6, 1.5]), np.array([-1.0, 0.0, 0.5])

  def exact(x, t):
    t = t[:, None]
    width = jnp.sqrt((1 - t) ** 2 * std[None] ** 2 + t**2)
    jump = mean[None] + std[None] / width * (x - (1 - t) * mean[None])
    return (x - jump) / t

  with jax.enable_x64(True):
    noise = jax.random.normal(jax.random.key(1), (n, 3), jnp.float64)
    y = sample(exact, noise, timestep_list(preset), solver="consistency", key=jax.random.key(0))
  error = 4 / math.sqrt(n)
  y = (np.asarray(y) - mean) / std
  assert np.abs(y.mean(0)).max() < error
  assert np.abs(np.cov(y.T) - np.eye(3)).max() < math.sqrt(2) * error


@pytest.mark.parametrize("preset", ["causal", "rcm_8"])
def test_consistency_sampling_reproduces_the_data_distribution(preset):
  check_consistency_sampling(preset)


@pytest.mark.parametrize(
  "module, old, new",
  [
    (solvers, "= 1 - times[1:], times[1:]", "= 1 - times[1:], times[:-1]"),
    (solvers, "= 1 - times[1:], times[1:]", "= times[1:], times[1:]"),
    (samplers, "jax.random.fold_in(key, index)", "key"),
  ],
)
def test_proof_of_consistency_sampling_fails_on_mutants(module, old, new, monkeypatch):
  broken = mutant(module, old, new)
  if module is samplers:
    monkeypatch.setitem(globals(), "sample", broken.sample)
  else:
    monkeypatch.setattr(samplers, "SOLVERS", broken.SOLVERS)
  assert_caught(check_consistency_sampling)


def check_flow_map():
  """Average velocities over [s, t] are exact along any list of times."""

  def average(x, t, s):
    t, s = t[:, None], s[:, None]
    wide, thin = (jnp.sqrt((1 - r) ** 2 * STD**2 + r**2) for r in (t, s))
    return -MEAN + (1 - thin / wide) / (t - s) * (x - (1 - t) * MEAN)

  with jax.enable_x64(True):
    x = jnp.linspace(-2, 2, 5)[:, None]
    for times in ([1.0, 0.0], [1.0, 0.6, 0.5, 0.0], [0.9, 0.3]):
      y = sample(average, x, times, solver="flow_map")
      np.testing.assert_allclose(y, flow(np.asarray(x), times[0], times[-1]), atol=1e-12)


def test_flow_map_sampling_is_exact_in_any_number_of_steps():
  check_flow_map()


@pytest.mark.parametrize("new", ["[:-1]", "[1:] * 0"])
def test_proof_of_flow_map_sampling_fails_on_mutants(new, monkeypatch):
  broken = mutant(samplers, "np.asarray(times)[1:]", f"np.asarray(times){new}")
  monkeypatch.setitem(globals(), "sample", broken.sample)
  with np.errstate(all="ignore"):
    assert_caught(check_flow_map)


def test_fresh_noise_follows_the_key(key):
  x = jnp.linspace(-2, 2, 5, dtype=jnp.float32)[:, None]
  run = lambda k: sample(velocity, x, timesteps(3), solver="consistency", key=k)
  np.testing.assert_array_equal(run(key), run(key))
  assert np.abs(run(key) - run(jax.random.key(1))).max() > 0.1
  with pytest.raises(ValueError, match=r"pass key=jax.random.key"):
    run(None)


@pytest.mark.parametrize("solver", list(samplers.SOLVERS))
@pytest.mark.parametrize("guidance", [1.0, 5.0])
def test_nfe_counts_the_calls_that_happen(solver, guidance, key):
  calls = []

  def counted(x, t, **s):
    jax.debug.callback(lambda: calls.append(1))
    return velocity(x, t)

  x = jnp.ones((1, 1), jnp.float32)
  sample(guided(counted, counted, guidance), x, timesteps(3), solver=solver, key=key)
  jax.effects_barrier()
  assert len(calls) == nfe(solver, 3, guidance)


def test_nfe_of_the_usual_settings():
  assert nfe("euler", 50, 5.0) == 100
  assert nfe("unipc", 8) == 8
  assert nfe("heun", 18) == 35  # EDM's count on CIFAR-10
  assert nfe("consistency", 4) == 4
  assert nfe("euler", 4, 0.0) == 4  # the unconditional network alone


@pytest.mark.parametrize("solver", list(samplers.SOLVERS))
def test_a_sampler_is_one_scan_with_one_network_in_it(solver, key):
  network = lambda x, t, **s: jnp.tanh(x)
  run = lambda x: sample(network, x, timesteps(6), solver=solver, key=key)
  program = str(jax.make_jaxpr(run)(jnp.ones((2, 3), jnp.float32)))
  assert program.count("scan[") == 1
  assert program.count(" tanh ") == 1


@pytest.mark.parametrize("solver", sorted(samplers.SOLVERS))
def test_stages_one_by_one_are_the_whole(solver, key):
  network = lambda x, t, s=None: jnp.tanh(x) * t[:, None] + (0 if s is None else s[:, None])
  times, x = timesteps(3, shift=3.0), jnp.linspace(-2, 2, 6).reshape(2, 3)
  run = stages(network, times, solver=solver, key=key)
  step, carry = jax.jit(run.step), run.start(x)
  for i in range(len(run.rows[0])):
    carry = step(carry, run.row(i))
  want = sample(network, x, times, solver=solver, key=key)
  np.testing.assert_allclose(run.end(carry), want, atol=1e-6)


def test_networks_see_their_own_dtype_and_exact_float32_times():
  times, seen = timesteps(3, shift=5.0), []

  def network(x, t):
    assert x.dtype == jnp.bfloat16 and t.dtype == jnp.float32 and t.shape == (2,)
    jax.debug.callback(lambda t: seen.append(t), t, ordered=True)
    return x

  y = jax.jit(lambda x: sample(network, x, times))(jnp.ones((2, 3), jnp.bfloat16))
  jax.effects_barrier()
  assert y.dtype == jnp.bfloat16
  np.testing.assert_array_equal(np.stack(seen)[:, 0], times[:-1])


def test_guidance_is_uncond_plus_w_times_the_difference():
  x, t = jnp.ones((3, 2), jnp.float32), jnp.full(3, 0.5)
  cond, uncond = lambda x, t: 3 * x, lambda x, t: x
  np.testing.assert_allclose(guided(cond, uncond, 4.0)(x, t), np.full((3, 2), 9.0))
  w = jnp.array([0.0, 1.0, 4.0])
  np.testing.assert_allclose(guided(cond, uncond, w)(x, t)[:, 0], [1, 3, 9])
  assert guided(cond, uncond, 1.0) is cond
  assert guided(cond, uncond, 0) is uncond
  half = guided(cond, uncond, 4.0)(x.astype(jnp.bfloat16), t)
  assert half.dtype == jnp.bfloat16


def test_time_grids_are_the_published_ones():
  close = lambda a, b, tol=1e-6: np.testing.assert_allclose(a, b, atol=tol)
  assert timesteps(4).dtype == np.float32
  close(timesteps(4, shift=5.0), [1, 15 / 16, 5 / 6, 5 / 8, 0])
  close(timesteps(4, shift=5.0), timestep_list("causal"))
  close(timesteps(4, shift=3.0), timestep_list("causal_shift3"))
  close(timesteps(2, shift=5.0, t_max=15 / 16), [15 / 16, 1.875 / 2.5, 0])
  close(timestep_list("rcm", 3, t_max=1600 / 1601), [0.999375, 0.9338, 0.8529, 0], 5e-5)
  close(timestep_list("rcm_paper", t_max=80 / 81), [0.9877, 0.7827, 0.6090, 0.4062, 0], 5e-5)
  assert len(timestep_list("rcm_8")) == 9
  close(timestep_list([0.5]), [1, 0.5, 0])
  close(timestep_list([]), [1, 0])


@pytest.mark.parametrize(
  "call, message",
  [
    (lambda x: timesteps(0), "at least 1 step"),
    (lambda x: timesteps(4, t_max=1.5), "t_max"),
    (lambda x: timesteps(4, shift=0.0), "shift must be positive"),
    (lambda x: timestep_list("wan"), "there are causal, causal_shift3"),
    (lambda x: timestep_list("causal", 5), "4 intermediate times, the list has 3"),
    (lambda x: timestep_list([0.5, 0.6]), "must not increase"),
    (lambda x: sample(velocity, x, timesteps(2), solver="rk4"), "there are consistency, dpmpp_2m"),
    (lambda x: sample(velocity, x, [0.5]), "at least 1 step"),
    (lambda x: sample(velocity, x, [0.0, 0.5, 1.0]), "must fall"),
    (lambda x: sample(velocity, x, [1000.0, 500.0, 0.0]), r"within \[0, 1\]"),
    (lambda x: sample(velocity, x, [[1.0, 0.0]]), "must be a list"),
    (lambda x: sample(velocity, x, timestep_list("rcm_8")), "cannot repeat a time"),
    (lambda x: jax.jit(lambda t: sample(velocity, x, t))(jnp.array([1.0, 0.0])), "when tracing"),
    (lambda x: nfe("rk4", 3), "Unknown solver"),
    (lambda x: nfe("euler", 0), "at least 1 step"),
  ],
)
def test_bad_requests_are_refused_with_a_sentence(call, message):
  with pytest.raises(ValueError, match=message):
    call(jnp.ones((2, 1), jnp.float32))
