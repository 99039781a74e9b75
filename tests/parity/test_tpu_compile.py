"""The TPU kernels through the real TPU compiler: they fit the memories of three generations."""

import os

import jax
import jax.numpy as jnp
import pytest
from jax.experimental import topologies
from jax.sharding import SingleDeviceSharding

from pallas_kernels.attention import tpu, tpu_sweep
from vidstep import masks
from vidstep.masks.plan import kernel_mask

pytest.importorskip("libtpu")

# libtpu asks these instead of a machine.
os.environ.setdefault("TPU_SKIP_MDS_QUERY", "1")
os.environ.setdefault("TPU_WORKER_HOSTNAMES", "localhost")
os.environ.setdefault("TPU_WORKER_ID", "0")

TOPOLOGIES = {"v5e": "v5e:2x2", "v5p": "v5p:2x2x1", "v6e": "v6e:2x2"}
HEADS = 12
INFO = masks.teacher_forcing_info(masks.chunk_index(5, 1)).tokens(819)  # 8,190 tokens
MASK = kernel_mask(masks.TeacherForcing(), INFO)
KERNEL = tpu.KERNELS[0]


def forward(x, row):
  return KERNEL.forward(x, x, x, MASK, scale=0.1)


def tangent(x, row):
  return KERNEL.tangent(x, x, x, x, row, x, x, x, MASK, scale=0.1)


def forward_tangent(x, row):
  return KERNEL.forward_tangent(x, x, x, x, x, x, MASK, scale=0.1)


def backward(x, row):
  return KERNEL.backward(x, x, x, row, x, row, MASK, scale=0.1, wanted=(True, True, True))


def arguments(generation):
  topology = topologies.get_topology_desc(platform="tpu", topology_name=TOPOLOGIES[generation])
  place = SingleDeviceSharding(topology.devices[0])
  x = jax.ShapeDtypeStruct((1, MASK.q_len, HEADS, 128), jnp.bfloat16, sharding=place)
  return x, jax.ShapeDtypeStruct((1, HEADS, MASK.q_len), jnp.float32, sharding=place)


@pytest.mark.parametrize("mode", [forward, tangent, forward_tangent, backward])
@pytest.mark.parametrize("generation", TOPOLOGIES)
def test_every_mode_compiles(generation, mode):
  x, row = arguments(generation)
  memory = jax.jit(mode).lower(x, row).compile().memory_analysis()
  # O(N): a few padded and transposed copies, where one matrix of scores in bfloat16 is 1.6 GB.
  assert memory.temp_size_in_bytes < 20 * x.size * x.dtype.itemsize


def test_too_little_fast_memory_does_not_compile(monkeypatch):
  monkeypatch.setattr(tpu_sweep, "_VMEM", 1 << 20)
  with pytest.raises(Exception, match="vmem"):
    # A function of its own: jax remembers what it traced under the old limit.
    jax.jit(lambda *args: forward(*args)).lower(*arguments("v5e")).compile()
