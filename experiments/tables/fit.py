"""Trains an objective on analytic videos: one compiled scan, all seeds at once."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from vidstep.losses import Batch

EMA = 0.99  # of the average that looks keep, and that objectives may read


class Fitted(NamedTuple):
  """What training leaves.

  Attributes:
    nets: name -> final weights.
    history: the first role's weights at each look, leading axis [looks]; None without looks.
    finite: whether the first role's weights are.
  """

  nets: Any
  history: Any
  finite: Any


def fit(objective, nets, data, *, steps, rates, key, batch=256, b1=0.9, looks=0, condition=None):
  """Trains all roles of an objective with Adam, rates falling to 0 as a cosine.

  Args:
    objective: the `Objective`, its schedule included.
    nets: name -> weights at the start.
    data: [N, F, H, W, C] clips to draw batches from.
    steps: steps of the schedule `objective.due`.
    rates: role -> first learning rate.
    key: of everything drawn.
    batch: clips a step.
    b1: Adam's momentum.
    looks: how often, evenly, the first role's weights are kept; with looks the rates stay constant,
      since a schedule that ends would be part of the speed.
    condition: clips -> `Batch`; by default the clips without condition.

  Returns:
    A `Fitted`. Pure: compile it, map it over keys, networks and data.
  """
  first = objective.roles[0]
  condition = condition or Batch
  plan = [objective.due(step) for step in range(steps)]
  optimizers = {}
  for role in objective.roles:
    count = max(sum(role in roles for roles in plan), 1)
    rate = rates[role] if looks else optax.cosine_decay_schedule(rates[role], count)
    optimizers[role] = optax.adam(rate, b1=b1, b2=0.99)
  kinds = sorted(set(plan))

  def update(roles):
    def apply(carry, now):
      nets, opts, aux = carry
      key, step = now
      at_key, key = jax.random.split(key)
      clips = condition(data[jax.random.randint(at_key, (batch,), 0, len(data))])
      new_nets, new_opts = dict(nets), dict(opts)
      for i, role in enumerate(roles):
        grads, (_, aux) = jax.grad(objective.loss[role], has_aux=True)(
          nets[role], nets, aux, clips, jax.random.fold_in(key, i), step
        )
        with jax.numpy_dtype_promotion("standard"):
          change, new_opts[role] = optimizers[role].update(grads, opts[role])
        new_nets[role] = optax.apply_updates(nets[role], change)
        new_nets[f"{role}.ema"] = jax.tree.map(
          lambda e, p: EMA * e + (1 - EMA) * p, nets[f"{role}.ema"], new_nets[role]
        )
      return new_nets, new_opts, aux

    return apply

  branches = [update(roles) for roles in kinds]

  def one(carry, now):
    which, *now = now
    if len(branches) == 1:
      return branches[0](carry, now), None
    return jax.lax.switch(which, branches, carry, now), None

  nets = dict(nets) | {f"{role}.ema": nets[role] for role in objective.roles}
  opts = {role: optimizers[role].init(nets[role]) for role in objective.roles}
  which = jnp.asarray([kinds.index(roles) for roles in plan], jnp.int32)
  inputs = (which, jax.random.split(key, steps), jnp.arange(steps, dtype=jnp.int32))
  carry, history = (nets, opts, objective.init_aux()), None
  if looks:
    inputs = jax.tree.map(lambda a: a.reshape(looks, -1, *a.shape[1:]), inputs)

    def stretch(carry, part):
      carry, _ = jax.lax.scan(one, carry, part)
      return carry, carry[0][f"{first}.ema"]

    carry, history = jax.lax.scan(stretch, carry, inputs)
  else:
    carry, _ = jax.lax.scan(one, carry, inputs)
  finite = jnp.stack([jnp.isfinite(a).all() for a in jax.tree.leaves(carry[0][first])]).all()
  return Fitted(carry[0], history, finite)
