"""The device mesh: `data` splits the batch, `fsdp` splits the batch and the weights."""

import math

import jax
from jax.sharding import AxisType

AXES = ("data", "fsdp")


def make_mesh(data=-1, fsdp=1, *, devices=None):
  """A `(data, fsdp)` mesh over all devices.

  Args:
    data: copies of the model that share the batch; -1 takes all remaining devices.
    fsdp: devices over which each copy's weights are spread; -1 takes all remaining devices.
    devices: the devices to use; None means all of `jax.devices()`.

  Returns:
    A `jax.sharding.Mesh` with axes ("data", "fsdp"), both `AxisType.Auto`.

  Raises:
    ValueError: if the mesh does not cover the devices exactly.
  """
  devices = jax.devices() if devices is None else list(devices)
  sizes = [data, fsdp]
  if sizes.count(-1) > 1 or any(s < 1 and s != -1 for s in sizes):
    raise ValueError(f"mesh.data={data}, mesh.fsdp={fsdp}: give positive sizes, at most one -1.")
  known = math.prod(s for s in sizes if s != -1)
  if -1 in sizes:
    sizes[sizes.index(-1)] = len(devices) // known
  if math.prod(sizes) != len(devices):
    raise ValueError(
      f"A mesh of data={data} x fsdp={fsdp} does not fit {len(devices)} device(s): choose sizes "
      f"whose product is {len(devices)}, or -1 for one of them with the other dividing it."
    )
  return jax.make_mesh(tuple(sizes), AXES, axis_types=(AxisType.Auto,) * 2, devices=devices)
