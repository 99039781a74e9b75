"""Accelerators by name: what one device holds and how fast it computes, reads and sends.

All numbers are the vendors' peaks for one device. TPUs: docs.cloud.google.com/tpu/docs/v5e, v5p,
v6e; the ICI bandwidth there (400, 1,200, 800 GB/s) counts both directions, here one. GPUs: NVIDIA's
data sheets of the H100 and H200 (SXM), dense bf16; NVLink (900 GB/s) counts both directions, here
one; between nodes one 400 Gbit/s InfiniBand port a GPU, as in a DGX.
"""

import dataclasses

_GIB = 2**30


@dataclasses.dataclass(frozen=True)
class Chip:
  """One device.

  Attributes:
    name: of the generation.
    platform: "tpu" or "gpu".
    memory: bytes that programs may use. TPUs: what their compiler says; GPUs: all there is.
    flops: peak bf16 multiply-adds into float32, times two, a second.
    memory_bandwidth: bytes a second.
    link: bytes a second that it sends to its neighbours (TPU) or within its node (GPU), all links
      together, one direction.
  """

  name: str
  platform: str
  memory: float
  flops: float
  memory_bandwidth: float
  link: float


@dataclasses.dataclass(frozen=True)
class Machine:
  """Devices under one name.

  Attributes:
    name: what users call it.
    chip: every one of its devices.
    devices: how many.
    topology: what the TPU compiler calls it; None for GPUs.
    node: devices that `chip.link` joins; all of them on a TPU slice.
    network: bytes a second that a device sends to other nodes.
  """

  name: str
  chip: Chip
  devices: int
  topology: str | None
  node: int
  network: float


V5E = Chip("v5e", "tpu", 15.75 * _GIB, 197e12, 819e9, 200e9)
V5P = Chip("v5p", "tpu", 95.74 * _GIB, 459e12, 2765e9, 600e9)
V6E = Chip("v6e", "tpu", 31.25 * _GIB, 918e12, 1638e9, 400e9)
H100 = Chip("h100", "gpu", 80e9, 989.4e12, 3.35e12, 450e9)
H200 = Chip("h200", "gpu", 141e9, 989.4e12, 4.8e12, 450e9)

# Slices as Google sells them. A v5p is named by its cores, two a chip; jax sees a chip as a device.
_FLAT = {4: "2x2", 8: "2x4", 16: "4x4", 32: "4x8", 64: "8x8", 128: "8x16", 256: "16x16"}
_CUBES = {
  4: "2x2x1", 8: "2x2x2", 16: "2x2x4", 32: "2x4x4", 64: "4x4x4", 128: "4x4x8", 256: "4x8x8",
  512: "8x8x8",
}  # fmt: skip
_NODES = (1, 2, 4, 8, 16, 32, 64)


def _slices(chip, shapes, cores=1):
  for chips, shape in shapes.items():
    yield Machine(f"{chip.name}-{chips * cores}", chip, chips, f"{chip.name}:{shape}", chips, 0.0)


def _nodes(chip):
  yield Machine(f"{chip.name}-1", chip, 1, None, 1, 0.0)
  for nodes in _NODES:
    yield Machine(f"{chip.name}-{8 * nodes}", chip, 8 * nodes, None, 8, 50e9)


MACHINES = {
  machine.name: machine
  for machines in (
    _slices(V5E, _FLAT),
    _slices(V5P, _CUBES, cores=2),
    _slices(V6E, _FLAT),
    _nodes(H100),
    _nodes(H200),
  )
  for machine in machines
}


def machine(name: str) -> Machine:
  """The machine of a name such as "v5p-128" (64 chips), "v6e-256" or "h200-8".

  Raises:
    ValueError: if there is none, listing those there are.
  """
  if name not in MACHINES:
    raise ValueError(f"Unknown machine {name!r}: there are {', '.join(MACHINES)}.")
  return MACHINES[name]
