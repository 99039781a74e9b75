"""The Hopper kernels through the real GPU compiler, ptxas: they fit the registers and the memory.

Needs `pip install "jax[cuda12]"` (or `cuda13`), not a GPU: the chip is described to the compiler.
"""

import importlib.util
import re

import jax
import jax.numpy as jnp
import pytest
from jax.experimental import topologies
from jax.sharding import SingleDeviceSharding

from pallas_kernels.attention import Mask, gpu, gpu_sweep
from vidstep import masks
from vidstep.masks.plan import FieldRule, kernel_mask

if not any(importlib.util.find_spec(f"jax_cuda{n}_plugin") for n in (12, 13)):
  pytest.skip("no CUDA plugin of jax is installed", allow_module_level=True)

H100 = """
gpu_device_info {
  threads_per_block_limit: 1024 threads_per_warp: 32 threads_per_core_limit: 2048
  shared_memory_per_block: 49152 shared_memory_per_block_optin: 232448
  shared_memory_per_core: 233472 registers_per_core_limit: 65536 registers_per_block_limit: 65536
  core_count: 132 fpus_per_core: 128 clock_rate_ghz: 1.98
  block_dim_limit_x: 2147483647 block_dim_limit_y: 65535 block_dim_limit_z: 65535
  memory_bandwidth: 3352320000000 l2_cache_size: 52428800 device_memory_size: 84942979072
  cuda_compute_capability { major: 9 feature_extension: ACCELERATED_FEATURES }
}
platform_name: "CUDA" dnn_version_info { major: 9 minor: 10 }
runtime_version { major: 12 minor: 9 } device_description_str: "NVIDIA H100 80GB HBM3"
"""
HEADS = 2
KERNEL = gpu.KERNELS[0]
INFO = masks.teacher_forcing_info(masks.chunk_index(5, 1)).tokens(101)  # ragged
STATIC = kernel_mask(masks.TeacherForcing(), INFO)
# Of a cache: 505 queries, 1,010 keys, what they are is known at run time only.
TRACED = {
  "whole cache": masks.Prefix(),
  "cache in a window": (masks.TeacherForcing() & masks.Window(2, 1, pinned=True) & masks.Present()),
}
MODES = {
  "forward": lambda q, k, row, mask: KERNEL.forward(q, k, k, mask, scale=0.1),
  "tangent": lambda q, k, row, mask: KERNEL.tangent(q, k, k, q, row, q, k, k, mask, scale=0.1),
  "both": lambda q, k, row, mask: KERNEL.forward_tangent(q, k, k, q, k, k, mask, scale=0.1),
  "backward": lambda q, k, row, mask: KERNEL.backward(
    q, k, k, row, q, row, mask, scale=0.1, wanted=(True, True, True)
  ),
}


def compile(mode, dim, rule=None):
  topology = topologies.get_topology_desc(
    platform="cuda", topology_name="h100", target_config=H100, topology="1x1x1"
  )
  place = SingleDeviceSharding(topology.devices[0])
  shape = lambda *dims, dtype: jax.ShapeDtypeStruct(dims, dtype, sharding=place)
  k_len = STATIC.k_len
  q_len = k_len if rule is None else k_len // 2
  q, k = (shape(1, n, HEADS, dim, dtype=jnp.bfloat16) for n in (q_len, k_len))
  row = shape(1, HEADS, q_len, dtype=jnp.float32)
  infos = [] if rule is None else [shape(1, 4, n, dtype=jnp.int32) for n in (q_len, k_len)]

  def run(q, k, row, *infos):  # a function of its own: jax remembers what it traced
    mask = STATIC if rule is None else Mask(q_len, k_len, FieldRule(rule), *infos)
    return MODES[mode](q, k, row, mask)

  return jax.jit(run).lower(q, k, row, *infos).compile()


@pytest.fixture
def spilled(tmp_path, monkeypatch):
  """Compiles, and says how many bytes a thread each kernel keeps outside of its registers."""
  monkeypatch.setenv("MOSAIC_GPU_DUMP_PTXAS", "1")
  monkeypatch.setenv("MOSAIC_GPU_DUMP_TO", str(tmp_path))

  def run(*args):
    compile(*args)
    reports = [path.read_text() for path in tmp_path.glob("*.ptxas")]
    assert all("sm_90a" in report for report in reports)
    if any("'setmaxnreg' ignored" in report for report in reports):
      pytest.skip("this jax compiles so that all warpgroups keep 168 registers: they spill")
    # At launch every thread has 168; the warpgroups then take 240 and leave 24.
    assert all("Used 168 registers" in report for report in reports)
    return [int(re.search(r"(\d+) bytes spill stores", report).group(1)) for report in reports]

  return run


@pytest.mark.parametrize("dim", gpu.HEAD_DIMS)
@pytest.mark.parametrize("mode", MODES)
def test_every_mode_compiles_into_its_registers(mode, dim, spilled):
  sizes = spilled(mode, dim)
  assert len(sizes) == (2 if mode == "backward" else 1)
  # Only the fused sweep of 128-wide heads comes close: it accumulates 128 registers a thread.
  assert max(sizes) <= (32 if (mode, dim) == ("both", 128) else 0)


@pytest.mark.parametrize("rule", TRACED)
@pytest.mark.parametrize("dim", [64, 128])
@pytest.mark.parametrize("mode", MODES)
def test_so_it_does_for_masks_known_at_run_time(mode, dim, rule, spilled):
  sizes = spilled(mode, dim, TRACED[rule])
  assert len(sizes) == (2 if mode == "backward" else 1)
  assert max(sizes) <= (96 if (mode, dim) == ("both", 128) else 0)  # seven fields: 88 bytes


def test_too_many_stages_do_not_compile(monkeypatch):
  monkeypatch.setattr(gpu_sweep, "_SHARED", 300 << 10)
  monkeypatch.setattr(gpu_sweep, "_STAGES", 8)
  with pytest.raises(Exception, match="exceeds available shared memory"):
    compile("forward", 128)


def test_too_large_tiles_spill(spilled, monkeypatch):
  monkeypatch.setattr(gpu, "_BLOCK", 128)
  (size,) = spilled("tangent", 128)
  assert size > 64
