"""The device mesh: four axes, of which those of size 1 cost nothing."""

import math

import jax
import numpy as np
from jax.sharding import AxisType, Mesh

# The slowest network first: copies of the model may be far apart, parts of a matrix may not.
AXES = ("data", "fsdp", "sequence", "tensor")
BATCH = ("data", "fsdp")  # axes that share the samples of a batch


def make_mesh(data=-1, fsdp=1, sequence=1, tensor=1, *, devices=None):
  """A `(data, fsdp, sequence, tensor)` mesh over all devices.

  Args:
    data: copies of the model that share the batch.
    fsdp: devices over which each copy's weights are spread, and which share the batch as well.
    sequence: devices that share the frames of each video (`vidstep.parallel.attention`).
    tensor: devices that share every matrix and the attention heads (Megatron, arXiv 1909.08053).
    devices: the devices to use; None means all of `jax.devices()`.

  One of the sizes may be -1: it takes all devices that the others leave.

  Returns:
    A `jax.sharding.Mesh` with those axes, all `AxisType.Auto`.

  Raises:
    ValueError: if the mesh does not cover the devices exactly.
  """
  devices = jax.devices() if devices is None else list(devices)
  sizes = [data, fsdp, sequence, tensor]
  given = ", ".join(f"mesh.{axis}={size}" for axis, size in zip(AXES, sizes, strict=True))
  if sizes.count(-1) > 1 or any(s < 1 and s != -1 for s in sizes):
    raise ValueError(f"{given}: give positive sizes, at most one -1.")
  known = math.prod(s for s in sizes if s != -1)
  if -1 in sizes:
    sizes[sizes.index(-1)] = len(devices) // known
  if math.prod(sizes) != len(devices):
    raise ValueError(
      f"{given} does not fit {len(devices)} device(s): choose sizes whose product is "
      f"{len(devices)}, or -1 for one of them with the others dividing it."
    )
  return jax.make_mesh(tuple(sizes), AXES, axis_types=(AxisType.Auto,) * 4, devices=devices)


def batch_share(mesh: Mesh, process: int | None = None) -> tuple[int, int]:
  """Which part of every batch a process has to load.

  Processes whose devices share samples (a sequence or a matrix over several hosts) load the same.

  Args:
    mesh: see `make_mesh`.
    process: None means this one.

  Returns:
    (index, count): part `index` of `count` equal parts, in the order of the mesh.

  Raises:
    ValueError: if the devices of a process hold parts of the batch of different sizes or orders.
  """
  process = jax.process_index() if process is None else process
  owner = np.vectorize(lambda device: device.process_index)(mesh.devices)
  owner = owner.reshape(mesh.shape["data"] * mesh.shape["fsdp"], -1)
  held = {p: tuple(np.flatnonzero((owner == p).any(1))) for p in np.unique(owner)}
  parts = sorted(set(held.values()))
  size = len(parts[0])
  if tuple(sum(parts, ())) != tuple(range(owner.shape[0])) or {len(p) for p in parts} != {size}:
    raise ValueError(
      "processes hold unequal parts of the batch: choose mesh.sequence x mesh.tensor so that it "
      "divides, or is divided by, the devices of a process."
    )
  return parts.index(held[process]), len(parts)
