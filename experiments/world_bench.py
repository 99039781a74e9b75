"""What all rows of the world table share: held-out frames, real clips, what reads actions."""

import dataclasses
import hashlib
import itertools
import json

import numpy as np
from tqdm import tqdm

from experiments.generate import frame_rate
from vidstep.data.loader import data_info, open_source
from vidstep.metrics.actions import InverseDynamics, fit_inverse_dynamics, following
from vidstep.metrics.describe import describe_clips
from vidstep.metrics.features import alexnet_frames
from vidstep.metrics.turns import Turns, fit_turns, horizontal_flow, under

TELLS = 0.65  # balanced accuracy on real held-out frames from which a button counts as readable
REFERENCE = 4  # real clips for each generated one, at most
TURN_CLIPS = 200  # train clips whose flow the signs of left and right are read off


@dataclasses.dataclass(frozen=True, eq=False)
class Bench:
  """Conditions and judges.

  Attributes:
    config: of the evaluation, a dict (`common.world`).
    context: frames that are given.
    horizon: frames that a network was trained to make after them.
    rate: frames a second.
    conditions: N held-out windows of context + long frames, a batch of clips (`windows`).
    reference: M real windows of context + max(frames) frames, of other held-out episodes.
    near: held-out windows of context + horizon frames.
    names: of the buttons.
    reader: reads them off frames.
    readable: those that it tells on real held-out frames.
    turns: tells left from right by the flow; None where config.hold names neither.
    held: name of a counterfactual -> action vector [A].
    features: [n, C] AlexNet features of real frames.
    described: (features, length) -> `Description` of the reference, filled when asked for.
  """

  config: dict
  context: int
  horizon: int
  rate: float
  conditions: dict
  reference: dict
  near: dict
  names: tuple
  reader: InverseDynamics
  readable: tuple
  turns: Turns | None
  held: dict
  features: np.ndarray
  described: dict = dataclasses.field(default_factory=dict)

  def real(self, features, length):
    """Description of the reference's frames after the context; FVD's has two clips for each."""
    if (features, length) not in self.described:
      most = 2 * self.config["clips"] if "i3d" in features else None
      video = self.reference["video"][:most, self.context : self.context + length]
      self.described[features, length] = describe_clips(video, features=features)
    return self.described[features, length]

  def holding(self, action):
    """The conditions with one action held in all frames after the context."""
    actions = self.conditions["actions"].copy()
    actions[:, self.context :] = action
    return self.conditions | {"actions": actions}


def make_bench(config, network, workdir):
  """Reads the held-out clips and trains the reader of actions, or takes the one saved in workdir.

  Raises:
    ValueError: for too few or too short episodes, lengths that do not fit, or no actions.
  """
  data, n = network.config["data"], network.context
  path, horizon = data["path"], data["frames"] - n
  if config.get("small"):
    config = cut_down(config, path, n)
  if config["long"] < max(config["frames"]) or not set(config["i3d_frames"]) <= {*config["frames"]}:
    raise ValueError(
      f"config.long={config['long']} must reach beyond config.frames={config['frames']}, and "
      f"config.i3d_frames={config['i3d_frames']} be some of them."
    )
  names = tuple(data_info(path)["buttons"])
  if not names:
    raise ValueError(f"{path} has no actions: a world model is judged by what it makes of them.")
  held = hold(names, config["hold"])
  conditions, reference = hold_out(
    path,
    clips=config["clips"],
    length=n + config["long"],
    reference_length=n + max(config["frames"]),
    seed=config["seed"],
    small=config.get("small", False),
  )
  near = windows(episodes(path, "test"), n + horizon)
  near = take(near, spread(config["next_clips"], len(near["video"])))
  reader, turns = learn_actions(path, names, config, workdir)
  return Bench(
    config=config,
    context=n,
    horizon=horizon,
    rate=frame_rate(network.config),
    conditions=conditions,
    reference=reference,
    near=near,
    names=names,
    reader=reader,
    readable=readable(reader, reference),
    turns=turns,
    held=held,
    features=alexnet_frames(reference["video"][:, n:]).reshape(-1, 256)[::4],
  )


# ------------------------------------------------------------------------------------------------
# Clips
# ------------------------------------------------------------------------------------------------


def episodes(path, split):
  """Uninterrupted recordings: stored clips that follow one another in an episode, joined.

  Args:
    path: dataset, see `Loader`.
    split: "train" or "test".

  Returns:
    List of {"video": uint8 [T, H, W, 3], "actions": float32 [T, A], "episode": int and, where there
    are captions, "caption": str}, by episode.
  """
  source = open_source(path, split)
  clips = sorted((source[i] for i in range(len(source))), key=lambda c: (c["episode"], c["start"]))
  found = []
  for _, of_episode in itertools.groupby(clips, key=lambda clip: clip["episode"]):
    for run in _runs(list(of_episode)):
      joined = {key: np.concatenate([clip[key] for clip in run]) for key in ("video", "actions")}
      joined["episode"] = int(run[0]["episode"])
      if "caption" in run[0]:
        text = run[0]["caption"]
        joined["caption"] = text.decode() if isinstance(text, bytes) else str(text)
      found.append(joined)
  return found


def _runs(clips):
  """Clips of an episode, parted where one does not begin where the one before ends."""
  runs = [[clips[0]]]
  for before, clip in itertools.pairwise(clips):
    if clip["start"] == before["start"] + len(before["video"]):
      runs[-1].append(clip)
    else:
      runs.append([clip])
  return runs


def windows(recorded, length):
  """Windows of `length` frames, side by side, out of all episodes: a batch of clips.

  Returns:
    {"video": [N, length, H, W, 3], "actions": [N, length, A], "episode": [N], ["caption": [N]]}.

  Raises:
    ValueError: if no episode is that long.
  """
  return _batch(
    _cut(episode, start, length)
    for episode in recorded
    for start in range(0, len(episode["video"]) - length + 1, length)
  )


def anywhere(recorded, length, seed, each=1):
  """`each` windows of `length` frames of every episode that is so long, from anywhere in it."""
  rng = np.random.default_rng(seed)
  long = {e["episode"]: e for e in recorded[::-1] if len(e["video"]) >= length}
  return _batch(
    _cut(episode, int(rng.integers(len(episode["video"]) - length + 1)), length)
    for _, episode in sorted(long.items())
    for _ in range(each)
  )


def _cut(episode, start, length):
  frames = slice(start, start + length)
  return episode | {key: episode[key][frames] for key in ("video", "actions")}


def _batch(clips):
  clips = list(clips)
  return {key: np.stack([clip[key] for clip in clips]) for key in clips[0]} if clips else None


def take(clips, rows):
  """Some rows (a slice or numbers) of a dict of arrays."""
  return {key: value[rows] for key, value in clips.items()}


def spread(count, of):
  """At most `count` row numbers, evenly over `of` rows."""
  return np.unique(np.linspace(0, of - 1, min(count, of)).round().astype(int))


def hold_out(path, *, clips, length, reference_length, seed, small=False):
  """Contexts to start from, each of another held-out episode, and real clips of other episodes.

  Args:
    path: dataset.
    clips: N.
    length: frames of each condition.
    reference_length: frames of each reference clip.
    seed: of where in its episode a condition begins.
    small: take several conditions of an episode, and real clips of the train split, if need be.

  Returns:
    (N windows, M windows with N <= M <= 4 N), batches of clips.

  Raises:
    ValueError: if there are too few episodes, or they are too short.
  """
  recorded = episodes(path, "test")
  long = anywhere(recorded, length, seed, each=clips if small else 1)
  found = 0 if long is None else len(long["video"])
  if found < clips:
    raise ValueError(
      f"{path} has {found} test episodes of {length} frames or more (the longest has "
      f"{longest(recorded)}), {clips} are asked for: lower config.clips or config.long, or record "
      "more episodes."
    )
  chosen = take(long, spread(clips, found))
  others = [episode for episode in recorded if episode["episode"] not in chosen["episode"]]
  if small and not others:
    others = episodes(path, "train")
  others = windows(others, reference_length)
  found = 0 if others is None else len(others["video"])
  if found < max(clips, 2):
    raise ValueError(
      f"The other test episodes of {path} hold {found} clips of {reference_length} frames to "
      f"compare with, {clips} are needed: lower config.clips, or record more episodes."
    )
  return chosen, take(others, spread(REFERENCE * clips, found))


def longest(recorded):
  """Frames of the longest episode."""
  return max(len(episode["video"]) for episode in recorded)


def cut_down(config, path, context):
  """The config of a small run with lengths that the episodes have."""
  room = longest(episodes(path, "test")) - context
  frames = tuple(length for length in config["frames"] if length <= room) or (room,)
  hold_frames = min(config["hold_frames"], room)
  return config | {"long": min(config["long"], room), "frames": frames, "hold_frames": hold_frames}


# ------------------------------------------------------------------------------------------------
# Actions
# ------------------------------------------------------------------------------------------------


def learn_actions(path, names, config, workdir):
  """(`InverseDynamics`, `Turns` or None) of the train split, from workdir where they were saved."""
  keys = ("seed", "reader_steps", "reader_clips")
  made_of = json.dumps([path, names, config["hold"], *(config[key] for key in keys)])
  name = hashlib.sha256(made_of.encode()).hexdigest()[:16]
  saved = workdir / "cells" / f"idm-{name}.npz"
  if not saved.exists():
    source = open_source(path, "train")
    clips = [source[int(i)] for i in spread(config["reader_clips"], len(source))]
    video, actions = (np.stack([clip[key] for clip in clips]) for key in ("video", "actions"))
    with tqdm(total=config["reader_steps"], desc="reader of actions", unit="step") as bar:
      options = {"seed": config["seed"], "steps": config["reader_steps"], "progress": bar.update}
      reader = fit_inverse_dynamics(video, actions, names=names, **options)
    reader.save(saved)
  reader = InverseDynamics.load(saved)
  reader.save(workdir / "idm.npz")
  sides = [config["hold"][side] for side in ("left", "right")]
  if not all(sides):
    return reader, None
  source, columns = open_source(path, "train"), [column(names, key) for key in sides]
  clips = [source[int(i)] for i in spread(TURN_CLIPS, len(source))]
  flow = horizontal_flow(np.stack([clip["video"] for clip in clips]))
  actions = np.stack([clip["actions"] for clip in clips])
  return reader, fit_turns(under(flow, actions, *columns), under(flow, actions, *columns[::-1]))


def readable(reader, clips):
  """The buttons that the reader tells on real frames; all that occur, if it tells none.

  Raises:
    ValueError: if no button is both up and down in these clips.
  """
  each = following(reader.read(clips["video"]), clips["actions"], reader, resamples=20)["buttons"]
  found = {name: value for name, value in each.items() if value is not None}
  return tuple(name for name, value in found.items() if value >= TELLS) or tuple(found)


def column(names, key):
  """Number of a button.

  Raises:
    ValueError: if there is none of this name.
  """
  if key not in names:
    raise ValueError(
      f"config.hold names {key!r}, but this world has the buttons {', '.join(names)}: give "
      '--config.hold.left=... and so on, or "" for none.'
    )
  return names.index(key)


def hold(names, keys):
  """Counterfactuals: name -> action vector with that one button down."""
  out = {}
  order = sorted(keys, key=lambda name: name not in ("left", "right"))  # those two side by side
  for name, key in ((name, keys[name]) for name in order):
    if key:
      out[name] = np.full(len(names), -1, np.float32)
      out[name][column(names, key)] = 1
  return out
