"""The device mesh: four axes, of which those of size 1 cost nothing."""

import math

import jax
from jax.experimental.mesh_utils import create_device_mesh
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
  # An axis may be part of a physical one: 32 x 2 on a torus of 4 x 4 x 4.
  grid = create_device_mesh(sizes, devices, allow_split_physical_axes=True)
  return Mesh(grid, AXES, axis_types=(AxisType.Auto,) * 4)
