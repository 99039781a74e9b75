"""The dataset on disk: written whole or not at all, read from its directory alone."""

import json
import sys

import numpy as np
import pytest
from telling import CLIP, SIZE, telling_clips

from vidstep.data import builder


def test_what_is_written_is_read_back_exactly(dataset):
  source = builder.read_split(dataset, "train")
  written = telling_clips(range(10))
  assert len(source) == len(written)
  for i in (0, 7, 19, 3):
    np.testing.assert_array_equal(source[i]["video"], written[i]["video"])
    np.testing.assert_array_equal(source[i]["actions"], written[i]["actions"])
    for name in ("episode", "start", "seed"):
      assert source[i][name] == written[i][name]
    assert source[i]["scenario"] == b"telling"


def test_no_tensorflow_is_imported(dataset):
  builder.read_split(dataset, "train")[0]
  assert "tensorflow" not in sys.modules


def test_splits_share_no_episode(dataset):
  episodes = {
    split: {int(clip["episode"]) for clip in builder.read_split(dataset, split)}
    for split in ("train", "test")
  }
  assert episodes == {"train": set(range(10)), "test": {10, 11}}


def test_describe_tells_what_was_stored_and_counted(dataset):
  assert builder.describe(dataset) == {
    "buttons": ["e", "f"],
    "frame_rate": 8.75,
    "clips": {"train": 20, "test": 4},
    "shape": [CLIP, SIZE, SIZE, 3],
  }


def test_a_dataset_can_be_moved(dataset, tmp_path):
  import shutil

  moved = shutil.copytree(dataset, tmp_path / "elsewhere")
  assert builder.read_split(moved, "test")[1]["start"] == CLIP


def test_an_interruption_leaves_nothing(tmp_path):
  def interrupted():
    yield from telling_clips([0])
    raise KeyboardInterrupt

  with pytest.raises(KeyboardInterrupt):
    builder.write_dataset(tmp_path / "d", {"train": interrupted()}, {})
  assert list(tmp_path.iterdir()) == []


def test_an_interrupted_overwrite_keeps_the_old_dataset(tmp_path):
  path = tmp_path / "d"
  builder.write_dataset(path, {"train": telling_clips([0])}, {"version": 1})
  (tmp_path / "d.partial").mkdir()  # what a killed process leaves: swept away
  with pytest.raises(FileExistsError, match="overwrite"):
    builder.write_dataset(path, {"train": telling_clips([1])}, {})
  with pytest.raises(ValueError, match="no clips"):
    builder.write_dataset(path, {"train": []}, {}, overwrite=True)
  assert builder.describe(path)["version"] == 1
  builder.write_dataset(path, {"train": telling_clips([1])}, {"version": 2}, overwrite=True)
  assert builder.describe(path)["version"] == 2
  assert [p.name for p in tmp_path.iterdir()] == ["d"]


def test_overwriting_never_deletes_what_is_no_dataset(tmp_path):
  (tmp_path / "precious").write_text("thesis")
  with pytest.raises(FileExistsError, match="is no dataset, so it is not replaced"):
    builder.write_dataset(tmp_path, {"train": telling_clips([0])}, {}, overwrite=True)
  assert (tmp_path / "precious").exists()


def test_clips_of_other_shapes_and_empty_splits_are_refused(tmp_path):
  clips = telling_clips([0])
  clips[1] = clips[1] | {"video": clips[1]["video"][:-1]}
  with pytest.raises(ValueError, match=r"Clip 2 of 'train' has video \[5, 8, 8, 3\]"):
    builder.write_dataset(tmp_path / "d", {"train": clips}, {})
  with pytest.raises(ValueError, match="'test' has no clips"):
    builder.write_dataset(tmp_path / "d", {"train": telling_clips([0]), "test": []}, {})
  assert list(tmp_path.iterdir()) == []


def test_missing_datasets_and_splits_are_told_in_a_sentence(dataset, tmp_path):
  with pytest.raises(FileNotFoundError, match=r"experiments\.record"):
    builder.describe(tmp_path / "nowhere")
  with pytest.raises(ValueError, match="no split 'validation'; it has train, test"):
    builder.read_split(dataset, "validation")


def test_metadata_lies_beside_the_clips_as_json(dataset):
  with open(f"{dataset}/metadata.json") as file:
    assert json.load(file)["buttons"] == ["e", "f"]
