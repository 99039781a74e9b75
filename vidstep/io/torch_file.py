"""Reading PyTorch checkpoints (.pth, .pt, .bin) without PyTorch, and without running their code.

A checkpoint is a zip archive: a pickle that describes the tensors, and one uncompressed entry with
the numbers of each storage. The pickle may name what makes a tensor, and nothing else; the numbers
are mapped into memory.
"""

import collections
import pathlib
import pickle
import zipfile

import ml_dtypes
import numpy as np

_STORAGES = {
  "DoubleStorage": np.float64, "FloatStorage": np.float32, "HalfStorage": np.float16,
  "BFloat16Storage": ml_dtypes.bfloat16, "LongStorage": np.int64, "IntStorage": np.int32,
  "ShortStorage": np.int16, "CharStorage": np.int8, "ByteStorage": np.uint8,
  "BoolStorage": np.bool_,
}  # fmt: skip


def read_torch(path):
  """What `torch.save` wrote, with tensors as read-only memory maps.

  Args:
    path: a file of PyTorch 1.6 or later.

  Returns:
    The saved object: dicts, lists, numbers, strings, and arrays.

  Raises:
    ValueError: if the file is no such archive, is damaged, or its pickle asks for anything but
      tensors; nothing of it has been run then.
  """
  path = pathlib.Path(path)
  if not zipfile.is_zipfile(path):
    raise ValueError(
      f"{path} is no checkpoint of PyTorch 1.6 or later (a zip archive). Load an older one in "
      "PyTorch and save it again, or convert it to safetensors."
    )
  try:
    with zipfile.ZipFile(path) as archive:
      entries = {name.partition("/")[2]: archive.getinfo(name) for name in archive.namelist()}
      if "byteorder" in entries and archive.read(entries["byteorder"]) != b"little":
        raise ValueError("it was written on a big-endian machine")
      with archive.open(entries["data.pkl"]) as f:
        return _Reader(f, path, entries).load()
  except (pickle.UnpicklingError, ValueError, KeyError, EOFError, TypeError, IndexError) as e:
    raise ValueError(f"cannot read {path}: {e}.") from e


class _Reader(pickle.Unpickler):
  """An unpickler that knows tensors only."""

  def __init__(self, file, path, entries):
    super().__init__(file)
    self._path, self._entries = path, entries

  def find_class(self, module, name):
    if module == "torch" and name in _STORAGES:
      return np.dtype(_STORAGES[name])
    if (module, name) in _ALLOWED:
      return _ALLOWED[module, name]
    raise pickle.UnpicklingError(
      f"it asks for {module}.{name}, and only tensors are admitted; save its state_dict() alone"
    )

  def persistent_load(self, pid):
    kind, dtype, key, _, count = pid
    if kind != "storage" or not isinstance(dtype, np.dtype):
      raise pickle.UnpicklingError(f"it refers to an unknown {kind!r}")
    entry = self._entries[f"data/{key}"]
    if entry.compress_type != zipfile.ZIP_STORED:
      raise pickle.UnpicklingError("its tensors are compressed")
    if entry.file_size < count * dtype.itemsize:
      raise pickle.UnpicklingError(f"storage {key} is truncated")
    return _map(self._path, entry, dtype, count)


def _map(path, entry, dtype, count):
  """The numbers of an entry, which begin after a local header of variable length."""
  if count == 0:
    return np.zeros(0, dtype)
  with open(path, "rb") as f:
    f.seek(entry.header_offset)
    head = f.read(30)
  if head[:4] != b"PK\x03\x04":
    raise pickle.UnpicklingError("its archive is damaged")
  lengths = int.from_bytes(head[26:28], "little") + int.from_bytes(head[28:30], "little")
  start = entry.header_offset + 30 + lengths
  return np.memmap(path, np.uint8, "r", start, count * dtype.itemsize).view(dtype)


def _tensor(storage, offset, shape, strides, *_):
  """A tensor is a window of a storage, which must lie inside it."""
  numbers = (offset, *shape, *strides)
  if len(shape) != len(strides) or any(not isinstance(n, int) or n < 0 for n in numbers):
    raise pickle.UnpicklingError("a tensor has no sensible shape")
  if 0 in shape:
    return np.zeros(shape, storage.dtype)
  last = offset + sum((n - 1) * s for n, s in zip(shape, strides, strict=True))
  if last >= len(storage):
    raise pickle.UnpicklingError("a tensor lies outside of its storage")
  strides = tuple(s * storage.itemsize for s in strides)
  return np.lib.stride_tricks.as_strided(storage[offset:], shape, strides, writeable=False)


_ALLOWED = {
  ("collections", "OrderedDict"): collections.OrderedDict,
  ("torch", "Size"): tuple,
  ("torch._utils", "_rebuild_tensor_v2"): _tensor,
  ("torch._utils", "_rebuild_parameter"): lambda data, *_: data,
}
