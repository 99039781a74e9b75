"""The least time of a program on a machine: what its arithmetic, memory and links must take."""

import dataclasses

from vidstep.metrics.hlo import Traffic
from vidstep.metrics.machines import Machine


@dataclasses.dataclass(frozen=True)
class Roofline:
  """Seconds that a device needs at its peaks, by resource.

  Attributes:
    compute: multiplies in the matrix units.
    memory: reads and writes of the main memory.
    links: what it sends to its neighbours.
    network: what it sends to other nodes.
  """

  compute: float
  memory: float
  links: float
  network: float

  @property
  def seconds(self) -> float:
    """All at once: no program is faster."""
    return max(dataclasses.astuple(self))

  @property
  def serial(self) -> float:
    """One after the other: what it takes if nothing overlaps, each still at its peak."""
    return self.compute + self.memory + max(self.links, self.network)

  @property
  def bound(self) -> str:
    """The resource that takes longest."""
    times = dataclasses.asdict(self)
    return max(times, key=times.get)


def roofline(flops: float, traffic: Traffic, machine: Machine) -> Roofline:
  """Times of a program of so many operations on one device, and of its traffic.

      compute = flops / peak   memory = bytes / bandwidth   links, network = sent / bandwidth

  Bytes sent go out over all links of a device at once: a mesh axis that lies along one axis of a
  torus has but a part of them.

  Args:
    flops: of one device.
    traffic: of one device.
    machine: what it runs on.
  """
  chip = machine.chip
  return Roofline(
    flops / chip.flops,
    traffic.memory / chip.memory_bandwidth,
    traffic.total_sent / chip.link,
    traffic.far / machine.network if machine.network else 0.0,
  )


def utilization(flops: float, seconds: float, machine: Machine) -> float:
  """The share of the peak that so many operations of one device in so many seconds are.

  MFU if `flops` are those of the model, without what is computed again to save memory; HFU if they
  are those of the program.
  """
  return flops / seconds / machine.chip.flops
