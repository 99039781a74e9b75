"""A trained network and a way of sampling it: what sample, evaluate and sweep share."""

import dataclasses
import functools

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from experiments import batches, drawing, networks
from vidstep import samplers
from vidstep.causal.rollout import forwards, schedule
from vidstep.data.builder import describe
from vidstep.data.loader import Loader, open_source
from vidstep.masks import chunk_index
from vidstep.models.codec import Codec, load_codec
from vidstep.samplers import SOLVERS
from vidstep.training.checkpoint import load_network, parse_reference, resolve_reference


@dataclasses.dataclass(frozen=True)
class Setting:
  """How a network is sampled.

  Attributes:
    solver: name in `vidstep.samplers.SOLVERS`.
    steps: steps of the solver.
    shift: time shift of a uniform grid.
    guidance: weight w of v_uncond + w (v_cond - v_uncond); 1 is none.
    times: intermediate times of an explicit few-step list (`samplers.timestep_list`), of which
      the first `steps - 1` are used; empty for the grid. Students of distribution matching know
      their own list only.
  """

  solver: str = "euler"
  steps: int = 50
  shift: float = 1.0
  guidance: float = 1.0
  times: tuple[float, ...] = ()
  first_times: tuple[float, ...] = ()

  def __post_init__(self):
    if self.solver not in SOLVERS:
      raise ValueError(f"Unknown solver {self.solver!r}: choose one of {', '.join(SOLVERS)}.")
    for name in ("times", "first_times"):
      object.__setattr__(self, name, tuple(getattr(self, name)))  # JSON has lists only
    self.grid()

  def grid(self):
    """Falling times [steps + 1], from 1 to 0."""
    if not self.times:
      return samplers.timesteps(self.steps, shift=self.shift)
    return samplers.timestep_list(self.times, self.steps)

  @property
  def nfe(self):
    """Network evaluations of the solver: for a clip, or each chunk of a causal network."""
    return samplers.nfe(self.solver, self.steps, self.guidance)

  @property
  def label(self):
    """Short and unique, such as "euler 2" or "dpmpp_2m 8, shift 3"."""
    extra = [f"shift {self.shift:g}"] if not self.times and self.shift != 1 else []
    extra += [f"first {len(self.first_times) + 1}"] if self.first_times else []
    extra += [f"guidance {self.guidance:g}"] if self.guidance != 1 else []
    return ", ".join([f"{self.solver} {self.steps}", *extra])


@dataclasses.dataclass(frozen=True, eq=False)
class Network:
  """A network of a run, ready to be sampled.

  Attributes:
    reference: "workdir:role:ema@step".
    config: resolved config of that run.
    model: its module.
    params: its parameters.
    codec: video <-> its latents.
  """

  reference: str
  config: dict
  model: nn.Module
  params: dict
  codec: Codec

  @functools.cached_property
  def prepare(self):
    """Loader batch -> `Batch`, compiled."""
    told = self.model.action_dim > 0
    return jax.jit(batches.make_prepare(self.codec, self.config["data"]["context"], actions=told))

  @property
  def context(self):
    """Number of frames that are given, not generated."""
    return self.config["data"]["context"]

  @property
  def chunk(self):
    """Frames that are generated together, see `networks.chunk_of`; None: all of them."""
    return networks.chunk_of(self.config, parse_reference(self.reference)[1])

  @property
  def causal(self):
    """How it sees and generates a video, a `networks.Causal`."""
    return networks.causal_of(self.config, parse_reference(self.reference)[1], self.model)

  def nfe(self, setting):
    """Network evaluations for a clip under a setting; cache writes of a causal network count."""
    if self.chunk is None:
      return setting.nfe
    frames = self.config["data"]["frames"] - self.context
    chunks = chunk_index(frames, self.chunk)[-1] + 1
    first = samplers.timestep_list(setting.first_times)[:-1] if setting.first_times else ()
    return forwards(
      schedule(setting.grid()[:-1].tolist(), list(first), chunks),
      solver=setting.solver,
      context=self.causal.context,
      guidance=setting.guidance,
      context_frames=self.context,
    )

  def setting(self, **overrides):
    """The run's own way of being sampled (config.eval), with changes."""
    evaluated = {f.name: f.default for f in dataclasses.fields(Setting)} | self.config["eval"]
    own = {f.name: evaluated[f.name] for f in dataclasses.fields(Setting)}
    return Setting(**(own | {k: v for k, v in overrides.items() if v is not None}))


def open_network(reference):
  """Reads a network for sampling.

  Args:
    reference: "workdir:role", "workdir:role:ema", optionally "@step".

  Raises:
    FileNotFoundError, ValueError: if there is no such network; one sentence.
  """
  reference = resolve_reference(reference)
  config, params = load_network(reference)
  model = networks.make_model(config, parse_reference(reference)[1])
  return Network(reference, config, model, params, load_codec(config["data"]["codec"]))


def make_sampler(network, setting):
  """draw(params, batch, key) -> latents [B, F, H, W, C] of the frames after the context."""
  draw = drawing.make_draw(
    network.causal,
    setting.grid(),
    first_times=setting.first_times,
    solver=setting.solver,
    guidance=setting.guidance,
  )
  return jax.jit(draw)


def make_decoder(network):
  """decode(latents) -> uint8 [B, T, H, W, 3], compiled."""

  @jax.jit
  def decode(latents):
    video = jnp.round((network.codec.decode(latents) + 1) * 127.5)
    return jnp.clip(video, 0, 255).astype(jnp.uint8)

  return decode


def frame_rate(config):
  """Frames per second of the data that a config names; 8 for the synthetic world."""
  path = config["data"]["path"]
  return 8.0 if path.partition(":")[0] == "synthetic" else describe(path)["frame_rate"]


def held_out(config, count, *, split="test"):
  """`count` clips spread evenly over a split, as one batch of the `Loader`: video, actions, text.

  Clips are stored by episode, so the first third of them shares no episode with the rest but one.

  Raises:
    ValueError: if the split holds fewer.
  """
  path, frames = config["data"]["path"], config["data"]["frames"]
  source = open_source(path, split)
  if len(source) < count:
    raise ValueError(
      f"{path} has {len(source)} clips in its {split} split, {count} are asked for: "
      "record more episodes or ask for fewer videos."
    )
  chosen = [source[int(i)] for i in np.linspace(0, len(source) - 1, count).round()]
  embed = batches.text_encoder(config["data"])
  return next(Loader(chosen, split, batch_size=count, frames=frames, embed=embed))


def draw_videos(network, setting, clips, *, seed, batch_size=32, progress=lambda n: None):
  """Generates one video for each clip from its context and actions.

  The noise of clip i depends on (seed, i) through its batch alone: settings are paired.

  Args:
    network: a `Network`.
    setting: a `Setting`.
    clips: {"video", "actions"} of N clips, as `held_out` gives them.
    seed: of the noise.
    batch_size: clips at a time.
    progress: called with the number of clips finished.

  Returns:
    uint8 [N, F, H, W, 3]: the generated frames, without the context.
  """
  draw, decode = make_sampler(network, setting), make_decoder(network)
  count = len(clips["video"])
  videos = []
  for start in range(0, count, batch_size):
    part = {k: v[start : start + batch_size] for k, v in clips.items() if k != "caption"}
    short = batch_size - len(part["video"])  # one shape, one compilation
    part = {k: np.concatenate([v, np.repeat(v[:1], short, axis=0)]) for k, v in part.items()}
    key = jax.random.fold_in(jax.random.key(seed), start)
    latents = draw(network.params, network.prepare(part), key)
    videos.append(np.asarray(decode(latents))[: batch_size - short])
    progress(len(videos[-1]))
  return np.concatenate(videos)
