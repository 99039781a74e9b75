"""Meshes that do not fit say so; weights fall where the rule says."""

import jax
import jax.numpy as jnp
import pytest
from jax.sharding import PartitionSpec as P

from vidstep.parallel.mesh import make_mesh
from vidstep.parallel.sharding import batch_sharding, check_batch, state_sharding


def test_minus_one_takes_the_devices_that_are_left():
  assert dict(make_mesh().shape) == {"data": 8, "fsdp": 1}
  assert dict(make_mesh(2, -1).shape) == {"data": 2, "fsdp": 4}
  assert dict(make_mesh(devices=jax.devices()[:1]).shape) == {"data": 1, "fsdp": 1}


@pytest.mark.parametrize("sizes", [(3, 1), (-1, 3), (2, 2), (16, 1)])
def test_a_mesh_that_does_not_cover_the_devices_is_refused(sizes):
  with pytest.raises(ValueError, match=r"does not fit 8 device\(s\): choose sizes whose product"):
    make_mesh(*sizes)


@pytest.mark.parametrize("sizes", [(-1, -1), (0, 1), (1, -2)])
def test_sizes_that_mean_nothing_are_refused(sizes):
  with pytest.raises(ValueError, match="at most one -1"):
    make_mesh(*sizes)


def test_fsdp_cuts_the_largest_axis_that_it_divides():
  shapes = {"wide": (64, 128), "tall": (256, 64), "odd": (63, 64), "square": (64, 64),
            "prime": (61, 67), "small": (8, 8), "scalar": ()}  # fmt: skip
  tree = {name: jax.ShapeDtypeStruct(shape, jnp.float32) for name, shape in shapes.items()}
  specs = {name: s.spec for name, s in state_sharding(tree, make_mesh(2, 4)).items()}
  assert specs == {
    "wide": P(None, "fsdp"),
    "tall": P("fsdp"),
    "odd": P(None, "fsdp"),
    "square": P(None, "fsdp"),
    "prime": P(),
    "small": P(),
    "scalar": P(),
  }


def test_presets_are_rules_by_name():
  tree = {"dense": {"kernel": jax.ShapeDtypeStruct((64, 64), jnp.float32)},
          "embedding": jax.ShapeDtypeStruct((64, 64), jnp.float32)}  # fmt: skip
  mesh = make_mesh(1, 8)
  spec = lambda preset: [s.spec for s in jax.tree.leaves(state_sharding(tree, mesh, preset))]
  assert spec("replicated") == [P(), P()]
  assert spec("fsdp_matrices") == [P(None, "fsdp"), P()]
  with pytest.raises(ValueError, match="choose one of"):
    spec("ddp")


def test_batches_are_cut_over_both_axes_and_must_divide():
  mesh = make_mesh(2, 4)
  assert batch_sharding(mesh).spec == P(("data", "fsdp"))
  check_batch(32, mesh, 2)
  with pytest.raises(ValueError, match=r"batch_size=24 is not divided .* a multiple of 16"):
    check_batch(24, mesh, 2)
