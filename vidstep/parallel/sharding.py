"""Which array lies where: batches over samples and frames, weights by named presets of rules."""

import math
import re
from typing import NamedTuple

import jax
from jax.sharding import NamedSharding, PartitionSpec

from vidstep.models.dit import layer_axes
from vidstep.parallel.mesh import BATCH


class Cut(NamedTuple):
  """How a leaf is cut.

  Attributes:
    tensor: the axis, counted from the last (-1), that the mesh's `tensor` cuts; None: none.
    over: mesh axes that together cut the largest of the other axes that they divide (ties: the
      last). A leaf without one, or of fewer than `MIN_SIZE` numbers, stays whole.
  """

  tensor: int | None = None
  over: tuple[str, ...] = ()


MIN_SIZE = 1024  # smaller leaves cost more in latency than they save in memory
EVERYWHERE = Cut()

# Megatron's pairs (arXiv 1909.08053): whole heads and hidden channels stay on one device between
# the columns of the first matrix and the rows of the second. The names are those of `VideoDiT`.
COLUMNS = r"(^|/)(q|k|v|k_image|v_image|ffn_in)/"
ROWS = r"(^|/)(o|ffn_out)/"
NORMS = r"(^|/)(norm_q|norm_k|norm_k_image)/scale$"  # of those columns


def _megatron(*over):
  return (
    (COLUMNS + r"(kernel|bias)$", Cut(-1, over)),
    (COLUMNS + r"b$", Cut(-1, over)),  # factors of the update a @ b
    (NORMS, Cut(-1, over)),
    (ROWS + r"(kernel|a)$", Cut(-2, over)),
    (r"", Cut(None, over)),
  )


# A preset is data: the first rule whose pattern is found in "path/of/the/leaf" decides.
PRESETS = {
  "replicated": ((r"", EVERYWHERE),),
  # Weights, gradients, optimizer and EMA all in parts (ZeRO-3, arXiv 1910.02054).
  "fsdp": ((r"", Cut(None, ("fsdp",))),),
  # Norms, biases and embeddings everywhere, matrices spread: less traffic for a small model.
  "fsdp_matrices": ((r"(kernel|weight)$", Cut(None, ("fsdp",))), (r"", EVERYWHERE)),
  # Devices that share a video share its weights' memory, too: few samples, long videos.
  "fsdp_sequence": ((r"", Cut(None, ("fsdp", "sequence"))),),
  # Weights whole, what is only touched by updates in parts (ZeRO-1): no gathering in the model.
  "zero": ((r"/(opt|ema)/", Cut(None, ("data", "fsdp", "sequence"))), (r"", EVERYWHERE)),
  "tensor": _megatron(),
  "fsdp_tensor": _megatron("fsdp"),
  "fsdp_sequence_tensor": _megatron("fsdp", "sequence"),
}


def state_sharding(tree, mesh, preset="fsdp"):
  """Shardings for a state (or any tree of arrays), leaf by leaf.

  Optimizer moments and EMA have the names and shapes of their weights, so they fall in place beside
  them. The first axis of a leaf under a name `blocks` counts layers (`VideoDiT.scan`) and is never
  cut: each turn of the loop over layers reads a part of every device.

  Args:
    tree: arrays or `ShapeDtypeStruct`s.
    mesh: see `vidstep.parallel.mesh`; an axis that it lacks has size 1.
    preset: a name in `PRESETS`, or a tuple of (pattern, `Cut`).

  Returns:
    A tree of `NamedSharding` of the same structure.

  Raises:
    ValueError: for an unknown preset, or an axis that `tensor` shall cut but does not divide.
  """
  if isinstance(preset, str):
    preset = rules_of(preset)

  def leaf(path, x):
    name = jax.tree_util.keystr(path, simple=True, separator="/")
    cut = next((cut for pattern, cut in preset if re.search(pattern, name)), EVERYWHERE)
    layers = layer_axes(path) if len(x.shape) > 1 else 0
    return NamedSharding(mesh, _spec(name, x.shape, cut, dict(mesh.shape), layers))

  return jax.tree_util.tree_map_with_path(leaf, tree)


def rules_of(preset: str):
  """The rules of a preset.

  Raises:
    ValueError: for an unknown one.
  """
  if preset not in PRESETS:
    raise ValueError(f"Unknown sharding preset {preset!r}: choose one of {sorted(PRESETS)}.")
  return PRESETS[preset]


def _spec(name, shape, cut, sizes, layers):
  spec = [None] * len(shape)
  tensor = sizes.get("tensor", 1)
  if cut.tensor is not None and tensor > 1 and len(shape) - layers >= -cut.tensor:
    if shape[cut.tensor] % tensor:
      raise ValueError(
        f"{name} of shape {shape} is not divided by mesh.tensor={tensor} along axis "
        f"{len(shape) + cut.tensor}: choose a mesh.tensor that divides {shape[cut.tensor]}."
      )
    spec[cut.tensor] = "tensor"
  over = tuple(axis for axis in cut.over if sizes.get(axis, 1) > 1)
  size = math.prod(sizes[axis] for axis in over)
  free = [a for a in range(layers, len(shape)) if spec[a] is None and shape[a] % size == 0]
  if over and free and math.prod(shape[layers:]) >= MIN_SIZE:
    spec[max(free, key=lambda a: (shape[a], a))] = over if len(over) > 1 else over[0]
  while spec and spec[-1] is None:
    spec.pop()
  return PartitionSpec(*spec)


def batch_sharding(mesh):
  """The sharding of everything whose first axis is the batch: cut over `data` and `fsdp`."""
  return NamedSharding(mesh, PartitionSpec(BATCH))


def frame_shardings(batch, mesh):
  """Shardings of a prepared batch: samples over `data` and `fsdp`, frames over `sequence`.

  Frames are cut of x0 and of its clean copy, if they divide; the conditions are small, or read by
  all frames, and are everywhere along the sequence.

  Args:
    batch: a `vidstep.losses.Batch` of arrays or shapes.
    mesh: see `make_mesh`.

  Returns:
    A tree of `NamedSharding` of the same structure.
  """
  size = mesh.shape["sequence"]

  def leaf(path, x):
    frames = jax.tree_util.keystr(path, simple=True, separator="/") in ("x0", "cond/clean")
    cut = frames and size > 1 and x.shape[1] % size == 0
    return NamedSharding(mesh, PartitionSpec(BATCH, *(("sequence",) if cut else ())))

  return jax.tree_util.tree_map_with_path(leaf, batch)


def replicated(mesh):
  """The sharding of scalars and of whatever every device needs whole."""
  return NamedSharding(mesh, PartitionSpec())


def check_batch(size, mesh, accumulate=1):
  """Refuses a batch that does not divide into equal parts.

  Raises:
    ValueError: if `size` is not a multiple of mesh.data x mesh.fsdp x accumulate.
  """
  shares = math.prod(mesh.shape[axis] for axis in BATCH)
  unit = shares * accumulate
  if size % unit:
    raise ValueError(
      f"data.batch_size={size} is not divided by {shares} (mesh.data x mesh.fsdp) x {accumulate} "
      f"microbatch(es): choose a multiple of {unit}, or change train.accumulate."
    )
