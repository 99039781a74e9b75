"""All tensors of a checkpoint by name, whatever its files are."""

import json
import pathlib
from collections.abc import Mapping

import numpy as np

from vidstep.io.rules import some
from vidstep.io.safetensors_file import read_safetensors
from vidstep.io.torch_file import read_torch

TORCH = (".pth", ".pt", ".bin", ".ckpt")


def open_tensors(path) -> dict[str, np.ndarray]:
  """Opens a checkpoint without reading its numbers.

  Args:
    path: a .safetensors or PyTorch file, an index of shards (*.index.json), or a folder with
      either. Nested dicts of a PyTorch file are joined with dots: "generator_ema.model.head.bias".

  Returns:
    Name to read-only array (a memory map).

  Raises:
    FileNotFoundError: if there is nothing, or a shard that the index names is not there.
    ValueError: if a file cannot be read, or two files hold the same name.
  """
  path = pathlib.Path(path)
  if path.is_dir():
    return _open_folder(path)
  if not path.is_file():
    raise FileNotFoundError(f"there is no checkpoint at {path}.")
  if path.name.endswith(".index.json"):
    return _open_index(path)
  if path.suffix == ".safetensors":
    return read_safetensors(path)
  if path.suffix in TORCH:
    return _flat(read_torch(path))
  raise ValueError(f"{path} is neither .safetensors nor a PyTorch file ({', '.join(TORCH)}).")


def _open_folder(path):
  indices = sorted(path.glob("*.safetensors.index.json"))
  files = sorted(path.glob("*.safetensors")) or sorted(f for e in TORCH for f in path.glob(f"*{e}"))
  if len(indices) == 1:
    return _open_index(indices[0])
  if len(files) == 1:
    return open_tensors(files[0])
  if not files:
    raise FileNotFoundError(f"there are no weights in {path} (*.safetensors, *.pth).")
  names = [f.name for f in files]
  raise ValueError(f"{path} holds several checkpoints ({some(names)}): name one of them.")


def _open_index(path):
  weight_map = json.loads(path.read_text())["weight_map"]
  shards = sorted(set(weight_map.values()))
  missing = [name for name in shards if not (path.parent / name).is_file()]
  if missing:
    raise FileNotFoundError(f"{path} names shards that are not there: {some(missing)}.")
  out = {}
  for shard in shards:
    tensors = open_tensors(path.parent / shard)
    twice = sorted(set(out) & set(tensors))
    if twice:
      raise ValueError(f"{path}: {some(twice)} in more than one shard.")
    out |= tensors
  lost = sorted(set(weight_map) - set(out))
  if lost:
    raise ValueError(f"{path} names tensors that its shards do not hold: {some(lost)}.")
  return out


def _flat(tree, prefix=""):
  """Arrays of nested dicts by their joined names; step counts and the like are left out."""
  out = {}
  for name, node in tree.items() if isinstance(tree, Mapping) else ():
    if isinstance(node, Mapping):
      out |= _flat(node, f"{prefix}{name}.")
    elif isinstance(node, np.ndarray):
      out[f"{prefix}{name}"] = node
  return out
