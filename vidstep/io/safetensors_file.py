"""Reading and writing .safetensors: a JSON header and plain numbers, mapped into memory."""

import json
import math
import pathlib
from collections.abc import Callable, Iterable
from typing import NamedTuple

import ml_dtypes
import numpy as np

from vidstep.files import whole

DTYPES = {
  "F64": np.float64, "F32": np.float32, "F16": np.float16, "BF16": ml_dtypes.bfloat16,
  "F8_E4M3": ml_dtypes.float8_e4m3fn, "F8_E5M2": ml_dtypes.float8_e5m2,
  "I64": np.int64, "I32": np.int32, "I16": np.int16, "I8": np.int8,
  "U64": np.uint64, "U32": np.uint32, "U16": np.uint16, "U8": np.uint8, "BOOL": np.bool_,
}  # fmt: skip
_CODES = {np.dtype(dtype): code for code, dtype in DTYPES.items()}
_MOST = 100_000_000  # bytes of a header, as the format's own reader has it


class Item(NamedTuple):
  """A tensor to be written.

  Attributes:
    name: its name.
    shape: its shape.
    dtype: its dtype in the file.
    read: fetches it, when its turn comes.
  """

  name: str
  shape: tuple[int, ...]
  dtype: np.dtype
  read: Callable[[], np.ndarray]


def read_safetensors(path) -> dict[str, np.ndarray]:
  """The tensors of a file as memory maps: nothing is read before it is used.

  Args:
    path: a .safetensors file.

  Returns:
    Name to read-only array; bfloat16 is `ml_dtypes.bfloat16`.

  Raises:
    ValueError: if the file is no safetensors file, or truncated.
  """
  path = pathlib.Path(path)
  size = path.stat().st_size
  try:
    with open(path, "rb") as f:
      length = int.from_bytes(f.read(8), "little")
      if not 2 <= length <= min(_MOST, size - 8):
        raise ValueError(f"its header would be {length} bytes long")
      header = json.loads(f.read(length))
    start = 8 + length
    data = np.memmap(path, np.uint8, "r", start) if size > start else np.zeros(0, np.uint8)
    header.pop("__metadata__", None)
    return {name: _view(data, name, **entry) for name, entry in header.items()}
  except (ValueError, KeyError, TypeError, AttributeError) as e:
    raise ValueError(f"{path} is no safetensors file, or a truncated one ({e}).") from e


def _view(data, name, dtype, shape, data_offsets):
  first, last = data_offsets
  kind = np.dtype(DTYPES[dtype])
  if not 0 <= first <= last <= len(data) or last - first != math.prod(shape) * kind.itemsize:
    raise ValueError(f"{name} lies outside of it")
  return data[first:last].view(kind).reshape(shape)


def write_safetensors(path, items: Iterable[Item], metadata: dict[str, str] | None = None):
  """Writes tensors one after another, holding one at a time; whole or not at all.

  Args:
    path: the file.
    items: what to write.
    metadata: strings to put into the header. "format": "pt" is what PyTorch's readers ask for.

  Raises:
    ValueError: if a tensor does not have the shape it was announced with.
  """
  items = list(items)
  header, end = ({"__metadata__": metadata} if metadata else {}), 0
  for item in items:
    start, end = end, end + math.prod(item.shape) * np.dtype(item.dtype).itemsize
    code = _CODES[np.dtype(item.dtype)]
    header[item.name] = {"dtype": code, "shape": list(item.shape), "data_offsets": [start, end]}
  text = json.dumps(header, separators=(",", ":")).encode()
  text += b" " * (-len(text) % 8)
  with whole(path) as partial, open(partial, "wb") as f:
    f.write(len(text).to_bytes(8, "little") + text)
    for item in items:
      a = np.asarray(item.read()).astype(item.dtype, copy=False)
      if a.shape != tuple(item.shape):
        raise ValueError(f"{item.name} was announced as {item.shape} and is {a.shape}.")
      f.write(np.ascontiguousarray(a).reshape(-1).view(np.uint8).data)
