"""Meshes that do not fit say so; weights fall where the rule says."""

import jax
import jax.numpy as jnp
import pytest
from jax.sharding import PartitionSpec as P

from vidstep.losses import Batch
from vidstep.models.cond import Cond
from vidstep.parallel.mesh import make_mesh
from vidstep.parallel.sharding import (
  PRESETS,
  batch_sharding,
  check_batch,
  frame_shardings,
  state_sharding,
)


def test_minus_one_takes_the_devices_that_are_left():
  sizes = lambda *args, **kwargs: tuple(make_mesh(*args, **kwargs).shape.values())
  assert make_mesh().axis_names == ("data", "fsdp", "sequence", "tensor")
  assert sizes() == (8, 1, 1, 1)
  assert sizes(2, -1) == (2, 4, 1, 1)
  assert sizes(sequence=2, tensor=2) == (2, 1, 2, 2)
  assert sizes(1, 2, 2, -1) == (1, 2, 2, 2)
  assert sizes(devices=jax.devices()[:1]) == (1, 1, 1, 1)


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


WAN = {
  "patch_embed": {"kernel": (64, 1536), "bias": (1536,)},
  "head_modulation": (2, 1536),
  "blocks": {
    "modulation": (30, 6, 1536),
    "self_attn": {"q": {"kernel": (30, 1536, 1536), "bias": (30, 1536)},
                  "o": {"kernel": (30, 1536, 1536), "bias": (30, 1536)},
                  "norm_q": {"scale": (30, 1536)}},
    "cross_norm": {"scale": (30, 1536)},
    "ffn_in": {"kernel": (30, 1536, 8960), "bias": (30, 8960)},
    "ffn_out": {"kernel": (30, 8960, 1536), "bias": (30, 1536)},
  },
}  # fmt: skip


def specs(preset, mesh, *, stacked=True):
  """Spec of every leaf of a Wan 1.3B, one block of it or all of them."""
  is_shape = lambda x: isinstance(x, tuple)
  one = jax.tree.map(lambda s: s[1:], WAN["blocks"], is_leaf=is_shape)
  tree = WAN if stacked else WAN | {"blocks": None, "blocks_3": one}
  tree = jax.tree.map(lambda s: jax.ShapeDtypeStruct(s, jnp.float32), tree, is_leaf=is_shape)
  leaves = jax.tree_util.tree_leaves_with_path(state_sharding(tree, mesh, preset))
  name = lambda path: jax.tree_util.keystr(path, simple=True, separator="/")
  return {name(path): tuple(s.spec) for path, s in leaves}


def test_tensor_cuts_columns_then_rows_and_never_layers():
  got = specs("fsdp_tensor", make_mesh(fsdp=2, tensor=2, data=2))
  assert got == {
    "patch_embed/kernel": (None, "fsdp"),
    "patch_embed/bias": ("fsdp",),
    "head_modulation": (None, "fsdp"),
    "blocks/modulation": (None, None, "fsdp"),
    "blocks/self_attn/q/kernel": (None, "fsdp", "tensor"),
    "blocks/self_attn/q/bias": (None, "tensor"),
    "blocks/self_attn/o/kernel": (None, "tensor", "fsdp"),
    "blocks/self_attn/o/bias": (None, "fsdp"),
    "blocks/self_attn/norm_q/scale": (None, "tensor"),
    "blocks/cross_norm/scale": (None, "fsdp"),
    "blocks/ffn_in/kernel": (None, "fsdp", "tensor"),
    "blocks/ffn_in/bias": (None, "tensor"),
    "blocks/ffn_out/kernel": (None, "tensor", "fsdp"),
    "blocks/ffn_out/bias": (None, "fsdp"),
  }


@pytest.mark.parametrize("preset", sorted(PRESETS))
def test_a_block_of_its_own_lies_as_one_in_a_stack(preset):
  mesh = make_mesh(1, 2, 2, 2)
  stacked, alone = specs(preset, mesh), specs(preset, mesh, stacked=False)
  for name, spec in stacked.items():
    if name.startswith("blocks/"):
      assert spec[:1] in ((), (None,)), name
      assert alone[name.replace("blocks/", "blocks_3/")] == spec[1:], name


def test_layers_are_not_cut_where_nothing_else_divides():
  tree = {"blocks": {"w": jax.ShapeDtypeStruct((8, 61, 67), jnp.float32)}}
  assert state_sharding(tree, make_mesh(1, 8))["blocks"]["w"].spec == P()
  assert state_sharding(tree["blocks"], make_mesh(1, 8))["w"].spec == P("fsdp")


def test_low_rank_factors_are_cut_as_the_matrices_that_they_change():
  pair = lambda rows, columns: {"a": (30, rows, 32), "b": (30, 32, columns)}
  tree = {"blocks": {"q": pair(1536, 1536), "o": pair(1536, 1536), "ffn_out": pair(8960, 1536)}}
  like = lambda s: jax.ShapeDtypeStruct(s, jnp.float32)
  tree = jax.tree.map(like, tree, is_leaf=lambda x: isinstance(x, tuple))
  got = state_sharding(tree, make_mesh(2, 2, 1, 2), "fsdp_tensor")["blocks"]
  assert {k: tuple(tuple(s.spec) for s in v.values()) for k, v in got.items()} == {
    "q": ((None, "fsdp"), (None, "fsdp", "tensor")),
    "o": ((None, "tensor", "fsdp"), (None, None, "fsdp")),
    "ffn_out": ((None, "tensor", "fsdp"), (None, None, "fsdp")),
  }


def test_axes_of_one_device_are_not_mentioned():
  for preset in PRESETS:
    for spec in specs(preset, make_mesh(8)).values():
      assert spec == ()


def test_several_axes_cut_one_together_and_optimizers_alone_may_be_cut():
  mesh = make_mesh(2, 2, 2)
  assert specs("fsdp_sequence", mesh)["blocks/ffn_in/kernel"] == (None, None, ("fsdp", "sequence"))
  x = jax.ShapeDtypeStruct((64, 64), jnp.float32)
  tree = {"nets": {"model": {"params": {"kernel": x}, "ema": {"kernel": x}, "opt": {"mu": x}}}}
  net = state_sharding(tree, mesh, "zero")["nets"]["model"]
  assert net["params"]["kernel"].spec == P()
  assert net["ema"]["kernel"].spec == net["opt"]["mu"].spec == P(None, ("data", "fsdp", "sequence"))


def test_tensor_must_divide_what_it_cuts():
  with pytest.raises(ValueError, match=r"self_attn/q/kernel .* not divided by mesh.tensor=8 along"):
    tree = {"self_attn": {"q": {"kernel": jax.ShapeDtypeStruct((12, 12), jnp.float32)}}}
    state_sharding(tree, make_mesh(tensor=8), "tensor")


def test_frames_are_cut_where_they_divide():
  make = lambda *shape: jax.ShapeDtypeStruct(shape, jnp.float32)
  cond = Cond(text=make(2, 8, 5), actions=make(2, 9, 3), clean=make(2, 8, 4, 4, 2))
  mesh, whole, cut = make_mesh(2, 1, 4), P(("data", "fsdp")), P(("data", "fsdp"), "sequence")
  got = jax.tree.map(lambda s: s.spec, frame_shardings(Batch(make(2, 8, 4, 4, 2), cond), mesh))
  assert (got.x0, got.cond.clean, got.cond.text, got.cond.actions) == (cut, cut, whole, whole)
  got = frame_shardings(Batch(make(2, 7, 4, 4, 2), Cond()), mesh)
  assert got.x0.spec == whole
