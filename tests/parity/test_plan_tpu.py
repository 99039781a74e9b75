"""A tiny run planned for a TPU by the real TPU compiler, without a TPU."""

import importlib.util

import pytest
from jax.experimental.topologies import get_topology_desc

from experiments import plan
from vidstep.parallel.mesh import make_mesh

if importlib.util.find_spec("libtpu") is None:
  pytest.skip("libtpu is not installed (make compile)", allow_module_level=True)

TINY = "--config=configs/wan/teacher_forcing.py:tiny"


def test_a_run_is_planned_by_the_compiler_of_the_machine():
  record = plan.plan([TINY], "v5e-4")
  (step,) = record["steps"]
  assert record["compiler"] == "compiler" and record["mesh"]["fsdp"] == 4
  assert step["fits"] and step["total"] < 2**30
  # Tiles of 8 x 128 pad a tiny network's arrays many times over: the estimate does not know.
  assert step["arguments"] > sum(record["held"].values())
  assert step["sent"]["all-gather"] > 0 and not step["notes"]


def test_a_run_that_does_not_fit_says_what_it_needs():
  big = ["--config.model.dim=8192", "--config.model.depth=8", "--config.model.heads=64"]
  record = plan.plan([TINY, *big, "--config.model.ffn_dim=32768"], "v5e-4")
  assert not plan.fits(record)
  assert plan.peak(record) > sum(record["held"].values()) > 15.75 * 2**30
  assert "does not fit" in plan.text(record)


def test_a_mesh_axis_may_be_part_of_a_physical_one():
  devices = get_topology_desc(platform="tpu", topology_name="v5p:4x4x4").devices
  assert make_mesh(1, 32, 2, devices=devices).devices.shape == (1, 32, 2, 1)
