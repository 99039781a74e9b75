"""The TPU kernels in the Pallas interpreter, against the float64 oracle; and lowered for a TPU."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.experimental.pallas import tpu as pltpu

from pallas_kernels.attention import Mask, conformance, tpu
from pallas_kernels.attention.tpu_sweep import Sweep
from vidstep import masks
from vidstep.masks.plan import kernel_mask

COMPILED, INTERPRETED = tpu.KERNELS
TWO_CORES = pltpu.InterpretParams(detect_races=True, num_cores_or_threads=2)
RACING = tpu.kernel("racing", "cpu", sizes=(128,), interpret=TWO_CORES)

FRAMES = masks.token_info(np.arange(4))
PACKED = masks.teacher_forcing_info(masks.chunk_index(3, 2, first=1))
PADDED = masks.token_info(
  np.stack([np.arange(6), np.arange(6)]), valid=np.arange(6) < np.array([[6], [3]])
)
NOW = masks.token_info(np.full(2, 2))

# Rule, attributes of queries and keys an entry a frame, tokens a frame: ragged, up to 2 x 2 tiles.
CASES = {
  "dense": (None, FRAMES, FRAMES, 37),
  "cross attention": (None, FRAMES, NOW, 37),
  "teacher forcing": (masks.TeacherForcing(), PACKED, PACKED, 29),
  "padding": (masks.CausalFrames() & masks.Valid(), PADDED, PADDED, 25),
  "cache": (masks.Window(2, 1), NOW, FRAMES, 65),
  "nobody": (masks.Window(1), NOW, masks.token_info(np.arange(2)), 9),
}


def problem(case, dtype, dim=64):
  rule, q_info, k_info, n = CASES[case]
  q_info, k_info = q_info.tokens(n), k_info.tokens(n)
  q_len, k_len = q_info.frame.shape[-1], k_info.frame.shape[-1]
  mask = Mask(q_len, k_len) if rule is None else kernel_mask(rule, q_info, k_info)
  heads = 1 if mask.batch > 1 else 2
  return conformance.make_problem(0, (mask.batch, q_len, heads, dim), k_len, dtype, mask)


def traced(inputs):
  infos = {name: jnp.asarray(getattr(inputs.mask, name).value) for name in ("q_info", "k_info")}
  return dataclasses.replace(inputs, mask=dataclasses.replace(inputs.mask, **infos))


def execute(kernel, inputs, live=conformance.ALL):
  run = lambda x, dx, c: conformance.run(
    kernel, dataclasses.replace(inputs, x=x, dx=dx, cotangents=c), live
  )
  return jax.jit(run)(inputs.x, inputs.dx, inputs.cotangents)


def assert_conforms(kernel, inputs, live=conformance.ALL):
  errors = conformance.relative_errors(kernel, inputs, live, execute)
  assert max(errors.values()) < conformance.BARS[inputs.x[0].dtype.name], errors


@pytest.mark.parametrize("case", CASES)
def test_float32_meets_its_bar(case):
  assert_conforms(INTERPRETED, problem(case, jnp.float32))


@pytest.mark.parametrize("case", ["teacher forcing", "padding", "nobody"])
def test_bfloat16_meets_its_bar(case):
  assert_conforms(INTERPRETED, problem(case, jnp.bfloat16))


@pytest.mark.parametrize("dim", [96, 128])
def test_other_head_dims(dim):
  assert_conforms(INTERPRETED, problem("cross attention", jnp.float32, dim))


def test_traced_attributes():
  assert_conforms(INTERPRETED, traced(problem("padding", jnp.float32)))


@pytest.mark.parametrize("alive", range(3))
def test_dead_tangents_are_neither_loaded_nor_multiplied(alive):
  live = tuple(n == alive for n in range(3))
  inputs = problem("nobody", jnp.float32)
  assert_conforms(INTERPRETED, inputs, live)
  dots = lambda live: str(jax.make_jaxpr(lambda: execute(INTERPRETED, inputs, live))()).count(
    "dot_general["
  )
  assert dots(live) < dots(conformance.ALL)


@pytest.mark.parametrize("case", ["teacher forcing", "cross attention"])
def test_two_cores_do_not_race(case, capfd):
  assert_conforms(RACING, problem(case, jnp.float32))
  assert "RACE DETECTED" not in "".join(capfd.readouterr())


def test_cores_that_share_a_row_are_caught(monkeypatch):
  params = pltpu.CompilerParams
  every = ("parallel",) * 3
  shared = lambda dimension_semantics, **rest: params(dimension_semantics=every, **rest)
  monkeypatch.setattr(pltpu, "CompilerParams", shared)
  inputs = problem("teacher forcing", jnp.float32)
  with pytest.raises(Exception, match="Revisited block"):
    jax.block_until_ready(RACING.forward(*inputs.x, inputs.mask, scale=inputs.scale))
  pltpu.reset_tpu_interpret_mode_state()


@pytest.mark.parametrize("by_key", [False, True])
def test_no_step_touches_an_empty_tile(by_key):
  mask = problem("teacher forcing", jnp.float32).mask
  sweep = Sweep(mask, 128, 128, by_key, True)
  steps = np.asarray(sweep._steps())
  needed = mask.coverage(128, 128) > 0
  needed = needed.T if by_key else needed
  listed = np.zeros_like(needed)
  listed[steps >> 17, (steps >> 4) & 8191] = True
  assert np.array_equal(listed, needed)
  assert len(steps) == needed.sum()


def test_what_is_not_supported_says_why():
  q = jnp.zeros((1, 8, 1, 80))
  mask = Mask(8, 8)
  assert "head dim 80" in COMPILED.refuses("forward", q, q, mask)
  assert "float16" in COMPILED.refuses("forward", q.astype(jnp.float16), q, mask)
  long = Mask(1 << 20, 1 << 20)
  assert "scalar memory" in COMPILED.refuses("backward", jnp.zeros((1, 8, 1, 64)), q, long)
  assert COMPILED.refuses("backward", jnp.zeros((1, 8, 1, 128)), q, mask) is None


@pytest.mark.parametrize("case", ["teacher forcing", "cross attention"])
def test_every_mode_lowers_for_a_tpu(case):
  inputs = problem(case, jnp.bfloat16)
  run = lambda x, dx, c: conformance.run(
    COMPILED, dataclasses.replace(inputs, x=x, dx=dx, cotangents=c)
  )
  trace = jax.jit(run).trace(inputs.x, inputs.dx, inputs.cotangents)
  text = trace.lower(lowering_platforms=("tpu",)).as_text()
  assert text.count("tpu_custom_call") >= 5


def without_bounds(self, row_info, column_info, column):
  rule = dataclasses.replace(self, mask=dataclasses.replace(self.mask, k_len=self.block_k))
  return ALLOWED(rule, row_info, column_info, column)


ALLOWED = Sweep._allowed


def test_a_sweep_that_forgets_the_last_key_does_not_conform(monkeypatch):
  monkeypatch.setattr(Sweep, "_allowed", without_bounds)
  errors = conformance.relative_errors(
    INTERPRETED, problem("cross attention", jnp.float32), execute=execute
  )
  assert min(errors[name] for name in ("o", "lse", "o'", "lse'")) > 0.01
