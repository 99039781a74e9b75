"""Which array lies where: the batch over both mesh axes, weights by named presets of rules."""

import re

import jax
from jax.sharding import NamedSharding, PartitionSpec

REPLICATED, LARGEST = "replicated", "largest axis"

# A preset is data: the first rule whose pattern is found in "path/of/the/leaf" decides.
PRESETS = {
  "replicated": ((r"", REPLICATED),),
  "fsdp": ((r"", LARGEST),),
  # Norms, biases and embeddings everywhere, matrices spread: less traffic for a small model.
  "fsdp_matrices": ((r"(kernel|weight)$", LARGEST), (r"", REPLICATED)),
}
MIN_SIZE = 1024  # smaller leaves cost more in latency than they save in memory


def state_sharding(tree, mesh, preset="fsdp"):
  """Shardings for a state (or any tree of arrays), leaf by leaf.

  The rule "largest axis" cuts the largest axis that the `fsdp` size divides (ties: the last);
  a leaf without one, or of fewer than `MIN_SIZE` numbers, is replicated. Optimizer moments and
  EMA have the shapes of their weights, so they fall in place beside them.

  Args:
    tree: arrays or `ShapeDtypeStruct`s.
    mesh: mesh with an "fsdp" axis.
    preset: a name in `PRESETS`, or a tuple of (pattern, rule).

  Returns:
    A tree of `NamedSharding` of the same structure.

  Raises:
    ValueError: for an unknown preset.
  """
  if isinstance(preset, str):
    if preset not in PRESETS:
      raise ValueError(f"Unknown sharding preset {preset!r}: choose one of {sorted(PRESETS)}.")
    preset = PRESETS[preset]

  def leaf(path, x):
    name = jax.tree_util.keystr(path, simple=True, separator="/")
    rule = next((rule for pattern, rule in preset if re.search(pattern, name)), REPLICATED)
    spec = PartitionSpec() if rule == REPLICATED else _largest(x.shape, mesh.shape["fsdp"])
    return NamedSharding(mesh, spec)

  return jax.tree_util.tree_map_with_path(leaf, tree)


def _largest(shape, size):
  """The spec that cuts the largest axis divisible by `size`."""
  axes = [a for a, n in enumerate(shape) if n % size == 0]
  total = 1
  for n in shape:
    total *= n
  if size == 1 or not axes or total < MIN_SIZE:
    return PartitionSpec()
  axis = max(axes, key=lambda a: (shape[a], a))
  return PartitionSpec(*(None,) * axis, "fsdp")


def batch_sharding(mesh):
  """The sharding of everything whose first axis is the batch: cut over `data` and `fsdp`."""
  return NamedSharding(mesh, PartitionSpec(("data", "fsdp")))


def replicated(mesh):
  """The sharding of scalars and of whatever every device needs whole."""
  return NamedSharding(mesh, PartitionSpec())


def check_batch(size, mesh, accumulate=1):
  """Refuses a batch that does not divide into equal parts.

  Raises:
    ValueError: if `size` is not a multiple of devices x accumulate.
  """
  unit = mesh.size * accumulate
  if size % unit:
    raise ValueError(
      f"data.batch_size={size} is not divided by {mesh.size} device(s) x {accumulate} "
      f"microbatch(es): choose a multiple of {unit}, or change train.accumulate."
    )
