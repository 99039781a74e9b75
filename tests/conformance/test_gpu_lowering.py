"""The Hopper kernels, alone and behind the op, lower for an H100 on a machine without a GPU."""

import functools
import re
import types

import jax
import jax.numpy as jnp
import pytest
from jax.sharding import AbstractDevice, AbstractMesh, AxisType, PartitionSpec

from pallas_kernels.attention import HostArray, Mask, gpu
from vidstep import masks
from vidstep.attention import attention
from vidstep.masks.plan import FieldRule, kernel_mask, pack_info

KERNEL = gpu.KERNELS[0]
H100 = AbstractDevice(device_kind="NVIDIA H100 80GB HBM3", num_cores=132, platform="cuda")
INFO = masks.teacher_forcing_info(masks.chunk_index(3, 1)).tokens(43)
N, HEADS, ALL = INFO.frame.shape[-1], 2, (True, True, True)
RULE = masks.TeacherForcing() & masks.Valid()
ROW = jax.ShapeDtypeStruct((1, HEADS, N), jnp.float32)
FIELDS = jax.ShapeDtypeStruct((1, 4, N), jnp.int32)
MASKS = {
  "dense": lambda fields: Mask(N, N),
  "teacher forcing": lambda fields: kernel_mask(masks.TeacherForcing(), INFO),
  "traced": lambda fields: Mask(N, N, FieldRule(RULE), fields, fields),
}
PRESENT = masks.TeacherForcing() & masks.Present()
CACHED = {
  "whole": masks.Prefix(),
  "window": PRESENT & masks.Window(2, 1, pinned=True),
  "near": PRESENT & masks.Near(1, 4),
  "far": PRESENT & masks.Far(1, 4),
  "text": masks.Valid(),
  "full": masks.Full(),
}
MODES = {
  "forward": lambda x, row, mask: KERNEL.forward(x, x, x, mask, scale=0.1),
  "tangent": lambda x, row, mask: KERNEL.tangent(x, x, x, x, row, x, x, x, mask, scale=0.1),
  "both": lambda x, row, mask: KERNEL.forward_tangent(x, x, x, x, x, x, mask, scale=0.1),
  "backward": lambda x, row, mask: KERNEL.backward(
    x, x, x, row, x, row, mask, scale=0.1, wanted=ALL
  ),
}


def lower(fn, *args, devices=1):
  mesh = AbstractMesh((devices,), ("x",), axis_types=(AxisType.Auto,), abstract_device=H100)
  with jax.sharding.use_abstract_mesh(mesh):
    return jax.jit(fn).trace(*args).lower(lowering_platforms=("cuda",)).as_text()


def count(text, what=r"custom_call @mosaic_gpu"):
  return sum(1 for _ in re.finditer(what, text))


def tokens(dim, dtype=jnp.bfloat16, batch=1, length=N):
  return jax.ShapeDtypeStruct((batch, length, HEADS, dim), dtype)


@pytest.mark.parametrize("mask", MASKS)
@pytest.mark.parametrize("dim", gpu.HEAD_DIMS)
@pytest.mark.parametrize("mode", MODES)
def test_every_mode_is_tensor_cores_and_copy_engine(mode, dim, mask):
  text = lower(lambda x, row, f: MODES[mode](x, row, MASKS[mask](f)), tokens(dim), ROW, FIELDS)
  assert count(text) == (2 if mode == "backward" else 1)
  for what in (
    r"wgmma\.mma_async\.sync\.aligned\.m64n\d+k16\.f32\.bf16\.bf16",  # sums in float32
    r"cp\.async\.bulk\.tensor\.(shared\.cluster\.global|\dd\.shared)",  # loads
    r"cp\.async\.bulk\.tensor\.global\.shared",  # stores
    r"mbarrier\.try_wait",
    r"setmax(register|nreg)",  # warpgroups that specialise
  ):
    assert count(text, what), what


@pytest.mark.parametrize("rule", CACHED)
@pytest.mark.parametrize("mode", ["both", "backward"])
def test_masks_of_a_cache_lower(mode, rule):
  """In registers, what a rule does not depend on has no layout and must not be loaded."""
  mask = lambda fields: Mask(N, N, FieldRule(CACHED[rule]), fields, fields)
  text = lower(lambda x, row, f: MODES[mode](x, row, mask(f)), tokens(64), ROW, FIELDS)
  assert count(text) == (2 if mode == "backward" else 1)


def test_shards_pick_their_lists_on_the_device():
  info = pack_info(RULE, INFO, static=True).value.reshape(1, 4, 2, -1).transpose(2, 0, 1, 3)
  shard = tokens(64, length=N // 2)

  def forward(x, i, j):
    mask = Mask(N // 2, N // 2, FieldRule(RULE), HostArray(info), HostArray(info), (i, j))
    return KERNEL.forward(x, x, x, mask, scale=0.1)

  index = jax.ShapeDtypeStruct((), jnp.int32)
  assert count(lower(forward, shard, index, index)) == 1


def test_half_precision_lowers():
  text = lower(lambda x: MODES["forward"](x, None, Mask(N, N)), tokens(64, jnp.float16))
  assert count(text, r"m64n\d+k16\.f32\.f16\.f16")


# --- behind the op ------------------------------------------------------------------------------
def attend(q, k, v, **options):
  options = {"implementation": "pallas_gpu", "q_info": INFO} | options
  return attention(q, k, v, masks.TeacherForcing(), **options)


def tangent(q):
  return jax.jvp(lambda q: attend(q, q, q), (q,), (q,))


def consistency(q):
  out, dout = tangent(q)
  return ((out - jax.lax.stop_gradient(out + dout)).astype(jnp.float32) ** 2).sum()


def test_the_op_is_as_many_kernels_as_the_mode_needs():
  q = tokens(64)
  assert count(lower(lambda q: attend(q, q, q), q)) == 1
  assert count(lower(tangent, q)) == 1
  # One for value and tangent, or two that may share one; dq, and dk with dv.
  assert count(lower(jax.grad(consistency), q)) in (3, 4)


def test_dead_tangents_are_neither_loaded_nor_multiplied():
  x = tokens(64)
  both = lambda *dx: lower(
    lambda x, *dx: KERNEL.forward_tangent(
      x, x, x, *[t if type(t) is not tuple else None for t in dx], Mask(N, N), scale=0.1
    ),
    x,
    *dx,
  )
  cross, every = both(x, (), ()), both(x, x, x)
  operands = lambda text: re.search(r"custom_call @mosaic_gpu\w*\(([^)]*)\)", text).group(1)
  assert operands(cross).count("%") == operands(every).count("%") - 2
  grads = lambda *wanted: count(
    lower(
      lambda x, r: [
        g
        for g in KERNEL.backward(x, x, x, r, x, r, Mask(N, N), scale=0.1, wanted=wanted)
        if g is not None
      ],
      x,
      ROW,
    )
  )
  assert grads(True, False, False) == 1 and grads(False, True, False) == 1


def test_it_lowers_under_vmap():
  batched = jax.ShapeDtypeStruct((3, *tokens(64).shape), jnp.bfloat16)
  text = lower(jax.vmap(tangent), batched)
  assert count(text) == 1 and f"tensor<3x{N + -N % 8}x" in text


def test_it_lowers_under_shard_map():
  spec = PartitionSpec("x")
  mesh = AbstractMesh((2,), ("x",), axis_types=(AxisType.Auto,), abstract_device=H100)
  sharded = jax.shard_map(
    jax.grad(consistency), mesh=mesh, in_specs=spec, out_specs=spec, check_vma=False
  )
  assert count(lower(sharded, tokens(64, batch=2), devices=2)) in (3, 4)


def test_what_is_not_supported_says_why():
  with pytest.raises(NotImplementedError, match="float32 would be rounded to TF32"):
    attend(*[jnp.zeros((1, N, 1, 64))] * 3)
  with pytest.raises(NotImplementedError, match="head dim 80"):
    attend(*[jnp.zeros((1, N, 1, 80), jnp.bfloat16)] * 3)
  with pytest.raises(NotImplementedError, match="it runs on cuda, not on cpu"):
    attend(*[jnp.zeros((1, N, 1, 64), jnp.bfloat16)] * 3)


def test_other_gpus_are_refused(monkeypatch):
  q = jnp.zeros((1, N, 1, 64), jnp.bfloat16)
  why = lambda: KERNEL.refuses("forward", q, q, Mask(N, N))
  assert why() is None
  device = types.SimpleNamespace(compute_capability="8.0")
  monkeypatch.setattr(jax, "default_backend", lambda: "gpu")
  monkeypatch.setattr(jax, "devices", lambda: [device])
  assert "8.0 is not Hopper's" in why()
  device.compute_capability = "9.0"
  assert why() is None


def test_it_is_never_a_default():
  text = lower(functools.partial(attend, implementation=None), *[tokens(64)] * 3)
  assert count(text) == 0
