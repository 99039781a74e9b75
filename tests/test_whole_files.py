"""Files that are there whole or not at all, whatever ends the writing."""

import inspect
import json
import os
import signal
import subprocess
import sys

import pytest
from mutation import assert_caught, mutant

from vidstep import files

NAME = 'partial = pathlib.Path(folder, f"{path.name[:48]}.{own}.partial")'
# Writes half of a file, and dies.
KILLED = """
import signal, sys
with whole(sys.argv[1]) as partial:
  partial.write_text("ne")
  os.kill(os.getpid(), signal.SIGKILL)
"""


def check_an_exception(files, path):
  path.write_text("old")
  with pytest.raises(KeyboardInterrupt), files.whole(path) as partial:
    partial.write_text("ne")
    raise KeyboardInterrupt
  assert os.listdir(path.parent) == [path.name] and path.read_text() == "old"
  with files.whole(path) as partial:
    partial.write_text("new")
    assert path.read_text() == "old" and partial.suffix == ".partial"
  assert path.read_text() == "new" and os.listdir(path.parent) == [path.name]


def check_a_kill(files, path, source):
  path.write_text("old")
  for _ in range(2):
    died = subprocess.run([sys.executable, "-c", source + KILLED, path], check=False)
    assert died.returncode == -signal.SIGKILL
    assert path.read_text() == "old" and len(os.listdir(path.parent)) == 2
  with files.whole(path) as partial:
    partial.write_text("new")
  assert path.read_text() == "new" and os.listdir(path.parent) == [path.name]


@pytest.mark.parametrize("name", ["a.json", "🦙" * 63 + ".x", "without"])  # 254 of 255 bytes
def test_an_exception_leaves_the_old_file_and_no_other(name, tmp_path):
  check_an_exception(files, tmp_path / name)


def test_a_kill_leaves_the_old_file_and_the_next_writing_sweeps(tmp_path):
  check_a_kill(files, tmp_path / "a.json", inspect.getsource(files))


@pytest.mark.parametrize(
  ("old", "new"),
  [
    (NAME, "partial = path"),
    ("partial.unlink(missing_ok=True)", "pass"),
    ("os.replace(partial, path)", "pass"),
  ],
)
def test_writing_in_place_or_leaving_halves_is_noticed(old, new, tmp_path):
  assert_caught(check_an_exception, mutant(files, old, new), tmp_path / "a.json")


def test_a_kill_while_writing_in_place_is_noticed(tmp_path):
  source = inspect.getsource(files)
  assert NAME in source
  assert_caught(check_a_kill, files, tmp_path / "a", source.replace(NAME, "partial = path"))


def test_several_writers_never_meet_and_the_last_one_wins(tmp_path):
  path = tmp_path / "deep" / "a"
  with files.whole(path, shared=True) as one, files.whole(path, shared=True) as two:
    one.write_text("one")
    two.write_text("two")
  assert path.read_text() == "one"


def test_a_folder_that_others_have_removed_does_not_come_back(tmp_path):
  gone = tmp_path / "gone"
  with pytest.raises(FileNotFoundError), files.whole(gone / "a", folder=gone) as partial:
    partial.write_text("late")
  assert not gone.exists()


def check_order(files, path, monkeypatch):
  """The contents reach the disk before the name does, and before that the other folder."""
  done, fsync, replace = [], os.fsync, os.replace
  monkeypatch.setattr(os, "fsync", lambda f: (fsync(f), done.append("sync")))
  monkeypatch.setattr(os, "replace", lambda a, b: (replace(a, b), done.append("name")))
  with files.whole(path, folder=path.parent / "work", sync=True) as partial:
    partial.write_text("new")
    assert partial.parent.name == "work"
  monkeypatch.undo()
  assert done == ["sync", "name"] and path.read_text() == "new"


def test_contents_reach_the_disk_before_the_name(tmp_path, monkeypatch):
  (tmp_path / "work").mkdir()
  check_order(files, tmp_path / "a", monkeypatch)
  assert_caught(check_order, mutant(files, "if sync:", "if False:"), tmp_path / "b", monkeypatch)


def test_json_is_as_people_read_it(tmp_path):
  value = {"prompt": "un été", "file": "\udcff.mp4", "steps": [1, 2]}
  files.write_json(tmp_path / "runs" / "a.json", value)
  text = (tmp_path / "runs" / "a.json").read_text(encoding="utf-8")
  assert "un été" in text and text.endswith("}\n")
  assert json.loads(text) == value
