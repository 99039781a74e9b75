"""From a config to the things a run is made of: objective, networks, optimizers, data."""

import copy
import dataclasses
import functools
from collections.abc import Callable
from typing import Any

import flax.linen as nn
import jax

from experiments.batches import fit_to_data, holds_latents, make_loader
from experiments.flags import check_keys
from experiments.frozen import (
  BASE,
  adapter,
  load_onto,
  lora_of,
  references_of,
  share,
)
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
from experiments.objectives import forced, make_objective, null_of
from vidstep import losses
from vidstep.losses.long_tuning import LONGEST
from vidstep.models.codec import load_codec
from vidstep.models.critics import critic_fn
from vidstep.training.optim import adamw, parse_ema
from vidstep.training.pretrained import is_pretrained
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
    fresh: role -> key -> fresh weights, or low-rank factors.
    optimizers: role -> `Optimizer`.
    emas: role -> EMA decay, or None.
    references: frozen network -> reference that names a step. The base of a role that trains
      low-rank factors is one as well, "<role>.base".
    frozen: shapes of the frozen networks, by name: each network once, whoever shares it.
    adapters: role -> (factors, frozen) -> weights of its network, for roles with low-rank factors.
    codec: video <-> latents; None for data of latents.
    loader: the training data, at its beginning; None if it was not opened.
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
  frozen: dict[str, Any]
  adapters: dict[str, Callable]
  codec: Any
  loader: Any
  prepare: Callable
  example: losses.Batch
  init: Callable


def build(config, mesh=None, *, data=True):
  """Builds everything but the weights.

  Args:
    config: a `ConfigDict`, or the plain dict of an earlier run.
    mesh: the devices that share the work; None for one.
    data: False opens neither data nor earlier runs nor weights: shapes follow from the config
      (`data.latent_size`, `model`, `nets.<name>.model`), for data of latents.

  Returns:
    A `Setup`.

  Raises:
    ValueError, FileNotFoundError: for what does not exist or does not fit, one sentence each.
  """
  config = copy.deepcopy(config if isinstance(config, dict) else config.to_dict())
  check_keys(config)
  config["causal"] = dict.fromkeys(CAUSAL) | config.get("causal", {})
  codec = None if holds_latents(config["data"]) else load_codec(config["data"]["codec"])
  loader = make_loader(config, mesh=mesh) if data else None
  prepare, example = fit_to_data(config, codec, loader)

  velocities = {}
  objective = make_objective(forced(config), velocities, null_of(config, loader))
  names = (*objective.roles, *objective.frozen)
  for name in config["nets"]:
    if name not in names:
      raise ValueError(
        f"nets.{name} is no network of this objective, which has {', '.join(names)}."
      )
  references = references_of(config, objective, resolve=data)
  runs = {n: r for n, r in references.items() if data and not is_pretrained(r)}
  networks = [name for name in names if name != "critic"]
  of = {name: runs.get(name) if name in objective.frozen else None for name in networks}
  models = {name: make_model(config, name, mesh, of=of[name]) for name in networks}
  causal = {name: causal_of(config, name, models[name], of=of[name]) for name in networks}
  if mesh is not None:
    check_mesh(config, mesh, causal, example)
  velocities |= {name: way.velocity for name, way in causal.items()}
  velocities["velocity"] = velocities[objective.roles[0]]
  frames = config["data"]["context"] + example.x0.shape[1]
  own = causal[objective.roles[0]]
  if own.chunk is not None:
    velocities["rollout"] = own.rollout(frames)
  fresh = {n: functools.partial(init_params, models[n], example=example) for n in models}
  shapes = {name: jax.eval_shape(new, jax.random.key(0)) for name, new in fresh.items()}
  if config["objective"]["name"] == "long_tuning":
    longest = config["objective"].get("longest", LONGEST)
    blank, velocities["extend"] = own.extension(longest, frames)
    velocities["blank"] = functools.partial(blank, shapes[objective.roles[0]], example)
  if "critic" in objective.roles:
    host, features = critic_features(config, causal)
    models["critic"] = make_critic(config)
    velocities |= {f"{host}_features": features, "critic": critic_fn(models["critic"])}
    fresh["critic"] = functools.partial(
      init_critic, models["critic"], features=features, host=models[host], example=example
    )

  frozen, held = share(config, references, shapes)
  adapters = {}
  for role in networks:
    if lora := lora_of(config, role):
      adapters[role] = adapter(lora, held[role + BASE])
      fresh[role] = functools.partial(lora.init, params=shapes[role])

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
    config, objective, models, velocities, fresh, optimizers, emas, references, frozen, adapters,
    codec, loader, prepare, example, init,
  )  # fmt: skip


def load_initial(setup, spread=None):
  """Weights that roles start from, by role; roles without `init` are absent.

  Args:
    setup: a `Setup`.
    spread: tree of shapes -> tree of shardings to load onto; None: the first device.

  Raises:
    ValueError: if the network there has another architecture than the role.
  """
  weights = {}
  for role in setup.objective.roles:
    reference = setup.config["nets"].get(role, {}).get("init")
    if reference and role not in setup.adapters:
      like = jax.eval_shape(setup.fresh[role], jax.random.key(0))
      weights[role] = load_onto(reference, setup.models[role], like, spread)
  return weights


def _optimizer(setting, updates):
  setting["steps"] = setting["steps"] or updates
  return adamw(clip=setting.pop("clip") or None, **setting)
