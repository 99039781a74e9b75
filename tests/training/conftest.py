"""A toy with two roles whose gradients are known by hand."""

import types

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from vidstep.losses import Batch, Objective
from vidstep.training.optim import adamw, parse_ema
from vidstep.training.state import init_state


def _loss(mine, other):
  """`mean_b |w x_b - c|^2 / 2 + |b - other.b|^2 / 2` in the role's own w [2, 3] and b [3]."""

  def loss(trainable, nets, aux, batch, key, step):
    error = trainable["w"][None] * batch.x0 - nets["teacher"]["c"]
    drift = trainable["b"] - nets[f"{other}.ema"]["b"]
    value = 0.5 * jnp.mean(jnp.sum(error**2, (1, 2))) + 0.5 * jnp.sum(drift**2)
    draw = jax.random.normal(key)
    # Reading every network under its own name must not open a second path for gradients.
    value = value + 0.0 * sum(jnp.sum(nets[name]["w"]) for name in (mine, other))
    metrics = {"draw": draw, "step": step.astype(jnp.float32)}
    return value, (metrics, {"calls": aux["calls"] + 1})

  return loss


@pytest.fixture
def toy():
  """Objective (roles a and b, b every second step), optimizers, EMAs, state, frozen, batch."""
  rng = np.random.default_rng(0)
  draw = lambda *shape: jnp.asarray(rng.normal(size=shape), jnp.float32)
  objective = Objective(
    roles=("a", "b"),
    loss={"a": _loss("a", "b"), "b": _loss("b", "a")},
    due=lambda step: ("a",) if step % 2 else ("a", "b"),
    init_aux=lambda: {"calls": jnp.int32(0)},
    frozen=("teacher",),
  )
  settings = {
    "a": {"lr": 0.1, "warmup": 3, "weight_decay": 0.2, "clip": 0.7},
    "b": {"lr": 0.05, "b1": 0.0, "b2": 0.95},
  }
  optimizers = {role: adamw(**s) for role, s in settings.items()}
  emas = {"a": parse_ema("power:0.1"), "b": parse_ema("none")}
  params = {role: {"w": draw(2, 3), "b": draw(3)} for role in "ab"}
  state = init_state(params, optimizers, emas, objective.init_aux(), jax.random.key(3))
  return types.SimpleNamespace(
    objective=objective,
    settings=settings,
    optimizers=optimizers,
    emas=emas,
    state=state,
    frozen={"teacher": {"c": jnp.ones((1, 1, 1))}},
    batch=Batch(x0=draw(8, 2, 3)),
  )
