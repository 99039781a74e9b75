"""Streams in files: exact when restored, refused when damaged or foreign, kept through kills."""

import json
import zipfile

import kill_stream
import numpy as np
import pytest
from mutation import assert_caught
from toy_engine import build, frames_of, open_session, run, settle, variant

from vidstep.training.checksum import checksum, checksum_of


def test_a_restored_stream_goes_on_bit_for_bit(engine, tmp_path):
  session = open_session(engine, seed=8, steps=2, text="rain", window=3)
  run(engine, session, 7)
  settle(engine)
  session.save(tmp_path / "a.stream")
  want = frames_of(engine, session, 6)
  keeper = open_session(engine)  # the restored one gets another row, other neighbours
  session.close()
  keeper.prompt("other")
  other = open_session(engine, seed=1)
  restored = engine.restore(tmp_path / "a.stream")
  assert restored.name == session.name and restored.settings == session.settings
  np.testing.assert_array_equal(frames_of(engine, restored, 6), want)
  del other
  assert not list(tmp_path.glob("*.partial"))


def test_the_held_action_is_restored(engine, tmp_path):
  check_the_held_action_is_restored(engine, tmp_path)
  broken = variant(engine, "self._held(saved.action)", "None")
  assert_caught(check_the_held_action_is_restored, broken, tmp_path)


def check_the_held_action_is_restored(engine, tmp_path):
  session = open_session(engine)
  session.act([0.25, -0.1])
  engine.tick()
  session.save(tmp_path / "a")
  restored = engine.restore(tmp_path / "a")
  assert restored.name != session.name  # it is taken
  engine.tick()
  chunks = settle(engine)
  np.testing.assert_array_equal(chunks[restored].actions, np.float32([[0.25, -0.1]]))
  np.testing.assert_array_equal(chunks[restored].frames, chunks[session].frames)


def test_damaged_and_foreign_files_are_refused_in_one_sentence(engine, alone, tmp_path):
  path = tmp_path / "a.stream"
  session = open_session(engine)
  session.save(path)
  whole = path.read_bytes()
  with pytest.raises(FileNotFoundError, match="no saved stream"):
    engine.restore(tmp_path / "none")
  damaged = tmp_path / "damaged"
  for cut in (0, 10, len(whole) // 2, len(whole) - 30):
    damaged.write_bytes(whole[:cut])
    with pytest.raises(ValueError, match="damaged"):
      engine.restore(damaged)
  flipped = bytearray(whole)
  with zipfile.ZipFile(path) as z:
    entry = z.getinfo("leaf_0.npy")
  flipped[entry.header_offset + 30 + len("leaf_0.npy") + entry.file_size - 3] ^= 8
  damaged.write_bytes(flipped)
  with pytest.raises(ValueError, match="damaged"):
    engine.restore(damaged)
  damaged.write_bytes(b"not a stream at all")
  with pytest.raises(ValueError, match="damaged"):
    engine.restore(damaged)
  with open(damaged, "wb") as f:
    np.savez(f, header=np.array([{"evil": 1}], object))
  with pytest.raises(ValueError, match="damaged"):
    engine.restore(damaged)
  session.close()
  assert alone.restore(path).index == 0  # the size of the batch does not matter
  alone.sessions[0].close()


def test_weights_summed_leaf_by_leaf_are_weights_summed_at_once(alone):
  params = {"a": alone.params, "b": np.arange(3)}
  assert checksum_of(params) == checksum({"x": params})["x"] != checksum_of(params["b"])
  assert alone._identity["weights"] == checksum_of(alone.params)


def test_streams_of_other_networks_and_formats_are_refused(engine, tmp_path, monkeypatch):
  path = tmp_path / "a.stream"
  open_session(engine).save(path)
  monkeypatch.setattr(engine, "_identity", engine._identity | {"weights": 1})
  with pytest.raises(ValueError, match="another network: its weights"):
    engine.restore(path)
  monkeypatch.undo()
  with np.load(path) as f:
    arrays = dict(f)
  header = json.loads(bytes(arrays["header"]))
  for change, words in (({"format": 99}, "format 99"), ({"leaves": []}, "other shapes")):
    text = json.dumps(header | change).encode()
    with open(path, "wb") as f:
      np.savez(f, **(arrays | {"header": np.frombuffer(text, np.uint8)}))
    with pytest.raises(ValueError, match=words):
      engine.restore(path)


def test_what_was_autosaved_survives_kills(tmp_path):
  lives = kill_stream.survive(tmp_path, 3)
  assert len(lives) == 3 and lives[-1]["a"] > 2


def test_a_failing_autosave_stops_no_stream(tmp_path):
  folder = tmp_path / "a file, no folder"
  folder.write_text("")
  engine = build(sessions=1, autosave=folder, autosave_every=1)
  session = open_session(engine)
  run(engine, session, 4)
  engine.close()
  assert "could not be saved" in engine.autosave_error
