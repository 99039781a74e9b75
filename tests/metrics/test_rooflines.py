"""Least times by hand, and a table of machines without contradictions."""

import pytest

from vidstep.metrics.hlo import Traffic
from vidstep.metrics.machines import MACHINES, Chip, Machine, machine
from vidstep.metrics.rooflines import roofline, utilization

CHIP = Chip("toy", "gpu", 100.0, flops=1000.0, memory_bandwidth=50.0, link=20.0)
TOY = Machine("toy-4", CHIP, 4, None, node=2, network=5.0)


def test_the_slowest_resource_bounds():
  traffic = Traffic({"all-gather": 30.0, "all-reduce": 10.0}, far=5.0, memory=150.0)
  line = roofline(4000.0, traffic, TOY)
  assert (line.compute, line.memory, line.links, line.network) == (4.0, 3.0, 2.0, 1.0)
  assert (line.seconds, line.serial, line.bound) == (4.0, 9.0, "compute")
  assert roofline(10.0, Traffic(far=50.0), TOY).bound == "network"
  assert utilization(2000.0, line.seconds, TOY) == 0.5


def test_slices_have_the_chips_of_their_names():
  for name, one in MACHINES.items():
    kind, _, number = name.partition("-")
    assert one.name == name and one.chip.name == kind
    assert one.devices == int(number) // (2 if kind == "v5p" else 1)
    if one.topology:
      sides = [int(n) for n in one.topology.partition(":")[2].split("x")]
      assert one.devices == sides[0] * sides[1] * (sides[2] if kind == "v5p" else 1)
    assert one.devices % one.node == 0 and (one.node == one.devices or one.network)


def test_an_unknown_machine_is_refused_with_those_there_are():
  with pytest.raises(ValueError, match="v5p-128"):
    machine("v5p-127")
