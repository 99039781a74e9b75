"""The Hopper kernels in the interpreter of Mosaic GPU, race detector on, against the oracle.

Warpgroups, barriers, copies and the ring run as written; out of range, copies behave as the copy
engine's. What this does not show: the layouts of registers and of shared memory, the products
whose left factor is in registers (plain dots here), fast exponentials, and how fast any of it is.
"""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.experimental.pallas import mosaic_gpu as plgpu

from pallas_kernels.attention import Mask, conformance, gpu, gpu_sweep
from tests.conformance import gpu_masks
from tests.mutation import assert_caught
from vidstep.masks.plan import kernel_mask

if not hasattr(plgpu, "InterpretGPUParams"):
  pytest.skip("Mosaic GPU's interpreter is public from jax 0.11.2 on", allow_module_level=True)

CASES = gpu_masks.CASES
TRACED = gpu_masks.TRACED | {"padding": CASES["padding"]}


def kernel():
  return gpu.kernel("interpreted", "cpu", interpret=plgpu.InterpretGPUParams(detect_races=True))


def problem(case, dtype=jnp.bfloat16, dim=64):
  rule, q_info, k_info, n = (CASES | TRACED)[case]
  q_info, k_info = q_info.tokens(n), k_info.tokens(n)
  q_len, k_len = q_info.frame.shape[-1], k_info.frame.shape[-1]
  mask = Mask(q_len, k_len) if rule is None else kernel_mask(rule, q_info, k_info)
  return conformance.make_problem(0, (mask.batch, q_len, 1, dim), k_len, dtype, mask)


def execute(kernel, inputs, live=conformance.ALL):
  run = lambda x, dx, c: conformance.run(
    kernel, dataclasses.replace(inputs, x=x, dx=dx, cotangents=c), live
  )
  return jax.jit(run)(inputs.x, inputs.dx, inputs.cotangents)


def assert_conforms(inputs, live=conformance.ALL):
  errors = conformance.relative_errors(kernel(), inputs, live, execute)
  assert max(errors.values()) < conformance.BARS["bfloat16"], errors


@pytest.mark.parametrize("case", CASES)
def test_bfloat16_meets_its_bar(case):
  assert_conforms(problem(case))


def test_other_head_dims_and_half_precision():
  assert_conforms(problem("cross attention", jnp.float16, dim=128))


def traced(inputs):
  """The same, with a mask whose attributes the host does not look at."""
  infos = {name: jnp.asarray(getattr(inputs.mask, name).value) for name in ("q_info", "k_info")}
  return dataclasses.replace(inputs, mask=dataclasses.replace(inputs.mask, **infos))


@pytest.mark.parametrize("case", TRACED)
def test_traced_attributes(case):
  assert_conforms(traced(problem(case)))


@pytest.mark.parametrize("alive", range(3))
def test_dead_tangents(alive):
  assert_conforms(problem("nobody"), tuple(n == alive for n in range(3)))


def forward_conforms(inputs):
  run = jax.jit(lambda x: kernel().forward(*x, inputs.mask, scale=inputs.scale))
  exact = conformance.oracle(inputs)
  for name, got in zip(("o", "lse"), run(inputs.x), strict=True):
    error = np.linalg.norm(np.asarray(got, np.float64) - exact[name])
    assert error < 1e-2 * np.linalg.norm(exact[name])


def test_a_sweep_that_forgets_the_last_key_does_not_conform(monkeypatch):
  monkeypatch.setattr(gpu_sweep.Sweep, "_hides_keys", False)
  assert_caught(forward_conforms, problem("cross attention"))


def test_a_field_that_is_not_loaded_does_not_conform(monkeypatch):
  monkeypatch.setattr(gpu_sweep, "_vain", lambda eqn: eqn.primitive is jax.lax.eq_p)
  assert_caught(forward_conforms, traced(problem("cache in a window")))


def test_a_ring_that_is_not_waited_for_is_caught(monkeypatch):
  """The detector sees what a lucky schedule hides: a slot reloaded while it may still be read."""
  monkeypatch.setattr(gpu_sweep, "_STAGES", 1)
  wait = plgpu.barrier_wait
  skip_free = lambda barrier: None if barrier.dtype.num_arrivals == 2 else wait(barrier)
  monkeypatch.setattr(gpu_sweep.plgpu, "barrier_wait", skip_free)
  with pytest.raises(Exception, match="RACE DETECTED"):
    forward_conforms(problem("teacher forcing"))
