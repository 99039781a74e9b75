"""From a trained causal network to a `World`: engine, keys, where it starts, its true game."""

import collections
import functools

import jax
import numpy as np

from experiments import generate, streams
from experiments.play_server.remote import RemoteGame
from experiments.play_server.world import Scenario, World
from vidstep.data.captions import captions
from vidstep.data.controls import Control
from vidstep.data.loader import data_info, open_source
from vidstep.data.worlds import DoomWorld, GymWorld
from vidstep.training.checkpoint import read_config

FEW = 4  # steps that an ODE starts with; more are slow
GAMES = ("vizdoom", "gym")  # sources of data that can be played themselves
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
  source = streams.trained(reference, clips=1)
  network = generate.Network(
    source.name, read_config(source.name), source.model, source.params, source.codec
  )
  setting, data = network.setting(), network.config["data"]
  info = data_info(data["path"])
  names = info["scenario"].split(",") if "scenario" in info else [info["source"]]
  reads_text = bool(source.model.text_dim)
  # A network that was trained for a list of times knows no steps beyond it.
  most = len(setting.times) + 1 if setting.times else max(FEW, setting.steps)
  if not isinstance(source.chunk, int):
    raise NotImplementedError(
      f"{source.name} has chunks of {source.chunk} frames: only equal chunks are played."
    )
  if source.codec.factors[0] > 1:
    raise NotImplementedError(
      f"{source.name} has {source.codec.factors[0]} pixel frames to a latent frame: play shows "
      "codecs of single frames; `python -m experiments.stream` streams it."
    )
  window = window or max(source.frames - source.chunk, 1)
  begins = Begins(data["path"], network.context)
  controls = controls_of(info) if source.model.action_dim else ()

  def make_engine(say):
    say("Compiling the network; what is compiled is kept for the next start")
    engine = streams.make_engine(
      source,
      window=window,
      sessions=sessions,
      max_steps=most,
      overlap=False,  # ticks are paced: waiting for one's own chunk shows a key sooner
      history=2 * SECONDS_BACK,
      history_every=max(1, round(0.5 * source.frame_rate / source.chunk)),
    )
    engine.warmup()
    return engine

  weights = sum(a.size for a in jax.tree.leaves(source.params))
  return World(
    title="Doom" if info["source"] == "vizdoom" else ", ".join(names).replace("_", " "),
    frame_rate=source.frame_rate,
    chunk=source.chunk,
    size=tuple(info["shape"][1:3]),
    controls=controls,
    scenarios=tuple(Scenario(n, captions(n)[0] if reads_text else "") for n in names),
    reads_text=reads_text,
    steps=(setting.steps if setting.times else min(setting.steps, FEW), most),
    window=(window, window),
    make_engine=make_engine,
    begin=begins.arguments,
    times=lambda steps: tuple(float(t) for t in network.setting(steps=steps).grid()[:-1]),
    make_game=functools.partial(_game, info, begins) if info["source"] in GAMES else None,
    about={
      "network": source.name,
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
    world = _true_game(info, info["scenario"], here=True)
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
  return SameStart(_true_game(info, scenario), scenario, begins)


def _true_game(info, scenario, here=False):
  """The game behind a dataset, in a process of its own or in this one."""
  doom = info["source"] == "vizdoom"
  arguments = (scenario, info["request"]["size"], info["frame_skip"])
  arguments += (info["buttons"],) if doom else ()
  build = DoomWorld if doom else GymWorld
  return build(*arguments) if here else RemoteGame(build, *arguments)
