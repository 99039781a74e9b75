"""From a config to the things a run is made of: objective, optimizers, data, sampling."""

import copy
import dataclasses
import functools
import inspect
from collections.abc import Callable
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from experiments.flags import check_keys, unknown_key
from experiments.networks import (
  CAUSAL,
  causal_of,
  critic_features,
  init_critic,
  init_params,
  make_critic,
  make_model,
  overridden,
)
from vidstep import losses, paths, samplers
from vidstep.causal.rollout import rollout
from vidstep.data.loader import Loader
from vidstep.losses.flow_matching import bell
from vidstep.losses.long_tuning import LONGEST
from vidstep.models.codec import load_codec
from vidstep.models.cond import Cond, null_cond
from vidstep.models.critics import critic_fn
from vidstep.models.text import TextEncoder
from vidstep.training.checkpoint import (
  load_network,
  parse_reference,
  read_config,
  resolve_reference,
)
from vidstep.training.optim import adamw, parse_ema
from vidstep.training.state import init_state

ON_POLICY = ("self_forcing", "self_forcing_gan", "long_tuning")  # they learn on their own rollouts
TIMES = {"uniform": paths.Uniform, "lognormal": paths.LogNormal, "logitnormal": paths.LogitNormal}


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


def build(config):
  """Builds everything but the weights.

  Args:
    config: a `ConfigDict`, or the plain dict of an earlier run.

  Returns:
    A `Setup`.

  Raises:
    ValueError, FileNotFoundError: for what does not exist or does not fit, one sentence each.
  """
  config = copy.deepcopy(config if isinstance(config, dict) else config.to_dict())
  check_keys(config)
  config["causal"] = dict.fromkeys(CAUSAL) | config.get("causal", {})
  codec, loader = load_codec(config["data"]["codec"]), make_loader(config)
  prepare, example = _fit_to_data(config, codec, loader)

  velocities = {}
  objective = make_objective(_forced(config), velocities)
  names = (*objective.roles, *objective.frozen)
  for name in config["nets"]:
    if name not in names:
      raise ValueError(
        f"nets.{name} is no network of this objective, which has {', '.join(names)}."
      )
  references = {name: _reference(config, name) for name in objective.frozen}
  networks = [role for role in objective.roles if role != "critic"]
  models = {role: make_model(config, role) for role in networks}
  causal = {role: causal_of(config, role, models[role]) for role in networks}
  for name, reference in references.items():
    models[name] = make_model(read_config(reference), parse_reference(reference)[1])
    causal[name] = causal_of(config, name, models[name], of=reference)
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


# ------------------------------------------------------------------------------------------------
# Data
# ------------------------------------------------------------------------------------------------


def make_loader(config, split="train", batch_size=None):
  """This process's share of a split, as the config's `data` says.

  Args:
    config: the config as a dict.
    split: "train" (endless) or "test" (one pass).
    batch_size: over all processes; None takes data.batch_size.
  """
  data = config["data"]
  if not data["path"]:
    raise ValueError(
      'No data: give --config.data.path, a folder made by experiments.record or "synthetic".'
    )
  batch_size, count = batch_size or data["batch_size"], jax.process_count()
  if batch_size % count:
    raise ValueError(f"data.batch_size={batch_size} is not divided by {count} processes.")
  return Loader(
    data["path"],
    split,
    batch_size=batch_size // count,
    frames=data["frames"],
    seed=config["seed"],
    shard=(jax.process_index(), count),
    embed=text_encoder(data),
  )


def text_encoder(data):
  """What turns captions into embeddings, as the section `data` of a config says; None: nothing."""
  return _encoder(data["text_tokens"]) if data.get("text") else None


_encoder = functools.cache(TextEncoder)


def _fit_to_data(config, codec, loader):
  """Fills in the sizes that follow from codec and data; returns prepare and the shapes it gives."""
  data, model = config["data"], config["model"]
  batch, frames, context = data["batch_size"], data["frames"], data["context"]
  if not 0 <= context < frames:
    raise ValueError(f"data.context={context} leaves nothing to generate of data.frames={frames}.")
  follows = {
    "in_channels": codec.channels,
    "out_channels": codec.channels,
    "action_dim": loader.num_actions,
  }
  for key, value in follows.items():
    model[key] = value if model[key] is None else model[key]
  shapes = {
    "video": jax.ShapeDtypeStruct((batch, frames, loader.size, loader.size, 3), jnp.uint8),
    "actions": jax.ShapeDtypeStruct((batch, frames, loader.num_actions), jnp.float32),
  }
  if data.get("text"):
    model["text_dim"], length = TextEncoder.dim, data["text_tokens"]
    shapes["text"] = jax.ShapeDtypeStruct((batch, length, TextEncoder.dim), jnp.float32)
    shapes["text_mask"] = jax.ShapeDtypeStruct((batch, length), bool)
  clean = config["causal"]["forcing"] == "teacher"
  prepare = make_prepare(codec, context, actions=model["action_dim"] > 0, clean=clean)
  return prepare, jax.eval_shape(prepare, shapes)


def make_prepare(codec, context, *, actions, clean=False):
  """Loader batches to objective batches.

  Args:
    codec: video [B, T, H, W, 3] in [-1, 1] -> latents [B, T, h, w, C].
    context: number of first frames that are given clean.
    actions: whether the network is told the actions.
    clean: whether the condition holds the clean video, for teacher forcing.

  Returns:
    prepare({"video": uint8 [B, T, H, W, 3], "actions": [B, T, A]}) -> `Batch` with x0 the frames
    after the context, cond.context those before, cond.actions of all T frames; "text" and
    "text_mask" of the batch, if it has them, are the condition's.
  """

  def prepare(batch):
    latents = codec.encode(batch["video"].astype(jnp.float32) / 127.5 - 1)
    x0 = latents[:, context:]
    cond = Cond(
      text=batch.get("text"),
      text_mask=batch.get("text_mask"),
      actions=batch["actions"] if actions else None,
      context=latents[:, :context] if context else None,
      clean=x0 if clean else None,
    )
    return losses.Batch(x0=x0, cond=cond)

  return prepare


# ------------------------------------------------------------------------------------------------
# Weights and optimizers
# ------------------------------------------------------------------------------------------------


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


# ------------------------------------------------------------------------------------------------
# Objective
# ------------------------------------------------------------------------------------------------


def _forced(config):
  """The section `objective`, with a time a chunk where `causal.forcing` is "diffusion"."""
  causal, section = config["causal"], dict(config["objective"])
  chunk, first, forcing = (causal[key] for key in ("chunk", "first", "forcing"))
  if forcing not in (None, "teacher", "diffusion"):
    raise ValueError(f'causal.forcing={forcing!r}: choose "teacher" or "diffusion".')
  if chunk is None and (first or forcing or section["name"] in ON_POLICY):
    raise ValueError("A causal network needs chunks: give --config.causal.chunk, frames in each.")
  if forcing == "diffusion":
    section["chunk"] = (first or chunk, chunk)
  return section


def make_objective(section, velocities):
  """The objective of a config section {"name": ..., keyword arguments}.

  Its positional arguments are velocity functions, "velocity" being that of the first role and
  "rollout" its generation chunk by chunk ("blank" and "extend" that of a video that goes on);
  "<network>_features" is what its blocks make of a video, "critic" the head over them. They are
  looked up in `velocities` when called, so the networks can be built once the roles are known.

  Raises:
    ValueError: for an unknown name or keyword, with the nearest that exists.
  """
  section = dict(section)
  name = section.pop("name")
  if name not in losses.OBJECTIVES:
    known = ", ".join(sorted(losses.OBJECTIVES))
    raise ValueError(f"Unknown objective {name!r}: there are {known}.")
  function = losses.OBJECTIVES[name]
  parameters = inspect.signature(function).parameters
  options = {k: p.default for k, p in parameters.items() if p.kind == p.KEYWORD_ONLY}
  for key in section:
    if key not in options:
      raise ValueError(unknown_key(f"objective.{key}", [f"objective.{k}" for k in options]))
  values = {k: parse_option(k, v, options[k]) for k, v in section.items()}
  if "unconditional" in options:
    values["unconditional"] = null_cond
  lazy = lambda who: lambda *args, **kwargs: velocities[who](*args, **kwargs)
  return function(*(lazy(k) for k in parameters if k not in options), **values)


def parse_option(key, value, default):
  """Turns the strings of a config into what an objective takes.

  "uniform", "uniform:5", "lognormal:-0.8,1.6" and "logitnormal:0,1" become time samplers where the
  default is one; "bell" a weight. Everything else is passed as it is.
  """
  if hasattr(default, "sample") and isinstance(value, str):
    name, _, numbers = value.partition(":")
    try:
      return TIMES[name](*(float(n) for n in numbers.split(",") if n))
    except (KeyError, TypeError, ValueError) as error:
      raise ValueError(
        f"objective.{key}={value!r} is no time sampler: write something such as uniform, "
        "uniform:5, lognormal:-0.8,1.6 or logitnormal:0,1."
      ) from error
  if key == "weight" and isinstance(value, str):
    if value != "bell":
      raise ValueError(f'objective.weight={value!r}: the only weight with a name is "bell".')
    return bell
  return value


# ------------------------------------------------------------------------------------------------
# Sampling while training
# ------------------------------------------------------------------------------------------------


def sample_batch(setup):
  """The first eval.videos clips of eval.split, prepared: the same ones throughout a run."""
  settings = setup.config["eval"]
  loader = Loader(
    setup.config["data"]["path"],
    settings["split"],
    batch_size=settings["videos"],
    frames=setup.config["data"]["frames"],
    seed=setup.config["seed"],
    embed=text_encoder(setup.config["data"]),
  )
  clips = next(iter(loader))
  return setup.prepare({name: value for name, value in clips.items() if name != "caption"})


def make_sample_fn(setup):
  """Draws videos as the config's `eval` says.

  Returns:
    sample(params, batch, key) -> (real, drawn), videos [B, T, H, W, 3] in [-1, 1] of all frames,
    the context included; `params` are the first role's, `batch` a prepared `Batch`. Pure.
  """
  settings, role = setup.config["eval"], setup.objective.roles[0]
  steps, few = settings["steps"], tuple(settings["times"])
  shifted = lambda: samplers.timesteps(steps, shift=settings["shift"])
  draw = make_draw(
    causal_of(setup.config, role, setup.models[role]),
    samplers.timestep_list(few, steps) if few else shifted(),
    first_times=settings.get("first_times", ()),
    solver=settings["solver"],
    guidance=settings["guidance"],
  )

  def sample(params, batch, key):
    drawn = draw(params, batch, key)
    context = [] if batch.cond.context is None else [batch.cond.context]
    whole = lambda x: setup.codec.decode(jnp.concatenate([*context, x], axis=1))
    return whole(batch.x0), whole(drawn)

  return sample


def make_draw(way, times, *, first_times=(), solver, guidance):
  """Sampling as a pure function.

  Args:
    way: the `Causal` of the network. If it has chunks, they come one after the other, see
      `rollout`; else the whole clip at once.
    times: of the solver, the final 0 included; of every chunk, if the network is causal.
    first_times: intermediate times of the first chunk, if they differ.
    solver: name in `samplers.SOLVERS`.
    guidance: weight; 1 is none.

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
      field = samplers.guided(given(batch.cond), given(null_cond(batch.cond)), guidance)
      return samplers.sample(field, noise, times, solver=solver, key=key)
    context = batch.cond.context
    network = way.network(noise.shape[1] + (0 if context is None else context.shape[1]))
    how = {"times": times[:-1].tolist(), "first_times": first, "context": way.context}
    how |= {"solver": solver, "guidance": guidance, "chunk": way.chunk}
    return rollout(network, params, noise, batch.cond, key, **how)[0]

  return draw
