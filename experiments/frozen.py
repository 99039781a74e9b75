"""Frozen networks of a run: which it reads, which of them are one and the same, their weights."""

import functools

import jax
import jax.numpy as jnp

from vidstep.training.checkpoint import kept, load_params, resolve_reference
from vidstep.training.lora import parse_lora
from vidstep.training.pretrained import check_architecture, is_pretrained

BASE = ".base"  # "student.base" is the network that low-rank factors of the student are added to


def lora_of(config, role):
  """The `LoRA` of a role, or None."""
  return parse_lora(config["nets"].get(role, {}).get("lora"))


def references_of(config, objective, *, resolve=True):
  """Frozen network -> reference; bases of low-rank factors are frozen networks, "<role>.base".

  Args:
    config: the config as a dict.
    objective: the `Objective`.
    resolve: name the step of every run; False asks no run, and takes any name for the reference.

  Raises:
    ValueError: for a network without a reference, or options that are not for it.
    FileNotFoundError: if there is no such run.
  """
  trained = [role for role in objective.roles if role != "critic"]
  adapted = [role for role in trained if lora_of(config, role)]
  for name, net in config["nets"].items():
    if lora_of(config, name) and name not in trained:
      raise ValueError(f"nets.{name}.lora: only {', '.join(trained)} can train low-rank factors.")
    if net.get("param_dtype") and name not in (*objective.frozen, *adapted):
      raise ValueError(f"nets.{name}.param_dtype: weights that are trained are float32; drop it.")
  references = {}
  for name in (*objective.frozen, *(role + BASE for role in adapted)):
    net = config["nets"].get(name.removesuffix(BASE), {})
    why = "Low-rank factors need a base" if name.endswith(BASE) else "This objective reads it"
    if resolve and not net.get("init"):
      raise ValueError(
        f"There is no frozen network {name!r}. {why}: give "
        f"--config.nets.{name.removesuffix(BASE)}.init=workdir:role:ema, a run that was trained "
        "before, or wan:path."
      )
    references[name] = resolve_reference(net["init"]) if resolve else net.get("init")
  return references


def share(config, references, shapes):
  """Finds what is held in memory once: the same reference, layout and dtype.

  Args:
    config: the config as a dict.
    references: see `references_of`.
    shapes: network -> shapes of its weights.

  Returns:
    ({name: shapes of what is held}, {frozen network: name that it is held under}).
  """
  held, names = {}, {}
  for name, reference in references.items():
    network = name.removesuffix(BASE)
    like = kept(shapes[network], _dtype(config, network))
    same = [n for n in held if reference and references[n] == reference and held[n] == like]
    names[name] = same[0] if same else name
    held.setdefault(names[name], like)
  return held, names


def adapter(lora, base):
  """(factors, frozen) -> weights of the network whose base is held under that name."""
  return functools.partial(_merged, lora, base)


def _merged(lora, base, factors, frozen):
  return lora.merge(frozen[base], factors)


def load_frozen(setup, spread=None):
  """Weights of the frozen networks, by the names of `setup.frozen`.

  Args:
    setup: a `Setup`.
    spread: tree of shapes -> tree of shardings to load onto; None: the first device.
  """
  return {
    name: load_onto(setup.references[name], setup.models[name.removesuffix(BASE)], like, spread)
    for name, like in setup.frozen.items()
  }


def load_onto(reference, model, like, spread=None):
  """Weights by reference, each device reading its part.

  Args:
    reference: see `load_params`.
    model: the network that they are for.
    like: shapes and dtypes.
    spread: see `load_frozen`.

  Raises:
    ValueError: if the network there has another architecture.
  """
  if spread is not None:
    put = lambda x, sharding: x.update(sharding=sharding)
    like = jax.tree.map(put, like, spread(like))
  if not is_pretrained(reference):
    return load_params(reference, like=like)
  check_architecture(reference, model)
  return load_params(reference, like=like, scan=model.scan)


def _dtype(config, network):
  name = config["nets"].get(network, {}).get("param_dtype") or "float32"
  if name not in ("float32", "bfloat16"):
    raise ValueError(f"nets.{network}.param_dtype={name!r}: choose float32 or bfloat16.")
  return jnp.dtype(name)
