"""What may not be in a PyTorch checkpoint. What may be is tested beside PyTorch, in parity."""

import io
import os
import pathlib
import pickle
import zipfile

import pytest

from vidstep.io.torch_file import read_torch


def archive(path, pickled, **entries):
  with zipfile.ZipFile(path, "w") as z:
    z.writestr("archive/data.pkl", pickled)
    for name, data in entries.items():
      z.writestr(f"archive/{name}", data)
  return path


class Shell:
  def __init__(self, marker):
    self.marker = marker

  def __reduce__(self):
    return os.system, (f"touch {self.marker}",)


def test_code_is_refused_and_not_run(tmp_path):
  marker = tmp_path / "ran"
  path = archive(tmp_path / "x.pth", pickle.dumps({"weight": Shell(marker)}))
  with pytest.raises(ValueError, match=r"asks for \w+\.system, and only tensors are"):
    read_torch(path)
  assert not marker.exists()


@pytest.mark.parametrize("value", [pathlib.PurePosixPath("/"), print, io.BytesIO()])
def test_any_other_object_is_refused(tmp_path, value):
  with pytest.raises(ValueError, match="only tensors are admitted"):
    read_torch(archive(tmp_path / "x.pth", pickle.dumps([value])))


def test_plain_values_are_read(tmp_path):
  value = {"step": 3, "names": ["a", None], "rate": (0.5, True)}
  assert read_torch(archive(tmp_path / "x.pth", pickle.dumps(value))) == value


def test_a_file_of_another_kind_is_named(tmp_path):
  path = tmp_path / "x.pth"
  path.write_bytes(pickle.dumps({"weight": 1}))
  with pytest.raises(ValueError, match=r"no checkpoint of PyTorch 1\.6 or later"):
    read_torch(path)


@pytest.mark.parametrize("pickled", [b"", b"\x80\x02}q"])
def test_a_damaged_file_is_named(tmp_path, pickled):
  with pytest.raises(ValueError, match="cannot read"):
    read_torch(archive(tmp_path / "x.pth", pickled))


def test_an_archive_of_something_else_is_named(tmp_path):
  path = tmp_path / "x.pth"
  with zipfile.ZipFile(path, "w") as z:
    z.writestr("readme.txt", "hello")
  with pytest.raises(ValueError, match="cannot read"):
    read_torch(path)


def test_numbers_of_another_byte_order_are_refused(tmp_path):
  path = archive(tmp_path / "x.pth", pickle.dumps({}), byteorder=b"big")
  with pytest.raises(ValueError, match="big-endian"):
    read_torch(path)
