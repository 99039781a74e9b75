"""Devices of a machine that is not there: as its own compiler describes them, or simulated."""

import importlib.util
import os

import jax
from jax.experimental import topologies

# libtpu asks these instead of a machine.
TPU_SETTINGS = {
  "TPU_SKIP_MDS_QUERY": "1",
  "TPU_WORKER_HOSTNAMES": "localhost",
  "TPU_WORKER_ID": "0",
  "ALLOW_MULTIPLE_LIBTPU_LOAD": "1",  # no chip is touched, so that several may compile
}
REAL, SIMULATED = "compiler", "estimate"

# What the GPU compiler wants to know of a Hopper; the two differ in their memory alone.
_HOPPER = """
gpu_device_info {{
  threads_per_block_limit: 1024 threads_per_warp: 32 threads_per_core_limit: 2048
  shared_memory_per_block: 49152 shared_memory_per_block_optin: 232448
  shared_memory_per_core: 233472 registers_per_core_limit: 65536 registers_per_block_limit: 65536
  core_count: 132 fpus_per_core: 128 clock_rate_ghz: 1.98
  block_dim_limit_x: 2147483647 block_dim_limit_y: 65535 block_dim_limit_z: 65535
  memory_bandwidth: {bandwidth} l2_cache_size: 52428800 device_memory_size: {memory}
  cuda_compute_capability {{ major: 9 feature_extension: ACCELERATED_FEATURES }}
}}
platform_name: "CUDA" dnn_version_info {{ major: 9 minor: 10 }}
runtime_version {{ major: 12 minor: 9 }} device_description_str: "{name}"
"""


def devices_of(machine):
  """The devices of a `vidstep.metrics.machines.Machine`, and how far they can be trusted.

  TPUs are described by libtpu, GPUs by the CUDA plugin of jax, neither of which needs the hardware.
  Where there is no plugin, simulated CPU devices stand in for GPUs
  (XLA_FLAGS=--xla_force_host_platform_device_count).

  Returns:
    (devices, "compiler"): programs are compiled by the machine's own compiler; or
    (devices, "estimate"): by the one for CPUs.

  Raises:
    ImportError: for a TPU without libtpu.
    ValueError: if there are too few simulated devices.
  """
  if machine.chip.platform == "tpu":
    if importlib.util.find_spec("libtpu") is None:
      raise ImportError(f"{machine.name} needs the TPU compiler: pip install libtpu, or make plan.")
    for name, value in TPU_SETTINGS.items():
      os.environ.setdefault(name, value)
    topology = topologies.get_topology_desc(platform="tpu", topology_name=machine.topology)
    return topology.devices, REAL
  if any(importlib.util.find_spec(f"jax_cuda{n}_plugin") for n in (12, 13)):
    nodes = machine.devices // machine.node
    chip = _HOPPER.format(
      bandwidth=int(machine.chip.memory_bandwidth),
      memory=int(machine.chip.memory),
      name=f"NVIDIA {machine.chip.name.upper()}",
    )
    topology = topologies.get_topology_desc(
      platform="cuda",
      topology_name=machine.chip.name,
      target_config=chip,
      topology=f"1x{nodes}x{machine.node}",
    )
    return topology.devices, REAL
  devices = jax.devices("cpu")
  if len(devices) < machine.devices:
    raise ValueError(
      f"{machine.name} is simulated by {machine.devices} CPU devices, and there are "
      f"{len(devices)}: set XLA_FLAGS=--xla_force_host_platform_device_count={machine.devices}."
    )
  return devices[: machine.devices], SIMULATED
