"""One training step: gradients, clipping, optimizer and EMA of every due role, as one function."""

import jax
import jax.numpy as jnp
import optax

from vidstep.training.state import all_networks, whole


def make_step(objective, optimizers, emas, roles, *, accumulate=1, adapters=None):
  """Builds the step that updates `roles`; compile one for each set of due roles.

  Every role sees the networks as they were when the step began, so the order of roles matters only
  to `aux`, which is threaded through them. Role j of `objective.roles` draws from
  `k = fold_in(fold_in(key, step), j)`; with accumulation its microbatch m from `fold_in(k, m)`.

  With `accumulate` = A, microbatch m is samples m, m + A, m + 2A, ... (strided, so that a sharded
  batch stays where it is); gradients and metrics are averaged over them in one `lax.scan`.

  A step whose losses or gradients are not finite changes nothing: the returned state is the one
  that came in, so that the host can dump exactly what made it fail.

  Args:
    objective: the `Objective`.
    optimizers: role -> `Optimizer`.
    emas: role -> EMA decay function, or None.
    roles: the roles to update, a subset of `objective.roles`.
    accumulate: number of microbatches.
    adapters: role -> (trained weights, frozen) -> weights of its network, see `all_networks`: the
      objective sees networks, gradients are those of what is trained.

  Returns:
    step(state, frozen, batch) -> (state, metrics); `frozen` maps names to the weights of frozen
    networks; metrics are float32 scalars named "role/loss", "role/grad_norm", "role/lr", ...

  Raises:
    ValueError: if a role is unknown, none is due, or (when traced) `accumulate` does not divide
      the batch.
  """
  unknown = set(roles) - set(objective.roles)
  if unknown or not roles:
    raise ValueError(f"Roles to update {tuple(roles)} must be among {tuple(objective.roles)}.")

  def step(state, frozen, batch):
    nets = all_networks(state, frozen, adapters)
    key = jax.random.fold_in(state.key, state.step)
    updated, metrics, aux = dict(state.nets), {}, state.aux
    for role in roles:
      role_key = jax.random.fold_in(key, objective.roles.index(role))

      def loss(trainable, *rest, role=role):
        return objective.loss[role](whole(role, trainable, frozen, adapters), nets, *rest)

      grads, seen, aux = _gradients(
        loss, state.nets[role].params, aux, batch, role_key, state.step, accumulate
      )
      seen["grad_norm"] = optax.tree.norm(grads)
      seen["lr"] = optimizers[role].lr(state.nets[role].count)
      updated[role] = _update(state.nets[role], grads, optimizers[role], emas[role])
      metrics |= {f"{role}/{name}": value.astype(jnp.float32) for name, value in seen.items()}
    fine = jnp.all(
      jnp.stack([jnp.isfinite(metrics[f"{r}/{m}"]) for r in roles for m in ("loss", "grad_norm")])
    )
    new = state.replace(step=state.step + 1, nets=updated, aux=aux)
    return jax.tree.map(lambda a, b: jnp.where(fine, a, b), new, state), metrics

  return step


def _gradients(loss, weights, aux, batch, key, step, accumulate):
  """Mean gradient of `loss` in the role's own weights, metrics (with "loss") and new aux."""

  def one(aux, batch, key):
    def scalar(trainable):
      value, (metrics, new_aux) = loss(trainable, aux, batch, key, step)
      return value, (dict(metrics) | {"loss": value}, new_aux)

    grads, (metrics, aux) = jax.grad(scalar, has_aux=True)(weights)
    return grads, metrics, aux

  if accumulate == 1:
    return one(aux, batch, key)

  def body(carry, inputs):
    total, aux = carry
    index, part = inputs
    grads, metrics, aux = one(aux, part, jax.random.fold_in(key, index))
    return (jax.tree.map(jnp.add, total, grads), aux), metrics

  parts = jax.tree.map(lambda x: _microbatches(x, accumulate), batch)
  zeros = jax.tree.map(jnp.zeros_like, weights)
  (total, aux), metrics = jax.lax.scan(body, (zeros, aux), (jnp.arange(accumulate), parts))
  mean = lambda x: x / accumulate
  return jax.tree.map(mean, total), jax.tree.map(lambda x: jnp.mean(x, 0), metrics), aux


def _microbatches(x, parts):
  """[B, ...] -> [parts, B / parts, ...], strided."""
  if x.shape[0] % parts:
    raise ValueError(
      f"A batch of {x.shape[0]} cannot be cut into {parts} equal microbatches: "
      "change data.batch_size or train.accumulate."
    )
  return x.reshape((x.shape[0] // parts, parts, *x.shape[1:])).swapaxes(0, 1)


def _update(net, grads, optimizer, decay):
  """The role's network after one optimizer update and one EMA update."""
  updates, opt = optimizer.update(grads, net.opt, net.params)
  params = optax.apply_updates(net.params, updates)
  count = net.count + 1
  ema = net.ema
  if decay is not None:
    beta = decay(count)
    ema = jax.tree.map(lambda e, p: beta * e + (1 - beta) * p, ema, params)
  return net.replace(params=params, ema=ema, opt=opt, count=count)
