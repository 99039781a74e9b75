"""Our solvers against diffusers' schedulers: same times, same velocity function, same result."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from vidstep.paths import shift_time
from vidstep.samplers import sample, timesteps

torch = pytest.importorskip("torch")
schedulers = pytest.importorskip("diffusers.schedulers")

# Their own NumPy calls are dated; what they compute is what counts here.
pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning")

SHAPE = (2, 3, 4)
WEIGHT = np.random.default_rng(0).normal(size=(4, 4)) / 2


def velocity(x, t, lib):
  """A smooth nonlinear field that mixes channels and depends on time, in NumPy or in JAX."""
  return lib.tanh(x @ lib.asarray(WEIGHT)) * (1 + t) - t * t * x


def start():
  return np.random.default_rng(1).normal(size=SHAPE)


def theirs(scheduler, calls=None):
  """Runs a scheduler; returns the result and the times at which it called the network."""
  x, seen = torch.from_numpy(start()), []
  for i, t in enumerate(scheduler.timesteps):
    sigma = float(scheduler.sigmas[i]) if calls is None else calls[i]
    v = torch.from_numpy(velocity(x.numpy(), sigma, np))
    x = scheduler.step(v, t, x).prev_sample.to(torch.float64)
    seen.append(sigma)
  return x.numpy(), seen


def ours(times, solver):
  with jax.enable_x64(True):
    network = lambda x, t: velocity(x, t[:, None, None], jnp)
    return np.asarray(sample(network, jnp.asarray(start()), np.asarray(times), solver=solver))


def agree(got, expected, tol=2e-5):
  np.testing.assert_allclose(got, expected, rtol=tol, atol=tol)
  assert np.abs(expected - start()).max() > 0.1


STEPS = [1, 2, 3, 8, 14, 15, 20]


@pytest.mark.parametrize("shift", [1.0, 5.0])
@pytest.mark.parametrize("steps", STEPS)
def test_euler_is_flow_match_euler(steps, shift):
  scheduler = schedulers.FlowMatchEulerDiscreteScheduler(shift=shift)
  scheduler.set_timesteps(sigmas=np.linspace(1, 1 / steps, steps))
  expected, _ = theirs(scheduler)
  np.testing.assert_allclose(scheduler.sigmas, timesteps(steps, shift=shift), atol=1e-6)
  agree(ours(timesteps(steps, shift=shift), "euler"), expected)


@pytest.mark.parametrize("shift", [1.0, 3.0])
@pytest.mark.parametrize("steps", [2, 3, 8, 20])
def test_heun_is_flow_match_heun(steps, shift):
  scheduler = schedulers.FlowMatchHeunDiscreteScheduler(shift=shift)
  scheduler.set_timesteps(steps)
  times = np.asarray(scheduler.sigmas.to(torch.float64))
  # Its list repeats inner times; a corrector sees the network at the end of its step.
  times = np.concatenate([times[:1], times[1:-1:2], [0.0]])
  calls = [times[0]] + [t for t in times[1:-1] for _ in range(2)]
  expected, _ = theirs(scheduler, calls)
  agree(ours(times, "heun"), expected)


@pytest.mark.parametrize("shift", [1.0, 5.0])
@pytest.mark.parametrize("order", [2, 3])
@pytest.mark.parametrize("steps", STEPS)
def test_dpmpp_is_dpm_solver_multistep(steps, order, shift):
  scheduler = schedulers.DPMSolverMultistepScheduler(
    solver_order=order,
    algorithm_type="dpmsolver++",
    prediction_type="flow_prediction",
    use_flow_sigmas=True,
    flow_shift=shift,
  )
  scheduler.set_timesteps(steps)
  times = timesteps(steps, shift=shift, t_max=shift_time(0.999, shift))  # its first sigma
  np.testing.assert_allclose(scheduler.sigmas, times, atol=1e-6)
  expected, _ = theirs(scheduler)
  agree(ours(scheduler.sigmas, f"dpmpp_{order}m"), expected)


@pytest.mark.parametrize("shift", [1.0, 5.0])
@pytest.mark.parametrize("order", [2, 3])
@pytest.mark.parametrize("steps", STEPS)
def test_unipc_is_wans_scheduler(steps, order, shift):
  scheduler = schedulers.UniPCMultistepScheduler(
    solver_order=order,
    prediction_type="flow_prediction",
    use_flow_sigmas=True,
    flow_shift=shift,
  )
  scheduler.set_timesteps(steps)
  expected, _ = theirs(scheduler)
  solver = "unipc" if order == 2 else "unipc_3"
  agree(ours(scheduler.sigmas, solver), expected)
  # It starts at 1 - 1e-6 to keep lambda finite; from exactly 1 we take the same steps.
  exact = np.asarray(scheduler.sigmas, np.float64)
  exact[0] = 1.0
  agree(ours(exact, solver), expected)


def test_the_comparison_tells_solvers_apart():
  scheduler = schedulers.UniPCMultistepScheduler(
    prediction_type="flow_prediction", use_flow_sigmas=True, flow_shift=5.0
  )
  scheduler.set_timesteps(8)
  expected, _ = theirs(scheduler)
  for wrong in ("euler", "heun", "dpmpp_2m", "dpmpp_3m", "unipc_3"):
    with pytest.raises(AssertionError):
      agree(ours(scheduler.sigmas, wrong), expected)
