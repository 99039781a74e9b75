"""From a trained causal network to a `World`: engine, keys, where it starts, its true game."""

import collections
import functools

import jax
import numpy as np

from experiments import generate
from experiments.play_server.world import Scenario, World
from vidstep.causal.cached import CachedNetwork
from vidstep.causal.kv_cache import CachePolicy
from vidstep.causal.streaming import Engine
from vidstep.data.captions import captions
from vidstep.data.controls import Control
from vidstep.data.loader import data_info, open_source

FEW = 4  # steps that the slider offers at least
SECONDS_BACK = 16  # that can be rewound, half a second at a time


def open_world(reference: str, *, sessions: int, window: int | None = None) -> World:
  """Reads a network and what its data tell about the world.

  Args:
    reference: "workdir:role:ema" of a causal network.
    sessions: rows of the engine.
    window: latent frames of the past that its cache keeps; None: as many as in training.

  Raises:
    FileNotFoundError, ValueError: there is no such network, or it cannot be played.
  """
  network = generate.open_network(reference)
  setting, data, chunk = network.setting(), network.config["data"], network.chunk
  if chunk is None:
    raise ValueError(
      f"{network.reference} denoises whole clips: only a causal network streams, such as the stage "
      '"sf" of configs/doom/causal_rcm.py.'
    )
  if setting.guidance != 1:
    raise ValueError(f"{network.reference} is sampled with guidance, which does not stream.")
  info, chunk = data_info(data["path"]), chunk if isinstance(chunk, int) else chunk[1]
  names = info["scenario"].split(",") if "scenario" in info else [info["source"]]
  reads_text = bool(network.model.text_dim)
  most = max(FEW, setting.steps)
  if setting.times:  # a list that the network was trained for: there are no steps beyond it
    most = len(setting.times) + 1
  window = window or data["frames"] - chunk
  begins = Begins(data["path"], network.context)
  controls = controls_of(info) if network.model.action_dim else ()

  def make_engine(say):
    say("Compiling the network; what is compiled is kept for the next start")
    engine = _engine(network, setting, info, chunk, sessions, most, window)
    engine.warmup()
    return engine

  weights = sum(a.size for a in jax.tree.leaves(network.params))
  return World(
    title=", ".join(name.replace("_", " ") for name in names[:3]),
    frame_rate=info["frame_rate"],
    chunk=chunk,
    size=tuple(info["shape"][1:3]),
    controls=controls,
    scenarios=tuple(Scenario(n, captions(n)[0] if reads_text else "") for n in names),
    reads_text=reads_text,
    steps=(min(setting.steps, most), most),
    window=(window, window),
    make_engine=make_engine,
    begin=begins.arguments,
    times=lambda steps: tuple(float(t) for t in network.setting(steps=steps).grid()[:-1]),
    make_game=functools.partial(_game, info, begins) if info["source"] != "synthetic" else None,
    about={
      "network": network.reference,
      "parameters": f"{weights / 1e6:.3g} million",
      "device": jax.devices()[0].device_kind,
    },
  )


def controls_of(info: dict) -> tuple[Control, ...]:
  """The controls behind a dataset's columns.

  Args:
    info: `data_info` of it.
  """
  if info["source"] == "gym":
    world = _plain_game(info, info["scenario"])
    world.close()
    return world.controls
  axis = lambda name: Control("axis", (name,), -10.0, 10.0)
  return tuple(
    axis(n) if n.endswith("_DELTA") else Control("button", (n,)) for n in info["buttons"]
  )


class Begins:
  """First frames of held-out episodes: where worlds start.

  Args:
    path: of the dataset.
    context: frames that the network is given.
  """

  def __init__(self, path: str, context: int):
    self._path, self._context = path, context

  @functools.cached_property
  def _clips(self):
    """Scenario -> its test clips, those that begin an episode where there are any."""
    all_clips, firsts = collections.defaultdict(list), collections.defaultdict(list)
    source = open_source(self._path, "test")
    for i in range(len(source)):
      clip = source[i]
      name = bytes(clip.get("scenario", b"")).decode()
      clip = {k: clip[k] for k in ("video", "actions", "seed", "start") if k in clip}
      short = {k: v[: self._context] if k in ("video", "actions") else v for k, v in clip.items()}
      all_clips[name].append(short)
      if int(clip.get("start", 1)) == 0:
        firsts[name].append(short)
    return {name: firsts[name] or clips for name, clips in all_clips.items()}

  def clip(self, scenario: str, seed: int) -> dict:
    """The clip that a seed starts from: "video" [n, ...], "actions" [n, A], "seed" of its game."""
    clips = self._clips.get(scenario) or [c for each in self._clips.values() for c in each]
    return clips[seed % len(clips)]

  def arguments(self, scenario: str, seed: int) -> dict:
    """`Engine.open`'s arguments for a start."""
    if not self._context:
      return {}
    clip = self.clip(scenario, seed)
    return {"context": np.array(clip["video"]), "context_actions": np.array(clip["actions"])}


class SameStart:
  """A true game whose episode `seed` starts where the model's does: after the same context.

  Args:
    game: a `vidstep.data.worlds.World`.
    scenario: its name in the data.
    begins: where the model starts.
  """

  def __init__(self, game, scenario: str, begins: Begins):
    self._game, self._scenario, self._begins = game, scenario, begins
    self.step, self.close = game.step, game.close

  def reset(self, seed: int) -> np.ndarray:
    """The episode's frame after the context that belongs to this seed."""
    clip = self._begins.clip(self._scenario, seed)
    frame = self._game.reset(int(clip.get("seed", seed)))
    for action in clip["actions"][1:] if "seed" in clip else ():
      frame = self._game.step(action)
    return frame


def _game(info, begins, scenario):
  return SameStart(_plain_game(info, scenario), scenario, begins)


def _plain_game(info, scenario):
  from vidstep.data.worlds import DoomWorld, GymWorld  # only who plays it needs the package

  size, skip = info["request"]["size"], info["frame_skip"]
  if info["source"] == "gym":
    return GymWorld(scenario, size, skip)
  return DoomWorld(scenario, size, skip, info["buttons"])


def _engine(network, setting, info, chunk, sessions, most, window):
  pixels, frame_rate = info["shape"][1:3], info["frame_rate"]
  policy = CachePolicy(window=window, positions="relative")
  video = jax.ShapeDtypeStruct((1, 1, *pixels, 3), np.float32)
  text = None
  if network.model.text_dim:
    from vidstep.models.text import TextEncoder

    encoder = TextEncoder(network.config["data"]["text_tokens"])
    text = lambda prompt: tuple(a[0] for a in encoder([prompt]))
  return Engine(
    CachedNetwork(network.model, policy),
    network.params,
    network.codec,
    frame_shape=jax.eval_shape(network.codec.encode, video).shape[2:],
    frame_rate=frame_rate,
    chunk=chunk,
    context_frames=network.context,
    sessions=sessions,
    max_steps=most,
    text=text,
    solver=setting.solver,
    overlap=False,  # ticks are paced: waiting for one's own chunk shows a key sooner
    history=2 * SECONDS_BACK,
    history_every=max(1, round(0.5 * frame_rate / chunk)),
  )
