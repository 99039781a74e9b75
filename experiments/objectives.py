"""From the section `objective` of a config to an `Objective`."""

import inspect

import jax.numpy as jnp
import numpy as np

from experiments.batches import holds_latents
from experiments.flags import unknown_key
from vidstep import losses, paths
from vidstep.data.latents import null_text, without_padding
from vidstep.losses.flow_matching import bell
from vidstep.models.cond import null_cond

ON_POLICY = ("self_forcing", "self_forcing_gan", "long_tuning")  # they learn on their own rollouts
TIMES = {"uniform": paths.Uniform, "lognormal": paths.LogNormal, "logitnormal": paths.LogitNormal}


def make_objective(section, velocities, unconditional=null_cond):
  """The objective of a config section {"name": ..., keyword arguments}.

  Its positional arguments are velocity functions, "velocity" being that of the first role and
  "rollout" its generation chunk by chunk ("blank" and "extend" that of a video that goes on);
  "<network>_features" is what its blocks make of a video, "critic" the head over them. They are
  looked up in `velocities` when called, so the networks can be built once the roles are known.
  `unconditional` is what guidance compares with, see `null_of`.

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
    values["unconditional"] = unconditional
  lazy = lambda who: lambda *args, **kwargs: velocities[who](*args, **kwargs)
  return function(*(lazy(k) for k in parameters if k not in options), **values)


def null_of(config, loader):
  """cond -> cond without what it asks for, for guidance.

  That of pixels masks the text and takes the null action. Wan knows no empty text: beside data of
  latents lies the embedding of the negative prompt that stands for it.

  Args:
    config: the config as a dict.
    loader: the data; None: zeros stand for the embedding, as shapes need no numbers.
  """
  data = config["data"]
  if not holds_latents(data):
    return null_cond
  if loader is None:
    text = np.zeros((1, config["model"]["text_dim"]), np.float32)
  else:
    text = null_text(data["path"], data["text_tokens"])
    text = None if text is None else without_padding(text)  # a constant of the compiled step

  def null(cond):
    if text is None:
      raise ValueError(
        f"{data['path']} has no embedded negative prompt, which guidance of Wan compares with: "
        "make it anew with experiments.synthesize, or set objective.guidance to 1."
      )
    length = cond.text.shape[1]
    padded = jnp.zeros((length, text.shape[1]), cond.text.dtype).at[: len(text)].set(text)
    return cond.replace(text=jnp.broadcast_to(padded[None], cond.text.shape))

  return null


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


def forced(config):
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
