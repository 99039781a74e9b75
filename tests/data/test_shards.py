"""Writing shard by shard: killed anywhere and resumed, alone or shared, the bytes are the same."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
from grown import grow, make
from mutation import assert_caught, mutant

from vidstep.data import shards
from vidstep.data.builder import describe, read_split
from vidstep.data.loader import Loader
from vidstep.data.shards import Item


def content(path):
  """Name -> bytes of every file of a finished dataset."""
  assert not any(p.is_dir() for p in Path(path).iterdir())
  return {p.name: p.read_bytes() for p in Path(path).iterdir()}


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
  path = tmp_path_factory.mktemp("shards") / "d"
  assert grow(path)
  return content(path)


def test_a_dataset_is_its_shards_and_three_descriptions(whole):
  assert sorted(whole) == [
    "dataset_info.json",
    "features.json",
    *(f"latents-test.array_record-{i:05d}-of-00001" for i in range(1)),
    *(f"latents-train.array_record-{i:05d}-of-00004" for i in range(4)),
    "metadata.json",
  ]
  meta = json.loads(whole["metadata.json"])
  assert meta["request"] == {"seed": 0, "splits": {"train": 13, "test": 3}, "shard_items": 4}
  assert meta["kind"] == "latents" and meta["skipped"] == {}


def check_parts(whole, path, write):
  order = [2, 0, 1]
  done = [grow(path, write=write, part=(i, 3)) for i in order]
  assert done == [False, False, True]
  assert content(path) == whole


def test_processes_together_write_what_one_writes(whole, tmp_path):
  check_parts(whole, tmp_path / "d", shards.write_shards)
  alike = mutant(shards, "shards[index::count]", "shards[0::count]")
  assert_caught(check_parts, whole, tmp_path / "alike", alike.write_shards)
  early = mutant(shards, "if not all(shard.file.exists() for shard in shards)", "if False")
  with pytest.raises((AssertionError, FileNotFoundError)):
    check_parts(whole, tmp_path / "early", early.write_shards)


def check_interruptions(whole, path, write):
  """Breaks off in every batch of items, each time after one more."""
  calls = []

  def breaking(items):
    calls.append(tuple(items))
    if calls.count(calls[-1]) == 1:
      raise KeyboardInterrupt
    return make(items)

  for _ in range(20):
    try:
      if grow(path, breaking, write=write):
        break
    except KeyboardInterrupt:
      with pytest.raises(FileNotFoundError, match=r"half made \(\d of 5 shards\): run the command"):
        describe(path)
  assert content(path) == whole
  assert all(calls.count(batch) == 2 for batch in set(calls))  # nothing is made once more
  assert set(calls) == {(0, 1), (2, 3), (4, 5), (6, 7), (8, 9), (10, 11), (12,), (13, 14), (15,)}


def test_interrupted_in_every_batch_it_goes_on_to_the_same_bytes(whole, tmp_path):
  check_interruptions(whole, tmp_path / "d", shards.write_shards)
  again = mutant(
    shards, "missing = [item for item in items if not shard.item(item).exists()]",
    "missing = list(items)",
  )  # fmt: skip
  assert_caught(check_interruptions, whole, tmp_path / "again", again.write_shards)


def test_a_batch_that_was_half_stored_is_made_from_the_same_numbers(whole, tmp_path):
  path, calls = tmp_path / "d", []
  stored = path / "unfinished" / "items"
  good = iter(make([0, 1]))

  def half(items):
    yield next(good)
    raise KeyboardInterrupt

  with pytest.raises(KeyboardInterrupt):
    grow(path, half)
  assert [p.name for p in stored.iterdir()] == ["train-00000000"]
  grow(path, lambda items: calls.append(tuple(items)) or make(items))
  assert calls[0] == (0, 1) and content(path) == whole


# One import for all lives: each is a fork, killed from outside.
LIVES = """
import os, random, signal, sys, time
sys.path[:0] = {paths!r}
from grown import grow, make

def slow(items):
  time.sleep(0.02)
  return make(items)

random.seed(0)
for killed in range(60):
  child = os.fork()
  if not child:
    grow({path!r}, slow)
    os._exit(0)
  time.sleep(random.uniform(0.01, 0.1) * 1.1**killed)  # on a busy machine a life needs longer
  os.kill(child, signal.SIGKILL)
  if os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0:
    break
print(killed)
"""


def test_kill_9_at_any_moment_and_the_same_command_ends_in_the_same_bytes(whole, tmp_path):
  paths = [str(Path(__file__).parent), str(Path(__file__).parents[2])]
  code = LIVES.format(paths=paths, path=str(tmp_path / "d"))
  lives = subprocess.run([sys.executable, "-c", code], capture_output=True, check=True, text=True)
  assert 3 <= int(lives.stdout) < 59
  assert content(tmp_path / "d") == whole


def test_two_processes_at_the_same_part_do_the_same_twice(whole, tmp_path):
  path, told = tmp_path / "d", []

  def late(items):
    if not told:
      told.append(grow(path))  # the other one makes everything meanwhile
    return make(items)

  assert grow(path, late)
  assert told == [True] and content(path) == whole


def test_items_may_give_several_examples_or_none(tmp_path):
  def some(items):
    return [Item([], "broken") if i % 3 == 1 else Item(make([i])[0].examples * 2) for i in items]

  assert grow(tmp_path / "d", some, splits={"train": 7}, shard_items=1)
  meta = describe(tmp_path / "d")
  assert meta["clips"] == {"train": 10}
  assert meta["skipped"] == {"1": "broken", "4": "broken"}
  source = read_split(tmp_path / "d", "train")
  assert [int(source[i]["index"]) for i in range(10)] == [0, 0, 2, 2, 3, 3, 5, 5, 6, 6]
  with pytest.raises(ValueError, match="No item of split 'train' could be used"):
    grow(tmp_path / "e", lambda items: [Item([], "x")] * len(items), splits={"train": 3})


def test_a_finished_dataset_is_reused_and_nothing_else_is_touched(whole, tmp_path):
  path = tmp_path / "d"
  assert grow(path)
  (path / "unfinished").mkdir()  # killed at the very end
  assert grow(path, lambda items: 1 / 0)
  assert content(path) == whole
  with pytest.raises(FileExistsError, match=r"other settings \(seed=0, now 1\)"):
    grow(path, request={"seed": 1})
  (tmp_path / "thesis").mkdir()
  (tmp_path / "thesis" / "chapter").write_text("1")
  with pytest.raises(FileExistsError, match="holds something else"):
    grow(tmp_path / "thesis")


def test_a_run_that_goes_on_must_want_the_same(tmp_path):
  with pytest.raises(ZeroDivisionError):
    grow(tmp_path / "d", lambda items: 1 / 0)
  with pytest.raises(FileExistsError, match=r"'train': 13.*now.*'train': 14"):
    grow(tmp_path / "d", splits={"train": 14, "test": 3})
  with pytest.raises(FileNotFoundError, match=r"half made \(0 of 5 shards\)"):
    Loader(str(tmp_path / "d"), "train", batch_size=1, frames=1)


def test_progress_counts_what_was_there(tmp_path):
  told = []
  grow(tmp_path / "d", part=(0, 2), on_items=lambda *n: told.append(n))
  assert told == [(0, 11), (2, 11), (4, 11), (6, 11), (8, 11), (10, 11), (11, 11)]
  told.clear()
  grow(tmp_path / "d", part=(0, 2), on_items=lambda *n: told.append(n))
  assert told == [(11, 11)]


def test_impossible_requests_are_refused(tmp_path):
  for options, sentence in (
    ({"part": (2, 2)}, "part 2 of 2 does not exist"),
    ({"splits": {"train": 3, "test": 0}}, "Every split needs items"),
    ({"batch": 0}, "at least 1"),
  ):
    with pytest.raises(ValueError, match=sentence):
      grow(tmp_path / "d", **options)
  with pytest.raises(ValueError, match="make room"):
    shards.check_space(tmp_path / "not" / "there", 10**18)
  shards.check_space(tmp_path / "not" / "there", 1)
