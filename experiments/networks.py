"""From a config to its networks: their modules, fresh weights, and how causal ones see a video."""

import dataclasses
import inspect

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from experiments.objectives import ON_POLICY
from vidstep import losses
from vidstep.causal.cached import TEACHER_FORCING, CachedNetwork
from vidstep.causal.extension import extension
from vidstep.causal.kv_cache import CachePolicy
from vidstep.causal.packed import PackedNetwork
from vidstep.causal.rollout import self_rollout
from vidstep.masks import Rule, Window, chunk_index
from vidstep.models.critics import Critic, features_fn
from vidstep.models.dit import VideoDiT
from vidstep.models.velocity import velocity_fn
from vidstep.parallel.attention import sharded_attention
from vidstep.parallel.checks import check_network, check_rules
from vidstep.training.checkpoint import parse_reference, read_config

# Keys of `config.causal`; in runs from before one existed it is None.
CAUSAL = ("chunk", "first", "forcing", "window", "sink", "context", "gradient")


def overridden(config, role, section):
  """The config's `section` with the values of nets.<role>.<section> that are not None."""
  own = config["nets"].get(role, {}).get(section, {})
  return config[section] | {key: value for key, value in own.items() if value is not None}


def make_model(config, role, mesh=None, *, of=None):
  """The network of a role: the config's `model` with the role's own changes.

  Args:
    config: the config as a dict.
    role: name of the network in it.
    mesh: the devices that share its work; None for one.
    of: reference to the run that a frozen network comes from: it is what it is there, but for the
      changes of nets.<role>.model.
  """
  fields = overridden(config, role, "model")
  if of is not None:
    changes = config["nets"][role].get("model", {})
    there = overridden(read_config(of), parse_reference(of)[1], "model")
    fields = there | {key: value for key, value in changes.items() if value is not None}
  dtypes = {"float32": jnp.float32, "bfloat16": jnp.bfloat16}
  if fields["dtype"] not in dtypes:
    raise ValueError(f"model.dtype={fields['dtype']!r}: choose one of {sorted(dtypes)}.")
  fields["dtype"] = dtypes[fields["dtype"]]
  method = config.get("mesh", {}).get("sequence_method", "ring")
  how = {"method": method, "implementation": fields["attention"]}
  fields["attention"] = sharded_attention(mesh, **how)
  return VideoDiT(**{k: tuple(v) if isinstance(v, list) else v for k, v in fields.items()})


def init_params(model, key, example):
  """Fresh weights for batches of the shapes of `example`."""
  part = lambda a: jnp.zeros((1, *a.shape[1:]), a.dtype)
  frames = [a for a in (example.cond.context, example.x0) if a is not None]
  x = jnp.concatenate([part(a) for a in frames], axis=1)
  cond = jax.tree.map(part, example.cond).replace(context=None, clean=None)
  one = model.clone(attention=None)  # a batch of one is no batch for a mesh
  return one.init(key, x, jnp.zeros(1, jnp.float32), cond=cond)["params"]


def make_critic(config):
  """The head of the config's `critic`, in the networks' compute dtype."""
  if any(value is not None for value in config["nets"].get("critic", {}).get("model", {}).values()):
    raise ValueError("nets.critic has no model of its own: give --config.critic.dim and the like.")
  dtype = make_model(config, "critic").dtype
  return Critic(config["critic"]["dim"], config["critic"]["pooled"], dtype)


def critic_features(config, causal):
  """Name of the network that the objective's critic sits on, and that network's features."""
  parameters = inspect.signature(losses.OBJECTIVES[config["objective"]["name"]]).parameters
  (host,) = (k.removesuffix("_features") for k in parameters if k.endswith("_features"))
  return host, causal[host].features(config["critic"]["blocks"])


def init_critic(critic, key, *, features, host, example):
  """Fresh weights of a critic on the features of the network `host`."""

  def seen():
    batch = jax.tree.map(lambda a: jnp.zeros(a.shape, a.dtype), example)
    params = init_params(host, jax.random.key(0), example)
    return features(params, batch.x0, jnp.zeros(batch.x0.shape[0], jnp.float32), batch.cond)

  shapes = jax.eval_shape(seen)
  return critic.init(key, [jnp.zeros((1, *a.shape[1:]), a.dtype) for a in shapes])["params"]


def check_mesh(config, mesh, causal, example):
  """Refuses a mesh on which networks cannot run on batches of the shapes of `example`.

  Args:
    config: the config as a dict.
    mesh: the devices.
    causal: name -> `Causal` of every network.
    example: shapes of a prepared batch.

  Raises:
    ValueError: see `vidstep.parallel.checks`.
  """
  check_rules(mesh, config["mesh"]["rules"])
  _, frames, *size, _ = example.x0.shape
  rolled = config["objective"]["name"] in ON_POLICY
  for name, way in causal.items():
    chunks = () if way.chunk is None or not rolled else np.bincount(chunk_index(frames, way.chunk))
    check_network(
      name,
      way.model,
      frames=frames,
      size=size,
      context=config["data"]["context"],
      teacher_forced=way.chunk is not None and example.cond.clean is not None,
      chunks=tuple(chunks),
    )


def chunk_of(config, role, *, of=None):
  """Frames that a causal network denoises together: k, or (first, k); None for the whole clip.

  Networks that generate ("student", "model") are what `config.causal` says; all others, such as the
  fake score of distribution matching, see the whole clip. nets.<role>.causal overrides either.

  Args:
    config: the config as a dict; one of a run before there were causal networks will do.
    role: name of the network in it.
    of: reference to the run that a frozen network comes from: it stays what it is there.

  Raises:
    ValueError: if a network shall be causal but `config.causal.chunk` is None.
  """
  causal = config["nets"].get(role, {}).get("causal")
  if of is not None and causal is None:
    return chunk_of(read_config(of), parse_reference(of)[1])
  chunks = config.get("causal") or {"chunk": None}
  if causal and chunks["chunk"] is None:
    raise ValueError(f"nets.{role}.causal needs chunks: give --config.causal.chunk.")
  causal = role in ("student", "model") if causal is None else causal
  if not causal or chunks["chunk"] is None:
    return None
  return (chunks["first"], chunks["chunk"]) if chunks["first"] else chunks["chunk"]


@dataclasses.dataclass(frozen=True)
class Causal:
  """How a network sees and generates a video.

  Attributes:
    model: the `VideoDiT`.
    chunk: frames that it denoises together, k or (first, k); None: the whole clip.
    mask: a `Window` on top of causality, or None.
    context: what later chunks read, "clean" or "last_step"; see `rollout`.
    gradient: how far gradients of its own rollout reach; see `rollout`.
  """

  model: nn.Module
  chunk: int | tuple[int, int] | None = None
  mask: Rule | None = None
  context: str = "clean"
  gradient: str | int | None = "last_step"

  @property
  def velocity(self):
    """velocity(params, x, t, cond)."""
    shards = getattr(self.model.attention, "shards", 1)
    return velocity_fn(self.model, chunk=self.chunk, mask=self.mask, shards=shards)

  def features(self, blocks):
    """features(params, x, t, cond) of these blocks, () for all: seeing what `velocity` sees."""
    return features_fn(self.model, blocks, chunk=self.chunk, mask=self.mask)

  def network(self, frames):
    """The network behind a cache that holds so many frames, as many as it attends to at least."""
    if self.model.patch[0] > 1:  # a cache keeps single frames
      return PackedNetwork(self.velocity, self.chunk)
    sink = 0 if self.mask is None else self.mask.sink
    rule = TEACHER_FORCING if self.mask is None else TEACHER_FORCING & self.mask
    return CachedNetwork(self.model, CachePolicy(window=frames, sink=sink), rule)

  def extension(self, longest, clip):
    """Generation that goes on to so many frames, a clip at a time: for long tuning.

    The cache holds what the network attends to, and a clip more, which gradients need.
    """
    if not isinstance(self.chunk, int):
      raise ValueError("long_tuning goes on from data and has no first chunk: drop causal.first.")
    seen = longest if self.mask is None else self.mask.size
    how = {"context": self.context, "gradient": self.gradient}
    return extension(self.network(seen + clip), chunk=self.chunk, **how)

  def rollout(self, frames):
    """Its own generation of a video of so many frames, context included: for self-forcing."""
    how = {"context": self.context, "gradient": self.gradient}
    return self_rollout(self.network(frames), chunk=self.chunk, **how)


def causal_of(config, role, model, *, of=None):
  """The `Causal` of a network; arguments as in `chunk_of`, and its module."""
  chunk = chunk_of(config, role, of=of)
  if of is not None and config["nets"].get(role, {}).get("causal") is None:
    config = read_config(of)
  causal = dict.fromkeys(CAUSAL) | (config.get("causal") or {})
  window = Window(causal["window"], causal["sink"] or 0) if chunk and causal["window"] else None
  reach = causal["gradient"] or "last_step"
  reach = int(reach) if str(reach).isdigit() else reach  # a string where it came as a flag
  return Causal(model, chunk, window, causal["context"] or "clean", reach)
