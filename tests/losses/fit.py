"""Trains any objective on toy videos with Adam, all roles in one compiled scan."""

import jax
import jax.numpy as jnp
import optax

from vidstep.losses import Batch

# For programs that run once or twice: compiled in half the time, run in a third more.
QUICK = {"xla_backend_optimization_level": 0}


def fit(objective, nets, x0, *, steps, rates, batch=256, b1=0.9, seed=0):
  """Final networks after `steps` steps, each role at its learning rate, falling to 0 as a cosine.

  Args:
    objective: the `Objective`, its schedule included.
    nets: name -> parameters, at the start.
    x0: [N, F, H, W, C] data.
    steps: number of steps.
    rates: role -> first learning rate.
    batch: samples a step.
    b1: Adam's momentum.
    seed: of everything drawn.
  """
  updates = {r: sum(r in objective.due(step) for step in range(steps)) for r in objective.roles}
  tx = {
    role: optax.adam(optax.cosine_decay_schedule(rates[role], updates[role]), b1=b1, b2=0.99)
    for role in objective.roles
  }
  plans = sorted({objective.due(step) for step in range(steps)})
  which = jnp.asarray([plans.index(objective.due(step)) for step in range(steps)], jnp.int32)

  def update(roles):
    def apply(nets, opts, aux, key, step):
      at_key, key = jax.random.split(key)
      at = jax.random.randint(at_key, (), 0, len(x0) - batch, jnp.int32)
      data = Batch(jax.lax.dynamic_slice_in_dim(x0, at, batch))
      new_nets, new_opts = dict(nets), dict(opts)
      for role in roles:
        grads, (_, aux) = jax.grad(objective.loss[role], has_aux=True)(
          nets[role], nets, aux, data, key, step
        )
        with jax.numpy_dtype_promotion("standard"):
          change, new_opts[role] = tx[role].update(grads, opts[role])
        new_nets[role] = optax.apply_updates(nets[role], change)
      return new_nets, new_opts, aux

    return apply

  def one(carry, now):
    key, plan, step = now
    return jax.lax.switch(plan, [update(roles) for roles in plans], *carry, key, step), None

  opts = {role: tx[role].init(nets[role]) for role in objective.roles}
  keys = jax.random.split(jax.random.key(seed), steps)
  inputs = (keys, which, jnp.arange(steps, dtype=jnp.int32))
  run = jax.jit(lambda carry: jax.lax.scan(one, carry, inputs)[0])
  return run((nets, opts, objective.init_aux()))[0]
