"""Networks of others as a place to start from: the references "wan:<release, hub id or path>"."""

import jax

from vidstep.io import load_wan
from vidstep.io.configs import read_config
from vidstep.io.dit_names import dit_fields, dit_tensors
from vidstep.io.files import find
from vidstep.io.rules import flatten
from vidstep.io.tensors import open_tensors
from vidstep.releases import WAN

SCHEME = "wan:"


def is_pretrained(reference) -> bool:
  """Whether a reference names a public network, and no run of ours."""
  return reference.startswith(SCHEME)


def parse_pretrained(reference) -> tuple[str, str | None]:
  """ "wan:<place>[#role]" -> (place, role or None); a release becomes its repository.

  The place is a name in `vidstep.releases.WAN`, a repository of the hub, a folder or a file;
  the role is one of a file that holds several networks, such as "generator".
  """
  place, _, role = reference.removeprefix(SCHEME).partition("#")
  if not place:
    raise ValueError(f'{reference!r} names nothing: write "wan:" and a path, or {", ".join(WAN)}.')
  return WAN[place].repository if place in WAN else place, role or None


def check_architecture(reference, model) -> None:
  """Refuses a network whose shape is not that of `model`, before any weight is read.

  Raises:
    ValueError: naming the fields that differ.
    FileNotFoundError: if it is not there.
  """
  place, role = parse_pretrained(reference)
  files = find(place, "transformer")
  config = read_config(files)
  heads = config.get("num_attention_heads", config.get("num_heads"))
  there = dit_fields(dit_tensors(open_tensors(files), role), heads)
  there |= {"action_dim": 0, "second_time": False, "prediction": "v", "time_scale": 1000.0}
  ours = {name: getattr(model, name) for name in there}
  ours["ffn_dim"] = model.ffn_dim or 4 * model.dim
  changes = [f"{k}={ours[k]} (there {v})" for k, v in there.items() if ours[k] != v]
  if changes:
    raise ValueError(
      f"{reference} is another network than the config's, which has "
      f"{', '.join(changes)}: change model.* or the reference."
    )


def load_pretrained(reference, *, like=None, scan=True):
  """Weights of a public network, each tensor read by the devices that hold it.

  Args:
    reference: see `parse_pretrained`.
    like: tree of `ShapeDtypeStruct`s: dtypes of the parameters, and shardings to load onto. None:
      float32 on the first device.
    scan: whether blocks are stacked.

  Returns:
    The parameters.

  Raises:
    FileNotFoundError, ValueError, NotImplementedError: as `load_wan`.
  """
  place, role = parse_pretrained(reference)
  how = {}
  if like is not None:
    leaves = flatten(like)
    how["param_dtype"] = lambda path: leaves[path].dtype
    if all(leaf.sharding is not None for leaf in leaves.values()):
      how["shard"] = lambda _: jax.tree.map(lambda leaf: leaf.sharding, like)
  return load_wan(place, role=role, scan=scan, **how)[1]
