"""Record video with actions: Doom, any Gymnasium environment with pixels, or a folder of videos.

What it makes is a directory that `vidstep.data.loader.Loader` reads: clips of fixed length, split
by episode into train and test, with the actions that lead into each frame and everything needed to
play an episode again. It appears only when it is complete; a second run with the same settings
reuses it.

Doom, the example world (needs the extra: pip install 'vidstep[doom]'):
  python -m experiments.record --source=vizdoom --scenario=health_gathering --out=datasets/doom

Several scenarios under one set of buttons, a caption with each clip, for a world that is prompted:
  python -m experiments.record --scenario=health_gathering,my_way_home --policy=steer \
      --buttons=TURN_LEFT,TURN_RIGHT,MOVE_FORWARD --out=datasets/worlds

Atari, or any other Gymnasium environment that renders:
  python -m experiments.record --source=gym --env=ALE/Boxing-v5 --out=datasets/boxing

Your own videos (no actions; captions from b.txt beside b.mp4, or from captions.jsonl with lines
{"file": "b.mp4", "caption": "..."}):
  python -m experiments.record --source=folder --folder=videos --frame_skip=2 --out=datasets/mine

The random policy mostly stares at walls. `explore` runs forward, holds keys for several steps and
turns away before a wall, or where the picture stops changing; `steer` does so with every
combination of turning and running, so that a world model sees what each key does. The motion of the
result, mean |frame difference| on 0..255, is printed and stored.
"""

import sys
import time

from absl import app, flags, logging
from tqdm import tqdm

from experiments.flags import define_out
from vidstep.data import builder, captions, episodes, folder, video_io, worlds
from vidstep.data.controls import column_names
from vidstep.data.policies import POLICIES

FLAGS = flags.FLAGS
flags.DEFINE_enum("source", "vizdoom", ["vizdoom", "gym", "folder"], "What to record.")
flags.DEFINE_list(
  "scenario",
  ["health_gathering"],
  "ViZDoom scenarios, separated by commas; episodes take turns (--source=vizdoom).",
)
flags.DEFINE_list(
  "buttons",
  None,
  "The buttons of the player, such as TURN_LEFT,TURN_RIGHT,MOVE_FORWARD; several scenarios need a "
  "common set. None: those of the scenario (--source=vizdoom).",
)
flags.DEFINE_string("env", "ALE/Boxing-v5", "Gymnasium environment (--source=gym).")
flags.DEFINE_string("folder", None, "Folder with video files (--source=folder).")
define_out("Directory of the dataset to make, such as datasets/doom.")
flags.declare_key_flag("out")
flags.DEFINE_integer("episodes", 60, "Episodes to record; for a folder, videos at most.", 2)
flags.DEFINE_integer("frames", 128, "Frames per episode at most; it may end earlier.", 2)
flags.DEFINE_integer("clip_frames", 32, "Episodes are stored as clips of this many frames.", 2)
flags.DEFINE_integer("size", 64, "Height and width of a frame in pixels.", 8)
flags.DEFINE_integer(
  "frame_skip",
  4,
  "An action is held for this many engine steps, one frame is kept after them (Doom: 35 a second, "
  "so 4 gives 8.75 frames a second). For a folder: keep every n-th frame.",
  1,
)
flags.DEFINE_enum("policy", "explore", sorted(POLICIES), "Who plays.")
flags.DEFINE_float("test_fraction", 0.15, "Part of the episodes that goes to the test split.")
flags.DEFINE_integer("seed", 0, "Of the worlds, the policy and the split.", 0)
flags.DEFINE_bool("overwrite", False, "Replace a dataset that is already at --out.")
flags.mark_flag_as_required("out")

# Flags that say what is recorded: a dataset with the same values is the same dataset.
REQUEST = ("source", "episodes", "frames", "clip_frames", "size", "frame_skip", "seed")
ATTEMPTS = 20  # worlds in which so many episodes in a row die young are not recorded


def request() -> dict:
  """What was asked for, as it is stored with the dataset."""
  what = {"vizdoom": "scenario", "gym": "env", "folder": "folder"}[FLAGS.source]
  names = (*REQUEST, "test_fraction", what) + (() if what == "folder" else ("policy",))
  asked = {name: getattr(FLAGS, name) for name in names}
  if what == "scenario":
    asked["scenario"] = ",".join(FLAGS.scenario)
    asked |= {"buttons": FLAGS.buttons} if FLAGS.buttons else {}
  return asked


def reusable(wanted: dict) -> bool:
  """Whether --out already holds exactly this; refuses with a sentence if it holds anything else."""
  try:
    there = builder.describe(FLAGS.out).get("request", {})
  except FileNotFoundError:
    return False
  differ = [f"{k}={there.get(k)}" for k in wanted | there if there.get(k) != wanted.get(k)]
  if differ:
    raise FileExistsError(
      f"{FLAGS.out} holds another recording ({', '.join(differ)}): choose another --out, or "
      "replace it with --overwrite."
    )
  return True


def open_worlds():
  """Scenario (or environment) -> world, all with the same controls.

  Raises:
    ValueError: scenarios whose buttons differ, and no --buttons.
  """
  if FLAGS.source == "gym":
    return {FLAGS.env: worlds.GymWorld(FLAGS.env, FLAGS.size, FLAGS.frame_skip)}
  opened = {}
  for scenario in FLAGS.scenario:
    opened[scenario] = worlds.DoomWorld(scenario, FLAGS.size, FLAGS.frame_skip, FLAGS.buttons)
  controls = {scenario: world.controls for scenario, world in opened.items()}
  if len(set(controls.values())) > 1:
    for world in opened.values():
      world.close()
    each = "; ".join(f"{name}: {','.join(column_names(c))}" for name, c in controls.items())
    raise ValueError(f"These scenarios have different buttons ({each}): give --buttons for all.")
  return opened


def world_episodes(opened, indices, bar):
  """Yield the episodes of these numbers, each long enough for at least one clip.

  Args:
    opened: scenario -> world; episode i is played in scenario i modulo their number.
    indices: numbers of the episodes.
    bar: progress.
  """
  policy, scenarios = POLICIES[FLAGS.policy](), list(opened)
  for index in indices:
    scenario = scenarios[index % len(scenarios)]
    for attempt in range(ATTEMPTS):
      before = bar.n
      seed = episodes.episode_seed(FLAGS.seed, index, attempt)
      episode = episodes.record(
        opened[scenario],
        policy,
        frames=FLAGS.frames,
        seed=seed,
        index=index,
        scenario=scenario,
        caption=captions.caption(scenario, seed) if FLAGS.source == "vizdoom" else None,
        on_frame=bar.update,
      )
      if len(episode.video) >= FLAGS.clip_frames:
        break
      bar.update(before - bar.n)
    else:
      raise ValueError(
        f"{ATTEMPTS} episodes of {scenario} in a row ended before frame {FLAGS.clip_frames}: lower "
        "--clip_frames or --frame_skip."
      )
    bar.total -= FLAGS.frames - len(episode.video)
    yield episode


def folder_episodes(videos, texts, indices, bar):
  """Yield the videos of these numbers as episodes; too short ones are left out."""
  for index in indices:
    video = videos[index]
    episode = folder.read_episode(
      video,
      index=index,
      size=FLAGS.size,
      frame_skip=FLAGS.frame_skip,
      frames=FLAGS.frames,
      caption=texts.get(video, "") if texts else None,
      on_frame=bar.update,
    )
    bar.total -= FLAGS.frames - len(episode.video)
    yield episode


def clips_of(recorded, meta, measured):
  """Cut episodes into clips; meta["motion"] becomes the mean motion of all clips so far."""
  for episode in recorded:
    for clip in episodes.cut(episode, FLAGS.clip_frames):
      measured.append(episodes.motion(clip["video"]))
      meta["motion"] = round(sum(measured) / len(measured), 3)
      yield clip


def main(argv):
  if len(argv) > 1:
    raise app.UsageError(f"Unknown argument {argv[1]!r}: every option is written --name=value.")
  logging.set_verbosity(logging.WARNING)
  wanted = request()
  if not FLAGS.overwrite and reusable(wanted):
    print(f"{FLAGS.out} already holds this recording: reused. (--overwrite records it again.)")
    return
  started = time.perf_counter()
  meta = {"source": FLAGS.source, "request": wanted, "frame_skip": FLAGS.frame_skip}
  measured = []
  opened, count = {}, FLAGS.episodes
  if FLAGS.source == "folder":
    if FLAGS.folder is None:
      raise ValueError("--source=folder needs --folder=PATH with video files in it.")
    videos = folder.list_videos(FLAGS.folder)[:count]
    texts, count = folder.read_captions(FLAGS.folder, videos), len(videos)
    meta |= {"buttons": [], "frame_rate": video_io.frame_rate(videos[0]) / FLAGS.frame_skip}
  else:
    opened = open_worlds()
    world = next(iter(opened.values()))
    meta |= {
      "scenario": ",".join(opened),
      "policy": FLAGS.policy,
      "buttons": column_names(world.controls),
      "frame_rate": world.frame_rate,
    }
  splits = episodes.split_episodes(count, FLAGS.test_fraction, FLAGS.seed)
  try:
    with tqdm(total=count * FLAGS.frames, unit="frame", desc="recording", smoothing=0.1) as bar:
      recorded = {
        split: folder_episodes(videos, texts, indices, bar)
        if not opened
        else world_episodes(opened, indices, bar)
        for split, indices in splits.items()
      }
      clips = {split: clips_of(of_split, meta, measured) for split, of_split in recorded.items()}
      builder.write_dataset(FLAGS.out, clips, meta, overwrite=FLAGS.overwrite)
      frames = bar.n
  finally:
    for world in opened.values():
      world.close()
  made = builder.describe(FLAGS.out)
  counts = ", ".join(f"{n} {split}" for split, n in made["clips"].items())
  print(
    f"{FLAGS.out}: {counts} clips of {'x'.join(map(str, made['shape'][:3]))} at "
    f"{made['frame_rate']:.4g} frames/s, buttons {made['buttons'] or 'none'}, mean motion "
    f"{made['motion']:.1f} of 255; {frames} frames in {time.perf_counter() - started:.1f} s."
  )


def run(argv):
  """Errors that the user can mend are told in one sentence, without a stack of calls."""
  try:
    main(argv)
  except (ValueError, FileNotFoundError, FileExistsError, ImportError) as error:
    sys.exit(f"record: {error}")


if __name__ == "__main__":
  app.run(run)
