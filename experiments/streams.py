"""A streaming engine from a trained network or from random weights, and what to feed it."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np

from experiments import generate, setup
from vidstep.causal.cached import CachedNetwork
from vidstep.causal.kv_cache import CachePolicy
from vidstep.causal.streaming import Engine
from vidstep.models.codec import Codec
from vidstep.models.cond import Cond
from vidstep.models.text import TextEncoder


@dataclasses.dataclass(frozen=True, eq=False)
class Source:
  """A network that can be streamed, with the frames and actions that a stream begins with.

  Attributes:
    name: of the network, for reports.
    model, params, codec: the network.
    frame_shape: (h, w, C) of a latent frame.
    frame_rate: frames a second.
    chunk: latent frames made together.
    frames: of a clip in training: as many can be kept without leaving what it was trained on.
    times: falling times of its denoising steps, the final 0 left out.
    solver: name of the solver.
    contexts: uint8 [N, n, H, W, 3] first frames to begin with; n may be 0.
    context_actions: float32 [N, n, A] that led into them; None for a network without any.
    captions: N prompts, "" for none.
    actions: float32 [T, A] recorded ones, episode after episode; None for a network without any.
  """

  name: str
  model: setup.VideoDiT
  params: dict
  codec: Codec
  frame_shape: tuple[int, int, int]
  frame_rate: float
  chunk: int
  frames: int
  times: tuple[float, ...]
  solver: str
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
    NotImplementedError: if its first chunk has another length.
  """
  network = generate.open_network(reference)
  if network.chunk is None:
    raise ValueError(f"{network.reference} is not causal: stream one trained with causal.chunk.")
  if not isinstance(network.chunk, int):
    raise NotImplementedError(
      f"{network.reference} has chunks of {network.chunk} frames: only equal chunks are streamed."
    )
  setting = network.setting(steps=steps)
  if setting.guidance != 1:
    raise ValueError(f"{network.reference} asks for guidance: stream a student, which has none.")
  held = generate.held_out(network.config, clips)
  known = network.model.action_dim > 0
  captions = held["caption"] if network.model.text_dim and "caption" in held else [""] * clips
  latents = jax.eval_shape(
    network.codec.encode, jax.ShapeDtypeStruct(held["video"][:1].shape, jnp.float32)
  )
  return Source(
    network.reference, network.model, network.params, network.codec, latents.shape[2:],
    generate.frame_rate(network.config), network.chunk, network.config["data"]["frames"],
    tuple(map(float, setting.grid()[:-1])), setting.solver, held["video"][:, : network.context],
    held["actions"][:, : network.context] if known else None,
    tuple(map(str, captions)), np.concatenate(held["actions"]) if known else None,
  )  # fmt: skip


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
  model = setup.make_model({"model": dict(config["model"]) | follows, "nets": {}}, "student")
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
    "random weights", model, fresh(jax.random.key(0)), codec, shape, config["frame_rate"],
    config["chunk"], config["window"] + config["chunk"],
    tuple(np.linspace(1, 0, (steps or 1) + 1)[:-1].tolist()), "consistency",
    rng.integers(0, 256, (count, n, height, width, 3), np.uint8), None, ("",) * count,
    pressed if model.action_dim else None,
  )  # fmt: skip


def make_engine(source, *, window=None, sink=0, dtype="float32", **options) -> Engine:
  """An `Engine` of a source.

  Args:
    source: a `Source`.
    window: latent frames of the past that are kept; None: as many as a chunk saw in training.
    sink: first frames that are kept for ever.
    dtype: of the cache.
    **options: of `Engine`: sessions, overlap, history, autosave ..
  """
  window = max(source.frames - source.chunk, 1) if window is None else window
  policy = CachePolicy(window=window, sink=sink, positions="relative", dtype=dtype)
  options = {"max_steps": max(4, len(source.times)), "solver": source.solver} | options
  if source.model.text_dim:
    options["text"] = TextEncoder()
  return Engine(
    CachedNetwork(source.model, policy),
    source.params,
    source.codec,
    frame_shape=source.frame_shape,
    frame_rate=source.frame_rate,
    chunk=source.chunk,
    context_frames=source.contexts.shape[1],
    **options,
  )


def open_session(engine, source, *, clip=0, **options):
  """Opens a session from a clip's context, with its caption and at the source's times."""
  clip %= len(source.contexts)
  given = {"seed": clip, "text": source.captions[clip], "times": source.times}
  if engine.context_frames:
    given["context"] = source.contexts[clip]
  if source.context_actions is not None:
    given["context_actions"] = source.context_actions[clip]
  return engine.open(**(given | options))
