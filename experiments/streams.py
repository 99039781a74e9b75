"""A streaming engine from a trained network or from random weights, and what to feed it."""

import dataclasses
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np

from experiments import batches, generate, networks
from vidstep import samplers
from vidstep.causal.cached import TEACHER_FORCING, CachedNetwork
from vidstep.causal.kv_cache import CachePolicy
from vidstep.causal.streaming import Engine
from vidstep.masks import Window
from vidstep.models.codec import Codec, VideoCodec
from vidstep.models.cond import Cond
from vidstep.models.dit import VideoDiT


@dataclasses.dataclass(frozen=True, eq=False)
class Source:
  """A network that can be streamed, with the frames and actions that a stream begins with.

  Attributes:
    name: of the network, for reports.
    model, params, codec: the network, and the `VideoCodec` of its latents.
    frame_shape: (h, w, C) of a latent frame.
    frame_rate: pixel frames a second.
    chunk: latent frames made together, k or (first, k).
    frames: latent frames of a clip in training: as many can be kept without leaving what it was
      trained on.
    times: falling times of its denoising steps, the final 0 left out.
    first_times: those of the first chunk; () for the same.
    solver: name of the solver.
    mask: the `Window` that it was trained with, or None.
    context: what later chunks read of one, "clean" or "last_step".
    embed: encoder of prompts, or None.
    contexts: uint8 [N, n, H, W, 3] first frames to begin with; n may be 0.
    context_actions: float32 [N, n, A] that led into them; None for a network without any.
    captions: N prompts, "" for none.
    actions: float32 [T, A] recorded ones, episode after episode; None for a network without any.
  """

  name: str
  model: VideoDiT
  params: dict
  codec: VideoCodec
  frame_shape: tuple[int, int, int]
  frame_rate: float
  chunk: int | tuple[int, int]
  frames: int
  times: tuple[float, ...]
  first_times: tuple[float, ...]
  solver: str
  mask: Window | None
  context: str
  embed: Callable | None
  contexts: np.ndarray
  context_actions: np.ndarray | None
  captions: tuple[str, ...]
  actions: np.ndarray | None


def trained(reference, *, steps=None, clips=8) -> Source:
  """The network "workdir:role:ema", with contexts and actions of held-out clips.

  Args:
    reference: as in `generate.open_network`.
    steps: denoising steps; None: as the run's own `eval` says.
    clips: how many, spread over the test split.

  Raises:
    FileNotFoundError, ValueError: if there is no such network, or it is not causal.
  """
  network = generate.open_network(reference)
  if network.chunk is None:
    raise ValueError(f"{network.reference} is not causal: stream one trained with causal.chunk.")
  setting = network.setting(steps=steps)
  if setting.guidance != 1:
    raise ValueError(f"{network.reference} asks for guidance: stream a student, which has none.")
  held = generate.held_out(network.config, clips)
  known = network.model.action_dim > 0
  captions = held["caption"] if network.model.text_dim else [""] * clips
  latents = jax.eval_shape(
    network.codec.encode, jax.ShapeDtypeStruct(held["video"][:1].shape, jnp.float32)
  )
  first = samplers.timestep_list(setting.first_times)[:-1] if setting.first_times else ()
  return Source(
    name=network.reference,
    model=network.model,
    params=network.params,
    codec=network.codec,
    frame_shape=latents.shape[2:],
    frame_rate=generate.frame_rate(network.config),
    chunk=network.chunk,
    frames=network.config["data"]["frames"],
    times=tuple(map(float, setting.grid()[:-1])),
    first_times=tuple(map(float, first)),
    solver=setting.solver,
    mask=network.causal.mask,
    context=network.causal.context,
    embed=batches.text_encoder(network.config["data"]),
    contexts=held["video"][:, : network.context],
    context_actions=held["actions"][:, : network.context] if known else None,
    captions=tuple(map(str, captions)),
    actions=np.concatenate(held["actions"]) if known else None,
  )


def random_weights(config, *, steps=None) -> Source:
  """A network of random weights and a codec of random patches: for speed, not for looks.

  Args:
    config: dict of `configs.common.stream`.
    steps: denoising steps; None: 1.

  Returns:
    A `Source` whose contexts are noise and whose actions are random buttons.
  """
  (height, width), patch, rng = config["size"], config["codec_patch"], np.random.default_rng(0)
  channels, n = config["codec_channels"], config["context"]
  if height % patch or width % patch:
    raise ValueError(f"size={height} x {width} is not divided by codec_patch={patch}.")
  basis = np.linalg.qr(rng.normal(size=(3 * patch**2, channels)))[0].astype(np.float32)
  codec = Codec(patch, np.zeros(3 * patch**2, np.float32), basis, np.ones(channels, np.float32))
  shape = (height // patch, width // patch, channels)
  follows = {"in_channels": channels, "out_channels": channels}
  model = networks.make_model({"model": dict(config["model"]) | follows, "nets": {}}, "student")
  x = jnp.zeros((1, 1, *shape))
  actions = jnp.zeros((1, 1, model.action_dim)) if model.action_dim else None

  @jax.jit
  def fresh(key):
    params = model.init(key, x, jnp.zeros(1), cond=Cond(actions=actions))["params"]
    leaves, tree = jax.tree.flatten(params)
    keys = jax.random.split(key, len(leaves))  # gates begin at zero: such a network does nothing
    noisy = [a + 0.02 * jax.random.normal(k, a.shape) for a, k in zip(leaves, keys, strict=True)]
    return jax.tree.unflatten(tree, noisy)

  count = 8
  pressed = np.sign(rng.normal(size=(512, model.action_dim))).astype(np.float32)
  return Source(
    name="random weights",
    model=model,
    params=fresh(jax.random.key(0)),
    codec=codec,
    frame_shape=shape,
    frame_rate=config["frame_rate"],
    chunk=config["chunk"],
    frames=config["window"] + config["chunk"],
    times=tuple(np.linspace(1, 0, (steps or 1) + 1)[:-1].tolist()),
    first_times=(),
    solver="consistency",
    mask=None,
    context="clean",
    embed=None,
    contexts=rng.integers(0, 256, (count, n, height, width, 3), np.uint8),
    context_actions=None,
    captions=("",) * count,
    actions=pressed if model.action_dim else None,
  )


def make_engine(
  source, *, window=None, sink=None, positions="relative", recache=False, dtype="float32", **options
) -> Engine:
  """An `Engine` of a source.

  Args:
    source: a `Source`.
    window: latent frames of the past that are kept; None: as many as a chunk saw in training.
    sink: first latent frames that are kept for ever; None: as in training.
    positions: where frames stand, see `CachePolicy`. "capped": the sink never gets farther away
      than it is when the window has just filled up.
    recache: whether a new prompt computes the cache anew, see `CachePolicy`.
    dtype: of the cache.
    **options: of `Engine`: sessions, overlap, history, autosave ..
  """
  mask = source.mask
  chunk = source.chunk if isinstance(source.chunk, int) else source.chunk[1]
  seen = source.frames - chunk if mask is None else mask.size - 1
  window = max(seen, 1) if window is None else window
  sink = sink if sink is not None else 0 if mask is None else mask.sink
  cap = sink + window if positions == "capped" else None
  policy = CachePolicy(window, sink, positions=positions, cap=cap, dtype=dtype, recache=recache)
  rule = TEACHER_FORCING if mask is None else TEACHER_FORCING & mask
  most = max(4, len(source.times), len(source.first_times))
  own = {"solver": source.solver, "context": source.context, "text": source.embed}
  return Engine(
    CachedNetwork(source.model, policy, rule),
    source.params,
    source.codec,
    frame_shape=source.frame_shape,
    frame_rate=source.frame_rate,
    chunk=source.chunk,
    context_frames=source.contexts.shape[1],
    **({"max_steps": most} | own | options),
  )


def open_session(engine, source, *, clip=0, **options):
  """Opens a session from a clip's context, with its caption and at the source's times."""
  clip %= len(source.contexts)
  given = {"seed": clip, "text": source.captions[clip], "times": source.times}
  given["first_times"] = source.first_times
  if engine.context_frames:
    given["context"] = source.contexts[clip]
  if source.context_actions is not None:
    given["context_actions"] = source.context_actions[clip]
  return engine.open(**(given | options))
