"""A training step gives the same numbers on one device and on eight, however they are arranged."""

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from vidstep.losses import Batch, flow_matching
from vidstep.parallel.mesh import make_mesh
from vidstep.parallel.sharding import batch_sharding, replicated, state_sharding
from vidstep.training.optim import adamw, parse_ema
from vidstep.training.state import init_state
from vidstep.training.step import make_step

WIDTH = 64


def network(params, x, t, cond):
  """A small network of x [B, 2, 2, 2, 4], t [B] and cond [B, 32]."""
  flat = jnp.concatenate([x.reshape(x.shape[0], -1), cond], 1)
  hidden = jnp.tanh(flat @ params["in"] + t[:, None] * params["time"][None])
  return (hidden @ params["out"]).reshape(x.shape)


def run(mesh, preset="fsdp", accumulate=1):
  """Three steps with noise, clipping and an EMA; returns numbers and shardings of the weights."""
  rng = np.random.default_rng(0)
  draw = lambda *shape: jnp.asarray(rng.normal(size=shape) / 8, jnp.float32)
  params = {"in": draw(WIDTH, WIDTH), "time": draw(WIDTH), "out": draw(WIDTH, 32)}
  objective = flow_matching(network, drop=0.3, unconditional=jnp.zeros_like)
  optimizers, emas = {"model": adamw(1e-2, clip=0.1)}, {"model": parse_ema("power:0.1")}
  state = init_state({"model": params}, optimizers, emas, {}, jax.random.key(1))
  shardings, by_sample = state_sharding(state, mesh, preset), batch_sharding(mesh)
  step = make_step(objective, optimizers, emas, ("model",), accumulate=accumulate)
  step = jax.jit(
    step,
    in_shardings=(shardings, replicated(mesh), by_sample),
    out_shardings=(shardings, replicated(mesh)),
    donate_argnums=0,
  )
  state = jax.device_put(state, shardings)
  losses = []
  for _ in range(3):
    batch = jax.device_put(Batch(draw(16, 2, 2, 2, 4), draw(16, 32)), by_sample)
    state, metrics = step(state, {}, batch)
    losses.append(metrics["model/loss"])
  net = state.nets["model"]
  return jax.device_get((net.params, net.ema, losses)), net.params["in"].sharding.spec


@pytest.fixture(scope="module")
def one():
  return run(make_mesh(devices=jax.devices()[:1]))[0]


@pytest.mark.parametrize(
  ("sizes", "preset"), [((8, 1), "fsdp"), ((2, 4), "fsdp"), ((1, 8), "replicated")]
)
def test_eight_devices_give_the_numbers_of_one(one, sizes, preset):
  eight, spec = run(make_mesh(*sizes), preset)
  chex.assert_trees_all_close(eight, one, rtol=1e-5, atol=1e-6)
  spread = sizes[1] > 1 and preset == "fsdp"
  assert spec == jax.sharding.PartitionSpec(*((None, "fsdp") if spread else ()))


def test_accumulation_is_the_same_on_any_mesh():
  alone = run(make_mesh(devices=jax.devices()[:1]), accumulate=2)[0]
  eight = run(make_mesh(4, 2), accumulate=2)[0]
  chex.assert_trees_all_close(eight, alone, rtol=1e-5, atol=1e-6)
