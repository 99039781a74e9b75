"""A stream in one file: its state and its settings, written whole or not at all, checked when read.

The file is a .npz: `header`, JSON as bytes, and the leaves of the session's state (the network's
cache, what the codec remembers) as `leaf_0` .. Nothing in it is ever unpickled. The header tells
the format, the network (policy of its cache, checksums of its weights and of the codec's) and, of
every leaf, path, type and shape; the zip's own CRC-32 covers the contents.
"""

import dataclasses
import json
import os
import zipfile

import jax
import jax.numpy as jnp
import numpy as np

from vidstep.causal.session import Settings, Snapshot
from vidstep.files import whole

FORMAT = 2


def save(path, snapshot: Snapshot, *, name: str, network: dict):
  """Writes a stream: first under another name, to disk, and then in place of what was there.

  Args:
    path: file.
    snapshot: the stream.
    name: of the session.
    network: JSON dict that tells which network it belongs to.
  """
  leaves = jax.device_get(jax.tree.leaves(snapshot.row))
  header = {
    "format": FORMAT,
    "name": name,
    "network": network,
    "index": snapshot.index,
    "settings": dataclasses.asdict(snapshot.settings),
    "action": None if snapshot.action is None else snapshot.action.tolist(),
    "leaves": describe(snapshot.row),
  }
  arrays = {f"leaf_{i}": _plain(leaf) for i, leaf in enumerate(leaves)}
  text = np.frombuffer(json.dumps(header).encode(), np.uint8)
  with whole(path, sync=True) as partial, open(partial, "wb") as f:
    np.savez(f, header=text, **arrays)


def load(path, *, like, network: dict) -> tuple[Snapshot, str]:
  """Reads a stream.

  Args:
    path: file of `save`.
    like: shapes of the session's state, batch 1.
    network: what `save` was told; it must be the same.

  Returns:
    (snapshot, the state in it being NumPy arrays; name of the session).

  Raises:
    FileNotFoundError: if there is no such file.
    ValueError: if it is damaged, of another format, or belongs to another network.
  """
  if not os.path.isfile(path):
    raise FileNotFoundError(f"There is no saved stream {path}.")
  try:
    with open(path, "rb") as raw, np.load(raw, allow_pickle=False) as f:
      header = json.loads(bytes(f["header"]))
      if header["format"] != FORMAT:
        raise ValueError(f"format {header['format']}, this program reads {FORMAT}")
      _check_network(path, header["network"], network)
      if header["leaves"] != describe(like):
        raise _Foreign(
          f"{path} was saved with a state of other shapes than this engine's; build the Engine as "
          "it was then."
        )
      shapes, tree = jax.tree.flatten(like)
      leaves = [_typed(f[f"leaf_{i}"], a) for i, a in enumerate(shapes)]
      settings = header["settings"]
      lists = {k: tuple(map(float, settings[k])) for k in ("times", "first_times")}
      action = header["action"]
      snapshot = Snapshot(
        jax.tree.unflatten(tree, leaves),
        int(header["index"]),
        Settings(**(settings | lists)),
        None if action is None else np.float32(action),
      )
      return snapshot, str(header["name"])
  except _Foreign as error:
    raise ValueError(str(error)) from None
  except (OSError, EOFError, KeyError, TypeError, ValueError, zipfile.BadZipFile) as error:
    raise ValueError(
      f"{path} is no saved stream, or a damaged one ({type(error).__name__}: {error}); use an "
      "earlier one."
    ) from error


def describe(state):
  """[path, type, shape] of every leaf, for JSON."""
  flat = jax.tree_util.tree_leaves_with_path(state)
  return [[jax.tree_util.keystr(path), str(a.dtype), list(a.shape)] for path, a in flat]


class _Foreign(Exception):
  """The file is whole but belongs to something else."""


def _check_network(path, saved, own):
  for key in own:
    if saved.get(key) != own[key]:
      raise _Foreign(
        f"{path} belongs to another network: its {key} is {saved.get(key)}, here it is {own[key]}."
      )


def _plain(leaf):
  """The bits of types that NumPy cannot store, such as bfloat16, as unsigned integers."""
  leaf = np.asarray(leaf)
  return leaf if leaf.dtype.isbuiltin == 1 else leaf.view(f"uint{8 * leaf.dtype.itemsize}")


def _typed(array, like):
  dtype = jnp.dtype(like.dtype)
  array = array if dtype.isbuiltin == 1 else array.view(dtype)
  if array.shape != like.shape or array.dtype != dtype:
    raise ValueError(f"an array is {array.dtype} {array.shape}, not {dtype} {like.shape}")
  return array
