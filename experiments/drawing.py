"""Sampling a network as a pure function: a whole clip, or chunk after chunk."""

import jax
import jax.numpy as jnp

from experiments.networks import causal_of
from experiments.objectives import null_of
from vidstep import samplers
from vidstep.causal.rollout import rollout
from vidstep.models.cond import null_cond


def make_sample_fn(setup):
  """Draws latents as the config's `eval` says.

  Returns:
    sample(params, batch, key) -> latents [B, F, h, w, C] of all frames, the context included;
    `params` are the first role's, `batch` a prepared `Batch`. Pure.
  """
  settings, role = setup.config["eval"], setup.objective.roles[0]
  steps, few = settings["steps"], tuple(settings["times"])
  shifted = lambda: samplers.timesteps(steps, shift=settings["shift"])
  model = setup.models[role]
  if whole := getattr(model.attention, "whole", None):  # few samples: all of them everywhere
    model = model.clone(attention=whole())
  draw = make_draw(
    causal_of(setup.config, role, model),
    samplers.timestep_list(few, steps) if few else shifted(),
    first_times=settings.get("first_times", ()),
    solver=settings["solver"],
    guidance=settings["guidance"],
    null=null_of(setup.config, setup.loader),
  )
  return lambda params, batch, key: behind_context(batch, draw(params, batch, key))


def behind_context(batch, x):
  """Frames x [B, F, h, w, C] behind the context of a batch, if it has one."""
  context = batch.cond.context
  return x if context is None else jnp.concatenate([context, x], axis=1)


def make_draw(way, times, *, first_times=(), solver, guidance, null=null_cond):
  """Sampling as a pure function.

  Args:
    way: the `Causal` of the network. If it has chunks, they come one after the other, see
      `rollout`; else the whole clip at once.
    times: of the solver, the final 0 included; of every chunk, if the network is causal.
    first_times: intermediate times of the first chunk, if they differ.
    solver: name in `samplers.SOLVERS`.
    guidance: weight; 1 is none.
    null: cond -> cond, what guidance compares with.

  Returns:
    draw(params, batch, key) -> latents [B, F, H, W, C] of the frames after the context.
  """
  velocity = way.velocity
  first = samplers.timestep_list(first_times)[:-1].tolist() if first_times else ()

  def draw(params, batch, key):
    noise_key, key = jax.random.split(key)
    noise = jax.random.normal(noise_key, batch.x0.shape)
    if way.chunk is None:
      given = lambda cond: lambda x, t, **s: velocity(params, x, t, cond, **s)
      other = batch.cond if guidance == 1 else null(batch.cond)
      field = samplers.guided(given(batch.cond), given(other), guidance)
      return samplers.sample(field, noise, times, solver=solver, key=key)
    context = batch.cond.context
    network = way.network(noise.shape[1] + (0 if context is None else context.shape[1]))
    how = {"times": times[:-1].tolist(), "first_times": first, "context": way.context}
    how |= {"solver": solver, "guidance": guidance, "unconditional": null, "chunk": way.chunk}
    return rollout(network, params, noise, batch.cond, key, **how)[0]

  return draw
