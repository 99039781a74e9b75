"""Files that appear only when they are whole: written beside their place, then renamed into it."""

import contextlib
import json
import os
import pathlib
import uuid
import zlib
from collections.abc import Iterator


@contextlib.contextmanager
def whole(path, *, folder=None, shared=False, sync=False) -> Iterator[pathlib.Path]:
  """Where to write what becomes `path` at the end of the block, in one step.

      with whole("codec.npz") as partial, open(partial, "wb") as f:
        np.savez(f, **arrays)

  Until then, and if the block raises, `path` is what it was before. The name in between ends in
  ".partial" whatever that of the file, so that no pattern finds it; formats that are told by a
  suffix have to be named.

  Args:
    path: the file.
    folder: where it is written first, a folder on the same disk; None: beside `path`, in a folder
      that is made if need be.
    shared: several processes may write the file at once, and the last one wins: each writes under
      a name of its own. Otherwise the name is always the same, so that what a killed process has
      left goes with the next writing.
    sync: the contents are on disk before the name is: after the machine has crashed, too, it is
      the old file or the new one.

  Yields:
    The path to write to.
  """
  path = pathlib.Path(path)
  if folder is None:
    folder = path.parent
    folder.mkdir(parents=True, exist_ok=True)
  # A name may be as long as the disk allows: this one is short.
  own = uuid.uuid4().hex[:8] if shared else f"{zlib.crc32(os.fsencode(path.name)):08x}"
  partial = pathlib.Path(folder, f"{path.name[:48]}.{own}.partial")
  try:
    yield partial
    if sync:
      with open(partial, "rb") as f:
        os.fsync(f.fileno())
    os.replace(partial, path)
  except BaseException:
    partial.unlink(missing_ok=True)
    raise


def write_text(path, text: str, *, shared=False):
  """Writes a text whole or not at all, UTF-8; `shared` as in `whole`.

  What has no UTF-8, as in the name of a damaged file, is written as \\udc80 and the like: in JSON
  that reads back.
  """
  with whole(path, shared=shared) as partial:
    partial.write_text(text, encoding="utf-8", errors="backslashreplace")


def write_json(path, value, *, shared=False):
  """Writes JSON as people read it, whole or not at all; `shared` as in `whole`."""
  write_text(path, json.dumps(value, indent=1, ensure_ascii=False) + "\n", shared=shared)
