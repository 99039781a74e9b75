"""Small videos that a small network learns in seconds, trained by the real step: real histories."""

import functools

import jax
import jax.numpy as jnp
import numpy as np

from vidstep import samplers
from vidstep.losses import Batch
from vidstep.training.optim import adamw, parse_ema
from vidstep.training.probe import probe
from vidstep.training.state import all_networks, init_state
from vidstep.training.step import make_step

SHAPE, DIM, CONDS = (3, 2, 2, 3), 36, 2
WIDTH, BATCH = 64, 64
CLIPS, SEEDS = 6, 4  # of a probe


def videos(seed, n):
  """n videos around a mean that depends on the condition, with two modes along four directions."""
  fixed, rng = np.random.default_rng(0), np.random.default_rng(seed)
  means, modes = 0.25 * fixed.normal(size=(CONDS, DIM)), 0.2 * fixed.normal(size=(4, DIM))
  cond = rng.normal(size=(n, CONDS))
  latent = rng.choice([-1.0, 1.0], size=(n, 4)) * rng.uniform(0.5, 1.2, size=(n, 4))
  x = 0.9 * np.tanh(cond @ means + latent @ modes + 0.02 * rng.normal(size=(n, DIM)))
  return jnp.float32(x.reshape(n, *SHAPE)), jnp.float32(cond)


def init(seed, scale=0.0):
  """Weights of `velocity`; the last layer is `scale` times random."""
  rng = np.random.default_rng(seed)
  inputs = DIM + CONDS + 3
  draw = lambda a, b, s: jnp.float32(s * rng.normal(size=(a, b)))
  return {
    "in": draw(inputs, WIDTH, inputs**-0.5),
    "hidden": draw(WIDTH, WIDTH, WIDTH**-0.5),
    "out": draw(WIDTH, DIM, scale),
    "skip": jnp.zeros((DIM, DIM)),
  }


def velocity(params, x, t, cond):
  flat, t = x.reshape(len(x), -1), t[:, None]
  h = jnp.concatenate([flat, cond, t, jnp.cos(3 * t), t**2], axis=1)
  h = jax.nn.gelu(jax.nn.gelu(h @ params["in"]) @ params["hidden"])
  return (h @ params["out"] + flat @ params["skip"]).reshape(x.shape)


def x0_velocity(params, x, t, cond):
  """The same network predicting x0: with it, a constant is a consistency function but for t = 0."""
  return (x - velocity(params, x, t, cond)) / jnp.maximum(t, 1e-3)[:, None, None, None, None]


@functools.partial(jax.jit, static_argnums=(0, 1))
def draw(velocity, steps, params, cond):
  """SEEDS samples of each condition by Euler steps; one is what a student does."""
  cond = jnp.tile(cond, (SEEDS, 1))
  noise = jax.random.normal(jax.random.key(5), (len(cond), *SHAPE))
  field = lambda x, t: velocity(params, x, t, cond)
  return jnp.clip(samplers.sample(field, noise, samplers.timesteps(steps)), -1, 1)


@functools.cache
def pieces(objective, rates, b1):
  """Optimizers and EMAs of all roles."""
  optimizers = {role: adamw(rate, b1=b1, warmup=20, b2=0.99) for role, rate in rates}
  return optimizers, {role: parse_ema("constant:0.98") for role in objective.roles}


@functools.cache
def compiled(objective, rates, b1, roles):
  """The step: compiled once for runs that differ in their schedule only."""
  return jax.jit(make_step(objective, *pieces(objective, rates, b1), roles))


def train(
  objective, start, rates, *, steps, every, frozen=None, velocity=velocity, b1=0.9, due=None
):
  """Trains all roles from `start`.

  Args:
    objective: the `Objective`.
    start: weights of every role.
    rates: role -> learning rate.
    steps: number of steps; the run ends early at one that is not finite.
    every: steps between probes.
    frozen: name -> weights of frozen networks.
    velocity: of the role that is sampled.
    b1: Adam's momentum.
    due: step -> roles, instead of the objective's.

  Returns:
    (rows as in metrics.jsonl, averaged weights of the first role).
  """
  frozen, due, rates = frozen or {}, due or objective.due, tuple(rates.items())
  nets, aux = dict.fromkeys(objective.roles, start), objective.init_aux()
  state = init_state(nets, *pieces(objective, rates, b1), aux, jax.random.key(0))
  (x0, cond), (real, asked), rows = videos(1, 2048), videos(2, CLIPS), []
  for number in range(1, steps + 1):
    at = slice(number * BATCH % 1984, number * BATCH % 1984 + BATCH)
    step = compiled(objective, rates, b1, due(number - 1))
    state, metrics = step(state, frozen, Batch(x0[at], cond[at]))
    metrics = {name: float(value) for name, value in jax.device_get(metrics).items()}
    average = all_networks(state, frozen)[f"{objective.roles[0]}.ema"]
    if number == 1 or number % every == 0:
      drawn = np.asarray(draw(velocity, 1 if objective.frozen else 8, average, asked))
      metrics |= probe(real, drawn.reshape(SEEDS, CLIPS, *SHAPE))
    rows.append({"step": number, **metrics})
    if not np.isfinite(list(metrics.values())).all():
      break
  return rows, average
