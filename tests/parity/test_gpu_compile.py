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

from pallas_kernels.attention import gpu, gpu_sweep
from vidstep import masks
from vidstep.masks.plan import kernel_mask

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
INFO = masks.teacher_forcing_info(masks.chunk_index(5, 1)).tokens(101)  # ragged
MASK = kernel_mask(masks.TeacherForcing(), INFO)
KERNEL = gpu.KERNELS[0]
MODES = {
  "forward": lambda x, row: KERNEL.forward(x, x, x, MASK, scale=0.1),
  "tangent": lambda x, row: KERNEL.tangent(x, x, x, x, row, x, x, x, MASK, scale=0.1),
  "both": lambda x, row: KERNEL.forward_tangent(x, x, x, x, x, x, MASK, scale=0.1),
  "backward": lambda x, row: KERNEL.backward(
    x, x, x, row, x, row, MASK, scale=0.1, wanted=(True, True, True)
  ),
}


def compile(mode, dim):
  topology = topologies.get_topology_desc(
    platform="cuda", topology_name="h100", target_config=H100, topology="1x1x1"
  )
  place = SingleDeviceSharding(topology.devices[0])
  x = jax.ShapeDtypeStruct((1, MASK.q_len, HEADS, dim), jnp.bfloat16, sharding=place)
  row = jax.ShapeDtypeStruct((1, HEADS, MASK.q_len), jnp.float32, sharding=place)
  # A function of its own: jax remembers what it traced.
  return jax.jit(lambda *args: MODES[mode](*args)).lower(x, row).compile()


@pytest.mark.parametrize("dim", gpu.HEAD_DIMS)
@pytest.mark.parametrize("mode", MODES)
def test_every_mode_compiles_into_its_registers(mode, dim, tmp_path, monkeypatch):
  monkeypatch.setenv("MOSAIC_GPU_DUMP_PTXAS", "1")
  monkeypatch.setenv("MOSAIC_GPU_DUMP_TO", str(tmp_path))
  compile(mode, dim)
  reports = [path.read_text() for path in tmp_path.glob("*.ptxas")]
  assert len(reports) == (2 if mode == "backward" else 1)
  assert all("sm_90a" in report for report in reports)
  if any("'setmaxnreg' ignored" in report for report in reports):
    pytest.skip("this jax compiles so that all warpgroups keep 168 registers: they spill")
  for report in reports:
    # At launch every thread has 168; the warpgroups then take 240 and leave 24.
    assert "Used 168 registers" in report
    spilled = int(re.search(r"(\d+) bytes spill stores", report).group(1))
    # Only the fused sweep of 128-wide heads comes close: it accumulates 128 registers a thread.
    assert spilled <= (64 if (mode, dim) == ("both", 128) else 0), report


def test_too_many_stages_do_not_compile(monkeypatch):
  monkeypatch.setattr(gpu_sweep, "_SHARED", 300 << 10)
  monkeypatch.setattr(gpu_sweep, "_STAGES", 8)
  with pytest.raises(Exception, match="exceeds available shared memory"):
    compile("forward", 128)


def test_too_large_tiles_spill(tmp_path, monkeypatch):
  monkeypatch.setenv("MOSAIC_GPU_DUMP_PTXAS", "1")
  monkeypatch.setenv("MOSAIC_GPU_DUMP_TO", str(tmp_path))
  monkeypatch.setattr(gpu, "_BLOCK", 128)
  compile("tangent", 128)
  (report,) = (path.read_text() for path in tmp_path.glob("*.ptxas"))
  assert int(re.search(r"(\d+) bytes spill stores", report).group(1)) > 64
