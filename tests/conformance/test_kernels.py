"""Every attention kernel, on every mask, dtype and mode, against the float64 oracle."""

import dataclasses
import functools

import hypothesis
import hypothesis.strategies as st
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from pallas_kernels.attention import KERNELS, Mask, chunked, conformance
from vidstep import masks
from vidstep.masks import TeacherForcing, Valid, Window
from vidstep.masks.plan import FieldRule, kernel_mask

RUNNABLE = [kernel for kernel in KERNELS if "cpu" in kernel.platforms]
B, H, D = 2, 2, 64

FRAMES = masks.token_info(np.arange(6), masks.chunk_index(6, 2, first=1))
PACKED = masks.teacher_forcing_info(masks.chunk_index(6, 2, first=1))
INTERLEAVED = masks.teacher_forcing_info(masks.chunk_index(6, 2), shards=3)
RAGGED = masks.token_info(
  np.stack([np.arange(12), np.arange(12)]), valid=np.arange(12) < np.array([[12], [7]])
)
CACHE = masks.token_info(np.array([0, 5, 6, 7, 3, 9, 9]), valid=np.array([1, 1, 1, 1, 1, 0, 0]))
NOW = masks.token_info(np.full(3, 8))

# Rule, attributes of queries and keys an entry a frame, tokens a frame. None is no multiple of 128.
CASES = {
  "dense": (None, FRAMES, FRAMES, 37),
  "cross attention": (None, FRAMES, NOW, 25),
  "causal frames": (masks.CausalFrames(), FRAMES, FRAMES, 37),
  "causal chunks": (masks.CausalChunks(), FRAMES, FRAMES, 37),
  "diffusion forcing": (masks.DiffusionForcing(), FRAMES, FRAMES, 25),
  "teacher forcing": (TeacherForcing(), PACKED, PACKED, 19),
  "interleaved": (TeacherForcing(), INTERLEAVED, INTERLEAVED, 19),
  "window and sink": (TeacherForcing() & Window(1, 1, "chunk"), PACKED, PACKED, 19),
  "padding": (masks.CausalFrames() & Valid(), RAGGED, RAGGED, 19),
  "cache": (Window(4, 1) & Valid(), NOW, CACHE, 33),
  "nobody": (Window(1), NOW, masks.token_info(np.arange(3)), 9),
}


def problem(case, dtype, seed=0, dim=D):
  rule, q_info, k_info, n = CASES[case]
  q_info, k_info = q_info.tokens(n), k_info.tokens(n)
  q_len, k_len = q_info.frame.shape[-1], k_info.frame.shape[-1]
  mask = Mask(q_len, k_len) if rule is None else kernel_mask(rule, q_info, k_info)
  return conformance.make_problem(seed, (B, q_len, H, dim), k_len, dtype, mask)


def execute(kernel, problem, live=conformance.ALL):
  """All modes in one compilation. Traced attributes are arguments, as they are in a model."""
  infos = () if problem.mask.static else (problem.mask.q_info, problem.mask.k_info)

  def run(x, dx, cotangents, *infos):
    fields = dict(zip(("q_info", "k_info"), infos, strict=False))
    mask = dataclasses.replace(problem.mask, **fields)
    inputs = conformance.Problem(x, dx, cotangents, mask, problem.scale)
    return conformance.run(kernel, inputs, live)

  return jax.jit(run)(problem.x, problem.dx, problem.cotangents, *infos)


def assert_conforms(kernel, problem, live=conformance.ALL):
  for mode in ("forward", "tangent", "backward"):
    reason = kernel.refuses(mode, problem.x[0], problem.x[1], problem.mask)
    if reason is not None:
      pytest.skip(f"{kernel.name}: {reason}")
  errors = conformance.relative_errors(kernel, problem, live, execute)
  bar = conformance.BARS[problem.x[0].dtype.name]
  assert max(errors.values()) < bar, errors


each_kernel = pytest.mark.parametrize("kernel", RUNNABLE, ids=lambda kernel: kernel.name)


@each_kernel
@pytest.mark.parametrize("case", CASES)
def test_float32_meets_its_bar(kernel, case):
  assert_conforms(kernel, problem(case, jnp.float32))


@each_kernel
@pytest.mark.parametrize("case", ["cross attention", "window and sink", "padding", "nobody"])
def test_bfloat16_meets_its_bar(kernel, case):
  assert_conforms(kernel, problem(case, jnp.bfloat16))


@each_kernel
@pytest.mark.parametrize("dim", [96, 128])
def test_other_head_dims(kernel, dim):
  assert_conforms(kernel, problem("causal chunks", jnp.float32, dim=dim))


@each_kernel
@pytest.mark.parametrize(
  "live", [(True, False, False), (False, True, False), (False, False, True)], ids=str
)
def test_dead_tangents_may_be_left_out(kernel, live):
  assert_conforms(kernel, problem("window and sink", jnp.float32), live)


@each_kernel
@pytest.mark.parametrize("case", ["padding", "cache", "nobody"])
def test_traced_attributes(kernel, case):
  static = problem(case, jnp.float32)
  infos = {name: jnp.asarray(getattr(static.mask, name).value) for name in ("q_info", "k_info")}
  traced = dataclasses.replace(static, mask=dataclasses.replace(static.mask, **infos))
  assert_conforms(kernel, traced)


Q_LEN, K_LEN = 140, 131


@functools.cache
def compiled_for_any_attributes(kernel, rule):
  def run(x, dx, cotangents, q_info, k_info):
    mask = Mask(Q_LEN, K_LEN, FieldRule(rule), q_info, k_info)
    return conformance.run(kernel, conformance.Problem(x, dx, cotangents, mask, 0.125))

  return jax.jit(run)


@st.composite
def attributes(draw, n):
  """Runs of equal attributes in any order: `[1, 4, n]`."""
  runs = draw(st.lists(st.tuples(*[st.integers(0, high) for high in (4, 3, 1, 1)]), min_size=1))
  cuts = sorted(draw(st.lists(st.integers(0, n), min_size=len(runs) - 1, max_size=len(runs) - 1)))
  sizes = np.diff([0, *cuts, n])
  return np.repeat(np.array(runs), sizes, axis=0).T[None].astype(np.int32)


@each_kernel
@hypothesis.settings(max_examples=25, derandomize=True, deadline=None, database=None)
@hypothesis.given(
  rule=st.sampled_from([TeacherForcing() & Valid(), Window(2, 1) & masks.CausalChunks()]),
  q_info=attributes(Q_LEN),
  k_info=attributes(K_LEN),
  seed=st.integers(0, 9),
)
def test_any_attributes(kernel, rule, q_info, k_info, seed):
  run = compiled_for_any_attributes(kernel, rule)
  infos = jnp.asarray(q_info), jnp.asarray(k_info)
  mask = Mask(Q_LEN, K_LEN, FieldRule(rule), *infos)
  drawn = conformance.make_problem(seed, (1, Q_LEN, 1, D), K_LEN, jnp.float32, mask)
  execute = lambda kernel, p, live: run(p.x, p.dx, p.cotangents, *infos)
  errors = conformance.relative_errors(kernel, drawn, execute=execute)
  assert max(errors.values()) < conformance.BARS["float32"], errors


@each_kernel
def test_a_second_run_is_equal_to_the_bit(kernel):
  inputs = problem("window and sink", jnp.float32)
  run = jax.jit(lambda x, dx, c: conformance.run(kernel, dataclasses.replace(inputs, x=x, dx=dx)))
  first, second = (run(inputs.x, inputs.dx, inputs.cotangents) for _ in range(2))
  assert all(np.array_equal(first[name], second[name]) for name in first)


def test_tangents_are_finite_differences():
  with jax.enable_x64(True):
    inputs = problem("window and sink", jnp.float64, dim=8)
    call = {"mask": inputs.mask, "scale": inputs.scale}
    forward = jax.jit(lambda x: chunked.forward(*x, **call))
    step = lambda h: forward([x + h * dx for x, dx in zip(inputs.x, inputs.dx, strict=True)])
    h = 1e-5
    numeric = [(a - b) / (2 * h) for a, b in zip(step(h), step(-h), strict=True)]
    exact = chunked.tangent(*inputs.x, *forward(inputs.x), *inputs.dx, **call)
    assert all(jnp.abs(a - b).max() < 1e-8 for a, b in zip(numeric, exact, strict=True))
    # The transpose: <cotangent, tangent> = <gradient, dx>.
    out = conformance.run(chunked.KERNELS[0], inputs)
    across = sum(jnp.vdot(c, t) for c, t in zip(inputs.cotangents, exact, strict=True))
    back = sum(jnp.vdot(out[f"d{n}"], t) for n, t in zip("qkv", inputs.dx, strict=True))
    assert abs(across - back) < 1e-10 * abs(across)
    assert max(conformance.relative_errors(chunked.KERNELS[0], inputs).values()) < 1e-13


def without_row_sum(q, k, v, o, lse, *args, **kwargs):
  do, dlse = chunked.tangent(q, k, v, o, lse, *args, **kwargs)
  return do + jnp.moveaxis(dlse, 1, 2)[..., None] * o, dlse


def other_sign(*args, **kwargs):
  return [-x for x in chunked.tangent(*args, **kwargs)]


def without_delta(q, k, v, lse, do, delta, *args, **kwargs):
  return chunked.backward(q, k, v, lse, do, 0 * delta, *args, **kwargs)


def without_mask(q, k, v, mask, scale):
  return chunked.forward(q, k, v, Mask(mask.q_len, mask.k_len), scale=scale)


def one_key_too_many(q, k, v, mask, scale):
  wider = dataclasses.replace(mask, rule=lambda q, k: mask.rule(q, k) | (k[0] == q[0] + 1))
  return chunked.forward(q, k, v, wider, scale=scale)


@pytest.mark.parametrize(
  "mode, mutant, wrong",
  [
    ("tangent", without_row_sum, {"do"}),
    ("tangent", other_sign, {"do", "dlse"}),
    ("backward", without_delta, {"dq", "dk"}),
    ("forward", without_mask, {"o", "lse"}),
    ("forward", one_key_too_many, {"o", "lse"}),
  ],
)
def test_a_mutated_kernel_does_not_conform(mode, mutant, wrong):
  mutated = dataclasses.replace(chunked.KERNELS[0], **{mode: mutant})
  errors = conformance.relative_errors(mutated, problem("causal frames", jnp.float32, dim=8))
  assert wrong <= {name for name, error in errors.items() if error > 0.05}
