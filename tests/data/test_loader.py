"""The stream: reproducible, resumable, independent of how many processes share it."""

import json
from itertools import islice
from pathlib import Path

import numpy as np
import pytest
from mutation import assert_caught, mutant
from telling import CLIP, SIZE, telling_clips

from vidstep.data import loader
from vidstep.data.builder import write_dataset
from vidstep.data.loader import Loader, data_info


def make(dataset, split="train", make_loader=Loader, **options):
  return make_loader(dataset, split, **({"batch_size": 4, "frames": 3, "prefetch": 0} | options))


def take(stream, n):
  return list(islice(stream, n))


def assert_same(a, b):
  assert len(a) == len(b) and len(a) > 0
  for x, y in zip(a, b, strict=True):
    assert x.keys() == y.keys()
    for name in x:
      np.testing.assert_array_equal(x[name], y[name])


def test_a_batch_has_the_promised_shapes(dataset):
  batch = next(make(dataset))
  assert batch.keys() == {"video", "actions"}
  assert batch["video"].shape == (4, 3, SIZE, SIZE, 3) and batch["video"].dtype == np.uint8
  assert batch["actions"].shape == (4, 3, 2) and batch["actions"].dtype == np.float32


def check_windows(dataset, make_loader):
  starts = set()
  for batch in take(make(dataset, make_loader=make_loader), 40):
    pixels = batch["video"][:, :, 0, 0, :2].astype(np.float32)
    np.testing.assert_array_equal(pixels, batch["actions"])
    frames = batch["actions"][..., 1]
    np.testing.assert_array_equal(np.diff(frames, axis=1), 1)
    assert (frames[:, 0] // CLIP == frames[:, -1] // CLIP).all()
    starts |= set((frames[:, 0] % CLIP).astype(int).tolist())
  assert starts == {0, 1, 2, 3}  # every place where a window of 3 fits into 6


def test_actions_stay_with_their_frames_and_windows_inside_clips(dataset):
  check_windows(dataset, Loader)
  shifted = mutant(loader, 'clip["video"][start', 'np.roll(clip["video"], 1, axis=0)[start')
  assert_caught(check_windows, dataset, shifted.Loader)
  stuck = mutant(loader, "- frames + 1)))(clip)", "- frames)))(clip)")
  assert_caught(check_windows, dataset, stuck.Loader)


def test_the_same_seed_gives_the_same_stream_and_another_does_not(dataset):
  first = take(make(dataset), 12)
  assert_same(first, take(make(dataset), 12))
  assert_same(first, take(make(dataset, prefetch=2), 12))
  other = take(make(dataset, seed=1), 12)
  assert any((a["actions"] != b["actions"]).any() for a, b in zip(first, other, strict=True))


def clip_ids(batches):
  rows = np.concatenate([batch["actions"] for batch in batches])
  return [(int(r[0, 0]), int(r[0, 1]) // CLIP) for r in rows]


def check_epochs(dataset, make_loader):
  batches = take(make(dataset, make_loader=make_loader), 10)  # 20 clips: 5 batches an epoch
  first, second = clip_ids(batches[:5]), clip_ids(batches[5:])
  assert len(set(first)) == len(set(second)) == 20
  assert first != second


def test_an_epoch_shows_every_clip_once_and_the_next_in_another_order(dataset):
  check_epochs(dataset, Loader)
  same = mutant(loader, ".repeat()", ".repeat(reseed_each_epoch=False)")
  assert_caught(check_epochs, dataset, same.Loader)


@pytest.mark.parametrize("prefetch", [0, 2])
def test_a_restored_loader_continues_bit_for_bit(dataset, prefetch):
  stream = make(dataset, prefetch=prefetch)
  take(stream, 7)
  state = json.loads(json.dumps(stream.state()))
  expected = take(stream, 6)
  fresh = make(dataset, prefetch=prefetch)
  fresh.restore(state)
  assert_same(take(fresh, 6), expected)
  stream.restore(state)  # the same loader can go back
  assert_same(take(stream, 6), expected)


def test_a_position_of_another_stream_is_refused(dataset):
  state = make(dataset).state()
  with pytest.raises(ValueError, match="seed 0 -> 1"):
    make(dataset, seed=1).restore(state)
  with pytest.raises(ValueError, match="batch 4 -> 5"):
    make(dataset, batch_size=5).restore(state)


def check_shards(dataset, make_loader, count):
  whole = take(make(dataset, batch_size=8), 6)
  parts = [
    take(make(dataset, make_loader=make_loader, batch_size=8 // count, shard=(i, count)), 6)
    for i in range(count)
  ]
  joined = [
    {name: np.concatenate([part[name] for part in step]) for name in step[0]}
    for step in zip(*parts, strict=True)
  ]
  assert_same(joined, whole)


def test_processes_share_the_very_batches_of_one(dataset):
  for count in (2, 4):
    check_shards(dataset, Loader, count)
  alike = mutant(loader, "[index::count]", "[0::count]")
  assert_caught(check_shards, dataset, alike.Loader, 2)


def test_the_test_split_is_one_pass_in_order_and_can_be_repeated(dataset):
  stream = make(dataset, "test", batch_size=3)
  passes = list(stream), list(stream)
  assert_same(*passes)
  assert len(stream) == 2 and [len(b["video"]) for b in passes[0]] == [3, 1]
  assert clip_ids(passes[0]) == [(10, 0), (10, 1), (11, 0), (11, 1)]
  assert (np.concatenate([b["actions"] for b in passes[0]])[:, 0, 1] % CLIP == 0).all()
  dropped = make(dataset, "test", batch_size=3, drop_remainder=True)
  assert [len(b["video"]) for b in dropped] == [3] and len(dropped) == 1


def test_the_train_split_has_no_length(dataset):
  with pytest.raises(TypeError, match="endless"):
    len(make(dataset))


@pytest.mark.parametrize(
  ("options", "sentence"),
  [
    ({"frames": 7}, "clips of 6 frames, so windows of 7 cannot be cut: lower data.frames"),
    ({"frames": 0}, "windows of 0 cannot be cut"),
    ({"batch_size": 21}, "has 20 clips, fewer than one batch of 21 x 1"),
    ({"batch_size": 11, "shard": (0, 2)}, "fewer than one batch of 11 x 2"),
    ({"shard": (2, 2)}, "must be \\(index, count\\)"),
    ({"batch_size": 0}, "at least 1"),
    ({"split": "val"}, "no split 'val'"),
  ],
)
def test_impossible_requests_are_told_in_a_sentence(dataset, options, sentence):
  with pytest.raises(ValueError, match=sentence):
    make(dataset, **options)


def test_a_missing_dataset_says_how_to_record_one(tmp_path):
  with pytest.raises(FileNotFoundError, match=r"python -m experiments\.record --out="):
    make(str(tmp_path / "none"))


@pytest.mark.parametrize("damage", ["flip", "cut"])
def test_a_corrupt_record_names_itself_and_the_remedy(tmp_path, damage):
  write_dataset(tmp_path / "d", {"train": noisy_clips()}, {})
  (records,) = Path(tmp_path / "d").glob("*train*")
  content = bytearray(records.read_bytes())
  middle = slice(len(content) // 4, len(content) * 3 // 4)
  content[middle] = bytes(255 - b for b in content[middle]) if damage == "flip" else b""
  records.write_bytes(content)
  with pytest.raises(ValueError, match=r"cannot be read .*record the dataset again"):
    take(make(str(tmp_path / "d"), batch_size=2), 10)


def noisy_clips():
  rng = np.random.default_rng(0)
  return [
    clip | {"video": rng.integers(0, 256, clip["video"].shape, dtype=np.uint8)}
    for clip in telling_clips(range(60))
  ]


def test_captions_arrive_as_text_and_absent_actions_have_width_0(tmp_path):
  clips = [
    clip | {"actions": clip["actions"][:, :0], "caption": f"épisode {clip['episode']}"}
    for clip in telling_clips(range(3))
  ]
  write_dataset(tmp_path / "d", {"test": clips}, {})
  batch = next(make(str(tmp_path / "d"), "test"))
  assert batch["actions"].shape == (4, 3, 0) and batch["actions"].dtype == np.float32
  assert batch["caption"].tolist() == ["épisode 0", "épisode 0", "épisode 1", "épisode 1"]


def test_the_synthetic_world_comes_through_the_same_door():
  spec = "synthetic:clips=8,frames=6,size=16"
  loader = Loader(spec, "train", batch_size=4, frames=5, seed=0)
  assert (loader.num_clips, loader.frames_per_clip, loader.size, loader.num_actions) == (
    8,
    6,
    16,
    4,
  )
  assert next(loader)["video"].shape == (4, 5, 16, 16, 3)
  info = data_info(spec)
  assert info["clips"] == {"train": 8, "test": 8} and info["shape"] == [6, 16, 16, 3]
  with pytest.raises(ValueError, match="clips=, frames=, size= or seed="):
    Loader("synthetic:colour=3", "train", batch_size=4, frames=5)
