"""Flow maps against AnyFlow's scheduler and network in diffusers; its training target in torch."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from vidstep.losses import Batch, mean_flow
from vidstep.samplers import sample, timesteps

torch = pytest.importorskip("torch")
schedulers = pytest.importorskip("diffusers.schedulers")

# What torch warns of inside its own functions is not ours to mend.
pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning")

SHAPE = (2, 3, 4, 4, 2)  # B, F, H, W, C
WEIGHT = np.random.default_rng(0).normal(size=(2, 2))


def average(x, t, s, lib):
  """A smooth two-time field, in JAX or in torch; t and s shaped to broadcast against x."""
  return lib.tanh(x @ lib.asarray(WEIGHT)) * (1 + t * t) - lib.sin(s) * x


def start():
  return np.random.default_rng(1).normal(size=SHAPE)


def theirs(u, x, steps, shift):
  """Their scheduler's own loop, with u(x, t, r) in units of sigma."""
  scheduler = schedulers.FlowMapEulerDiscreteScheduler(shift=shift)
  scheduler.set_timesteps(steps)
  for i, t in enumerate(scheduler.timesteps):
    x = scheduler.step(u(x, scheduler.sigmas[i], scheduler.sigmas[i + 1]), t, x).prev_sample
  return x.numpy()


@pytest.mark.parametrize("shift", [1.0, 5.0])
@pytest.mark.parametrize("steps", [1, 2, 4, 8])
def test_sampling_is_their_scheduler(steps, shift):
  expected = theirs(
    lambda x, t, s: average(x, t, s, torch), torch.from_numpy(start()), steps, shift
  )
  wide = lambda r: r.reshape(-1, 1, 1, 1, 1)
  with jax.enable_x64(True):
    u = lambda x, t, s: average(x, wide(t), wide(s), jnp)
    got = sample(u, jnp.asarray(start()), timesteps(steps, shift=shift), solver="flow_map")
  np.testing.assert_allclose(got, expected, atol=1e-6)
  assert np.abs(expected - start()).max() > 0.1


def test_sampling_their_network_gives_their_video():
  """Random weights of AnyFlow's transformer, driven by their loop and by ours."""
  transformers = pytest.importorskip("diffusers.models.transformers.transformer_anyflow")
  torch.manual_seed(0)
  network = transformers.AnyFlowTransformer3DModel(
    num_attention_heads=2, attention_head_dim=12, in_channels=2, out_channels=2, text_dim=3,
    freq_dim=16, ffn_dim=32, num_layers=2,
  ).eval()  # fmt: skip
  text = torch.randn(SHAPE[0], 5, 3)

  @torch.no_grad()
  def u(x, t, s):  # their layout is [B, F, C, H, W], their times are 0 .. 1000, one for each frame
    x = torch.as_tensor(x).float().permute(0, 1, 4, 2, 3)
    times = (1000 * torch.as_tensor(r).float() * torch.ones(SHAPE[:2]) for r in (t, s))
    return network(x, *times, text, return_dict=False)[0].permute(0, 1, 3, 4, 2)

  def called(x, t, s):
    host = lambda *a: u(*(torch.from_numpy(np.array(r)) for r in a)).numpy()
    out = jax.ShapeDtypeStruct(x.shape, x.dtype)
    return jax.pure_callback(host, out, x, t[:, None], s[:, None])

  noise = start().astype(np.float32)
  for steps in (1, 4):
    expected = theirs(u, torch.from_numpy(noise), steps, 5.0)
    got = sample(called, jnp.asarray(noise), timesteps(steps, shift=5.0), solver="flow_map")
    np.testing.assert_allclose(got, expected, atol=1e-4)
    assert np.abs(expected - noise).max() > 0.1


def test_the_training_target_is_theirs():
  """`(eps - x0) - (t - r) du/dt`, du/dt by torch.func.jvp and by their difference of 5 / 1000."""
  seen = []

  def network(params, x, t, cond, *, s):
    jax.debug.callback(lambda *a: seen.append([np.array(r, np.float64) for r in a]), x, t, s)
    wide = lambda r: r.reshape(-1, 1, 1, 1, 1)
    return average(x, wide(t), wide(s), FLOAT32)

  x0 = jnp.asarray(start(), jnp.float32)
  objective = mean_flow(network, equal=0.0, power=0.0)
  loss, _ = objective.loss["model"](0.0, {}, {}, Batch(x0), jax.random.key(0), 0)
  jax.effects_barrier()
  x, t, s = seen[0]
  t, s = (torch.from_numpy(r).reshape(-1, 1, 1, 1, 1) for r in (t, s))
  x, x0 = torch.from_numpy(x), torch.from_numpy(np.array(x0, np.float64))
  v = (x - x0) / t
  u = lambda x, t: average(x, t, s, torch)
  value, exact = torch.func.jvp(u, (x, t), (v, torch.ones_like(t)))
  d = 5 / 1000
  central = (u(x + d * v, t + d) - u(x - d * v, t - d)) / (2 * d)
  for change, rtol in ((exact, 1e-4), (central, 1e-3)):
    target = v - (t - s) * change
    np.testing.assert_allclose(loss, ((value - target) ** 2).mean(), rtol=rtol)
  assert abs(float(((value - v) ** 2).mean()) / float(loss) - 1) > 0.05


class FLOAT32:
  """jax.numpy with the shared weight in float32, as strict promotion asks."""

  tanh, sin = jnp.tanh, jnp.sin
  asarray = staticmethod(lambda a: jnp.asarray(a, jnp.float32))
