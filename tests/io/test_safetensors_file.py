import json

import ml_dtypes
import numpy as np
import pytest

from tests.io.wan_files import write
from vidstep.io.safetensors_file import Item, read_safetensors, write_safetensors

STATE = {
  "a": np.arange(6, dtype=np.float32).reshape(2, 3),
  "b.half": np.array([937.5, -1 / 3], ml_dtypes.bfloat16),
  "number": np.array(3, np.int64),
  "nothing": np.zeros((0, 4), np.float16),
}


def test_what_was_written_is_read(tmp_path):
  got = read_safetensors(write(tmp_path / "x.safetensors", STATE))
  assert list(got) == list(STATE)
  for name, a in STATE.items():
    assert got[name].dtype == a.dtype and not got[name].flags.writeable
    np.testing.assert_array_equal(got[name], a)


def test_the_layout_is_the_published_one(tmp_path):
  """8 bytes of length, JSON padded with spaces to a multiple of 8, then the numbers in order."""
  raw = write(tmp_path / "x.safetensors", STATE).read_bytes()
  length = int.from_bytes(raw[:8], "little")
  header = json.loads(raw[8 : 8 + length])
  assert length % 8 == 0 and header.pop("__metadata__") == {"format": "pt"}
  assert header["b.half"] == {"dtype": "BF16", "shape": [2], "data_offsets": [24, 28]}
  assert raw[8 + length :][24:28] == STATE["b.half"].tobytes()
  assert len(raw) == 8 + length + 24 + 4 + 8


@pytest.mark.parametrize("keep", [0, 5, 60, -1])
def test_a_truncated_file_is_refused(tmp_path, keep):
  path = write(tmp_path / "x.safetensors", STATE)
  path.write_bytes(path.read_bytes()[:keep])
  with pytest.raises(ValueError, match="no safetensors file, or a truncated one"):
    read_safetensors(path)


@pytest.mark.parametrize("entry", [
  {"dtype": "F32", "shape": [2], "data_offsets": [0, 4]},
  {"dtype": "F32", "shape": [2], "data_offsets": [-8, 0]},
  {"dtype": "F99", "shape": [1], "data_offsets": [0, 4]},
  [],
])  # fmt: skip
def test_a_header_that_lies_is_refused(tmp_path, entry):
  text = json.dumps({"a": entry}).encode()
  path = tmp_path / "x.safetensors"
  path.write_bytes(len(text).to_bytes(8, "little") + text + bytes(64))
  with pytest.raises(ValueError, match="no safetensors file"):
    read_safetensors(path)


def test_a_file_is_written_whole_or_not_at_all(tmp_path):
  path = write(tmp_path / "x.safetensors", STATE)
  wrong = Item("a", (3,), np.dtype(np.float32), lambda: np.zeros(2))
  with pytest.raises(ValueError, match=r"a was announced as \(3,\) and is \(2,\)"):
    write_safetensors(path, [wrong])
  assert set(read_safetensors(path)) == set(STATE)
