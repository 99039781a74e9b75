"""From a config to the things a run is made of: objective, networks, optimizers, data."""

import copy
import dataclasses
import functools
from collections.abc import Callable
from typing import Any

import flax.linen as nn
import jax

from experiments.batches import fit_to_data, make_loader
from experiments.flags import check_keys
from experiments.networks import (
  CAUSAL,
  causal_of,
  check_mesh,
  critic_features,
  init_critic,
  init_params,
  make_critic,
  make_model,
  overridden,
)
from experiments.objectives import forced, make_objective
from vidstep import losses
from vidstep.losses.long_tuning import LONGEST
from vidstep.models.codec import load_codec
from vidstep.models.critics import critic_fn
from vidstep.training.checkpoint import (
  load_network,
  parse_reference,
  read_config,
  resolve_reference,
)
from vidstep.training.optim import adamw, parse_ema
from vidstep.training.state import init_state


@dataclasses.dataclass(frozen=True)
class Setup:
  """What `build` makes of a config.

  Attributes:
    config: the resolved config, a plain dict: what follows from codec and data is filled in.
    objective: the `Objective`.
    models: network name -> `VideoDiT` (or `Critic`), for roles and frozen networks.
    velocities: what the objective's positional arguments are: network name -> velocity(params, x,
      t, cond), and for an adversarial one the features and the critic.
    fresh: role -> key -> fresh weights.
    optimizers: role -> `Optimizer`.
    emas: role -> EMA decay, or None.
    references: frozen network -> reference that names a step.
    codec: video <-> latents.
    loader: the training data, at its beginning.
    prepare: loader batch -> `Batch`; pure, to be compiled onto the mesh.
    example: shapes of one prepared batch.
    init: (key, {role: weights to start from}) -> `State`; pure, to be compiled onto the mesh.
  """

  config: dict[str, Any]
  objective: losses.Objective
  models: dict[str, nn.Module]
  velocities: dict[str, Callable]
  fresh: dict[str, Callable]
  optimizers: dict[str, Any]
  emas: dict[str, Any]
  references: dict[str, str]
  codec: Any
  loader: Any
  prepare: Callable
  example: losses.Batch
  init: Callable


def build(config, mesh=None):
  """Builds everything but the weights.

  Args:
    config: a `ConfigDict`, or the plain dict of an earlier run.
    mesh: the devices that share the work; None for one.

  Returns:
    A `Setup`.

  Raises:
    ValueError, FileNotFoundError: for what does not exist or does not fit, one sentence each.
  """
  config = copy.deepcopy(config if isinstance(config, dict) else config.to_dict())
  check_keys(config)
  config["causal"] = dict.fromkeys(CAUSAL) | config.get("causal", {})
  codec, loader = load_codec(config["data"]["codec"]), make_loader(config)
  prepare, example = fit_to_data(config, codec, loader)

  velocities = {}
  objective = make_objective(forced(config), velocities)
  names = (*objective.roles, *objective.frozen)
  for name in config["nets"]:
    if name not in names:
      raise ValueError(
        f"nets.{name} is no network of this objective, which has {', '.join(names)}."
      )
  references = {name: _reference(config, name) for name in objective.frozen}
  networks = [role for role in objective.roles if role != "critic"]
  models = {role: make_model(config, role, mesh) for role in networks}
  causal = {role: causal_of(config, role, models[role]) for role in networks}
  for name, reference in references.items():
    models[name] = make_model(read_config(reference), parse_reference(reference)[1], mesh)
    causal[name] = causal_of(config, name, models[name], of=reference)
  if mesh is not None:
    check_mesh(config, mesh, causal, example)
  velocities |= {name: way.velocity for name, way in causal.items()}
  velocities["velocity"] = velocities[objective.roles[0]]
  frames = config["data"]["context"] + example.x0.shape[1]
  own = causal[objective.roles[0]]
  if own.chunk is not None:
    velocities["rollout"] = own.rollout(frames)
  fresh = {role: functools.partial(init_params, models[role], example=example) for role in networks}
  if config["objective"]["name"] == "long_tuning":
    longest = config["objective"].get("longest", LONGEST)
    blank, velocities["extend"] = own.extension(longest, frames)
    shapes = jax.eval_shape(fresh[objective.roles[0]], jax.random.key(0))
    velocities["blank"] = functools.partial(blank, shapes, example)
  if "critic" in objective.roles:
    host, features = critic_features(config, models, causal)
    models["critic"] = make_critic(config)
    velocities |= {f"{host}_features": features, "critic": critic_fn(models["critic"])}
    fresh["critic"] = functools.partial(
      init_critic, models["critic"], features=features, host=models[host], example=example
    )

  settings = {role: overridden(config, role, "optim") for role in objective.roles}
  emas = {role: parse_ema(setting.pop("ema")) for role, setting in settings.items()}
  steps = config["train"]["steps"]
  updates = {r: sum(r in objective.due(step) for step in range(steps)) for r in objective.roles}
  optimizers = {role: _optimizer(setting, updates[role]) for role, setting in settings.items()}

  def init(key, weights):
    new = lambda i, role: fresh[role](jax.random.fold_in(key, i))
    params = {r: weights[r] if r in weights else new(i, r) for i, r in enumerate(objective.roles)}
    return init_state(params, optimizers, emas, objective.init_aux(), key)

  return Setup(
    config, objective, models, velocities, fresh, optimizers, emas, references, codec, loader,
    prepare, example, init,
  )  # fmt: skip


def load_frozen(setup):
  """Weights of the frozen networks, by name."""
  return {name: load_network(reference)[1] for name, reference in setup.references.items()}


def load_initial(setup):
  """Weights that roles start from, by role; roles without `init` are absent.

  Raises:
    ValueError: if the network there has another architecture than the role.
  """
  weights = {}
  for role in setup.objective.roles:
    reference = setup.config["nets"].get(role, {}).get("init")
    if reference:
      like = jax.eval_shape(setup.fresh[role], jax.random.key(0))
      weights[role] = jax.device_get(load_network(reference, like=like)[1])  # to go to any mesh
  return weights


def _reference(config, name):
  reference = config["nets"].get(name, {}).get("init")
  if not reference:
    raise ValueError(
      f"This objective reads the frozen network {name!r}: "
      f"give --config.nets.{name}.init=workdir:role:ema, a run that was trained before."
    )
  return resolve_reference(reference)


def _optimizer(setting, updates):
  setting["steps"] = setting["steps"] or updates
  return adamw(clip=setting.pop("clip") or None, **setting)
