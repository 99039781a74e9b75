"""The training state: one pytree that holds everything a step reads and writes."""

from typing import Any

import flax.struct
import jax
import jax.numpy as jnp


@flax.struct.dataclass
class Net:
  """One trained role.

  Attributes:
    params: the weights.
    ema: their exponential moving average; None when the role keeps none.
    opt: optimizer state.
    count: int32, how often this role has been updated. Clock of its schedule and of its EMA.
  """

  params: Any
  ema: Any
  opt: Any
  count: jax.Array


@flax.struct.dataclass
class State:
  """Everything a run carries from step to step.

  Attributes:
    step: int32, finished steps.
    nets: role -> `Net`.
    aux: what the objective carries (histograms, curricula, buffers).
    key: the run's PRNG key. Never changes: step i draws from `fold_in(key, i)`.
  """

  step: jax.Array
  nets: dict[str, Net]
  aux: Any
  key: jax.Array


def init_state(params, optimizers, emas, aux, key):
  """The state before the first step.

  Args:
    params: role -> initial weights.
    optimizers: role -> `Optimizer`.
    emas: role -> EMA decay function, or None for a role without EMA.
    aux: the objective's initial aux.
    key: the run's PRNG key.

  Returns:
    A `State` at step 0, each EMA starting at (a copy of) the weights.
  """
  nets = {}
  for role, weights in params.items():
    ema = None if emas[role] is None else jax.tree.map(jnp.copy, weights)
    nets[role] = Net(weights, ema, optimizers[role].init(weights), jnp.int32(0))
  return State(jnp.int32(0), nets, aux, key)


def all_networks(state, frozen, adapters=None):
  """What an objective may look at, by name: roles, `role.ema` and frozen networks.

  A role without EMA answers to `role.ema` with its current weights (an EMA of decay 0).

  Args:
    state: a `State`.
    frozen: name -> weights of frozen networks.
    adapters: role -> (trained weights, frozen) -> weights of its network, of the roles that train
      something else than their network: low-rank factors.
  """
  nets = dict(frozen)
  for role, net in state.nets.items():
    nets[role] = whole(role, net.params, frozen, adapters)
    nets[f"{role}.ema"] = averaged(role, net, frozen, adapters)
  return nets


def averaged(role, net, frozen, adapters):
  """The network of a role from its moving average; the current one of a role that keeps none."""
  return whole(role, net.params if net.ema is None else net.ema, frozen, adapters)


def whole(role, weights, frozen, adapters):
  """The network of a role from what is trained of it; `adapters` as in `all_networks`."""
  adapt = (adapters or {}).get(role)
  return weights if adapt is None else adapt(weights, frozen)
