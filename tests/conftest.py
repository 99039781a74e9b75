"""Strict numerics for every test: 8 simulated devices, no silent promotion, warnings are errors."""

import gc
import importlib.metadata
import os
import pathlib

os.environ.setdefault("JAX_PLATFORMS", "cpu")
os.environ["XLA_FLAGS"] = (
  os.environ.get("XLA_FLAGS", "") + " --xla_force_host_platform_device_count=8"
)
if importlib.metadata.version("jaxlib").startswith("0.10."):  # later ones do not know the flag
  # Small losses compile in half the time without these emitters; networks in about the same.
  os.environ["XLA_FLAGS"] += " --xla_cpu_use_fusion_emitters=false"

import jax
import pytest

jax.config.update("jax_numpy_dtype_promotion", "strict")
jax.config.update("jax_numpy_rank_promotion", "raise")


@pytest.fixture(scope="module")
def unoptimized():
  """For modules whose programs would take longer to optimize than to run."""
  jax.config.update("jax_disable_most_optimizations", True)
  yield
  jax.config.update("jax_disable_most_optimizations", False)


@pytest.fixture
def optimized(unoptimized):
  """For a test in such a module that looks at what the compiler made."""
  jax.config.update("jax_disable_most_optimizations", False)
  yield
  jax.config.update("jax_disable_most_optimizations", True)


@pytest.fixture(scope="module")
def one_device():
  """For modules that claim nothing of meshes: one device compiles and runs faster than eight."""
  first = jax.devices()[:1]
  with pytest.MonkeyPatch.context() as patch:
    patch.setattr(jax, "devices", lambda *_: first)
    yield


@pytest.fixture(scope="module", autouse=True)
def bounded_memory():
  """Compiled programs are kept as long as their process lives: too many for one of a long suite."""
  yield
  pages = pathlib.Path("/proc/self/statm")  # Linux
  if pages.exists() and int(pages.read_text().split()[1]) * os.sysconf("SC_PAGESIZE") > 6 * 2**30:
    jax.clear_caches()
    gc.collect()


@pytest.fixture
def key():
  return jax.random.key(0)
