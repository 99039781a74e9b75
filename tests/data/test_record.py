"""The command: what it records, reuses and refuses."""

import json

import numpy as np
import pytest
from absl import flags
from absl.testing import flagsaver

from experiments import record
from vidstep.data import builder, captions, episodes, video_io, worlds
from vidstep.data.loader import Loader


def run(*arguments):
  """`python -m experiments.record ARGUMENTS` in this process."""
  with flagsaver.flagsaver():
    flags.FLAGS(["record", *arguments])
    record.run(["record"])


@pytest.fixture(scope="module")
def doom_flags(tmp_path_factory):
  pytest.importorskip("vizdoom")
  out = tmp_path_factory.mktemp("record") / "doom"
  arguments = [
    f"--out={out}",
    "--episodes=4",
    "--frames=20",
    "--clip_frames=8",
    "--size=24",
    "--frame_skip=4",
    "--test_fraction=0.25",
  ]
  run(*arguments)
  return out, arguments


def test_stored_actions_replay_the_stored_frames(doom_flags):
  out, _ = doom_flags
  world = worlds.DoomWorld("health_gathering", size=24, frame_skip=4)
  try:
    by_episode = {}
    for split in ("train", "test"):
      source = builder.read_split(out, split)
      for i in range(len(source)):
        by_episode.setdefault((split, int(source[i]["episode"])), []).append(source[i])
    assert sorted(index for _, index in by_episode) == [0, 1, 2, 3]
    told_apart = 0
    for clips in by_episode.values():
      assert [int(clip["start"]) for clip in clips] == [0, 8]
      actions = np.concatenate([clip["actions"] for clip in clips])
      video = np.concatenate([clip["video"] for clip in clips])
      seed = int(clips[0]["seed"])
      np.testing.assert_array_equal(episodes.replay(world, seed, actions), video)
      shifted = np.concatenate([actions[1:], actions[-1:]])
      told_apart += (episodes.replay(world, seed, shifted) != video).any()
    assert told_apart >= 2  # not every episode: who runs straight on presses the same throughout
  finally:
    world.close()


def test_the_recording_describes_itself(doom_flags):
  meta = builder.describe(doom_flags[0])
  assert meta["buttons"] == ["TURN_LEFT", "TURN_RIGHT", "MOVE_FORWARD"]
  assert (meta["frame_rate"], meta["frame_skip"], meta["policy"]) == (8.75, 4, "explore")
  assert meta["clips"] == {"train": 6, "test": 2} and meta["shape"] == [8, 24, 24, 3]
  assert meta["motion"] > 3 and meta["scenario"] == "health_gathering"


def test_several_scenarios_take_turns_under_common_buttons_with_captions(tmp_path):
  pytest.importorskip("vizdoom")
  names, buttons = ["health_gathering", "basic"], ["MOVE_FORWARD", "TURN_LEFT"]
  arguments = [
    f"--out={tmp_path / 'worlds'}",
    f"--scenario={','.join(names)}",
    "--episodes=4",
    "--frames=8",
    "--clip_frames=8",
    "--size=16",
    "--test_fraction=0.5",
    "--policy=steer",
  ]
  with pytest.raises(SystemExit, match=r"different buttons .*basic: MOVE_LEFT.*give --buttons"):
    run(*arguments)
  run(*arguments, f"--buttons={','.join(buttons)}")
  assert builder.describe(tmp_path / "worlds")["buttons"] == buttons
  sources = [builder.read_split(tmp_path / "worlds", split) for split in ("train", "test")]
  clips = [source[i] for source in sources for i in range(len(source))]
  for clip in clips:
    scenario = clip["scenario"].decode()
    assert scenario == names[clip["episode"] % 2] and clip["actions"].shape == (8, 2)
    assert clip["caption"].decode() in captions.captions(scenario)
  with pytest.raises(SystemExit, match="Doom has no button 'FLY_AWAY'"):
    run(*arguments[1:], f"--out={tmp_path / 'other'}", "--buttons=FLY_AWAY")


def test_captions_are_several_a_scenario_and_chosen_by_seed():
  drawn = {captions.caption("my_way_home", seed) for seed in range(50)}
  assert drawn == set(captions.captions("my_way_home")) and len(drawn) > 2
  assert captions.caption("my_way_home", 3) == captions.caption("my_way_home", 3)
  assert captions.captions("deathmatch") == ("a game of deathmatch",)


def test_the_same_recording_is_reused_and_another_refused(doom_flags, capsys):
  out, arguments = doom_flags
  before = (out / "metadata.json").stat().st_mtime_ns
  run(*arguments)
  assert "reused" in capsys.readouterr().out
  with pytest.raises(SystemExit, match=r"holds another recording \(seed=0\).*--overwrite"):
    run(*arguments, "--seed=5")
  assert (out / "metadata.json").stat().st_mtime_ns == before


def test_an_interrupted_recording_leaves_nothing(doom_flags, tmp_path, monkeypatch):
  real, calls = episodes.record, []

  def interrupted(*args, **kwargs):
    calls.append(1)
    if len(calls) == 3:
      raise KeyboardInterrupt
    return real(*args, **kwargs)

  monkeypatch.setattr(episodes, "record", interrupted)
  _, arguments = doom_flags
  with pytest.raises(KeyboardInterrupt):
    run(*arguments, f"--out={tmp_path / 'doom'}")
  assert list(tmp_path.iterdir()) == []


def test_worlds_that_end_too_early_say_what_to_lower(tmp_path):
  pytest.importorskip("vizdoom")
  with pytest.raises(SystemExit, match="in a row ended before frame 60: lower --clip_frames"):
    run(
      f"--out={tmp_path / 'd'}",
      "--scenario=deadly_corridor",
      "--clip_frames=60",
      "--frame_skip=8",
      "--size=16",
    )
  assert list(tmp_path.iterdir()) == []


@pytest.fixture
def videos(tmp_path):
  folder = tmp_path / "videos"
  for i, name in enumerate(["a", "b", "c", "d"]):
    frames = np.full((12, 32, 48, 3), 60 * i, np.uint8)
    frames[:, :, :6] = frames[:, :, -6:] = 255  # cut off by the centre crop
    video_io.save_video(folder / "deep" / f"{name}.mp4", frames, 20)
  (folder / "deep" / "b.txt").write_text("from the sidecar\n")
  lines = [{"file": f"deep/{n}.mp4", "caption": f"listed {n}"} for n in ("a", "b", "c")]
  (folder / "captions.jsonl").write_text("\n".join(map(json.dumps, lines)) + "\n")
  return folder


def test_a_folder_of_videos_becomes_captioned_clips(videos, tmp_path):
  out = str(tmp_path / "clips")
  run(
    "--source=folder",
    f"--folder={videos}",
    f"--out={out}",
    "--clip_frames=3",
    "--frame_skip=2",
    "--size=16",
    "--test_fraction=0.25",
  )
  meta = builder.describe(out)
  assert meta["frame_rate"] == 10 and meta["buttons"] == []
  assert meta["clips"] == {"train": 6, "test": 2}
  expected = {"a": "listed a", "b": "from the sidecar", "c": "listed c", "d": ""}
  for split in ("train", "test"):
    source = builder.read_split(out, split)
    for i in range(len(source)):
      clip = source[i]
      name = clip["scenario"].decode()[0]
      assert clip["caption"].decode() == expected[name]
      assert np.abs(clip["video"].astype(int) - 60 * "abcd".index(name)).max() <= 6
  batch = next(Loader(out, "train", batch_size=2, frames=2))
  assert batch["actions"].shape == (2, 2, 0) and batch["caption"].shape == (2,)


def test_folders_without_videos_or_with_broken_captions_are_told(videos, tmp_path):
  arguments = ["--source=folder", f"--out={tmp_path / 'clips'}"]
  with pytest.raises(SystemExit, match="needs --folder=PATH"):
    run(*arguments)
  with pytest.raises(SystemExit, match="is no folder"):
    run(*arguments, "--folder=/nowhere")
  (tmp_path / "empty").mkdir()
  with pytest.raises(SystemExit, match="No video in"):
    run(*arguments, f"--folder={tmp_path / 'empty'}")
  (videos / "captions.jsonl").write_text('{"file": "a.mp4"}\n')
  with pytest.raises(SystemExit, match=r"captions\.jsonl, line 1"):
    run(*arguments, f"--folder={videos}")
  (videos / "captions.jsonl").unlink()
  with pytest.raises(SystemExit, match="has no clips: record more or longer"):
    run(*arguments, f"--folder={videos}", "--clip_frames=100")
