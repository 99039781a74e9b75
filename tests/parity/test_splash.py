"""Our kernels against splash attention, JAX's own for TPUs, where it can express the mask.

Splash runs in its interpreter. It has no forward mode; output, log-sum-exp and gradients are held.
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.experimental.pallas.ops.tpu.splash_attention import splash_attention_kernel as splash
from jax.experimental.pallas.ops.tpu.splash_attention import splash_attention_mask as splash_mask
from mutation import assert_caught

from pallas_kernels.attention import Mask, chunked, conformance, tpu
from vidstep import masks
from vidstep.masks.plan import kernel_mask

N, HEADS, DIM = 512, 2, 128
FRAME = 96  # tokens: no multiple of splash's tiles of 128, and the last frame is cut short
INFO = masks.token_info(np.arange(N) // FRAME)
TOKENS = masks.token_info(np.arange(N))
NAMES = ("dq", "dk", "dv")
KERNELS = [chunked.KERNELS[0], tpu.KERNELS[1]]


class ByFrame(splash_mask._ComputableMask):
  """Splash's way to say causal by frame, with a window: a function of token indices."""

  def __init__(self, window):
    self.window = window
    past = lambda q, k: k // FRAME <= q // FRAME
    recent = lambda q, k: k // FRAME > q // FRAME - window
    super().__init__((N, N), lambda q, k: past(q, k) & recent(q, k))

  def __eq__(self, other):
    return isinstance(other, ByFrame) and self.window == other.window

  def __hash__(self):
    return hash((ByFrame, self.window))


def local():
  """Splash's own: 99 tokens back, itself, none ahead."""
  return splash_mask.LocalMask((N, N), (99, 0), 0)


CASES = {
  "full": (lambda: splash_mask.FullMask((N, N)), Mask(N, N)),
  "causal by frame": (lambda: ByFrame(N), kernel_mask(masks.CausalFrames(), INFO)),
  "window of frames": (
    lambda: ByFrame(2),
    kernel_mask(masks.CausalFrames() & masks.Window(2), INFO),
  ),
  "local window": (local, kernel_mask(masks.CausalFrames() & masks.Window(100), TOKENS)),
}


@functools.cache
def inputs():
  return conformance.make_problem(0, (1, N, HEADS, DIM), N, jnp.float32, Mask(N, N))


@functools.cache
def theirs(case):
  """What splash gives, in our layout. It leaves the scale to its caller."""
  mask = splash_mask.MultiHeadMask([CASES[case][0]()] * HEADS)
  make = functools.partial(
    splash.make_splash_mha, mask=mask, head_shards=1, q_seq_shards=1, interpret=True
  )
  problem = inputs()
  attend = lambda q, k, v: make()(q * problem.scale, k, v)
  heads, tokens = (lambda x: x[0].swapaxes(0, 1)), (lambda x: x.swapaxes(0, 1)[None])
  x, cotangent = tuple(map(heads, problem.x)), heads(problem.cotangents[0])
  with jax.numpy_dtype_promotion("standard"), jax.numpy_rank_promotion("allow"):
    _, (lse,) = jax.jit(make(save_residuals=True))(x[0] * problem.scale, *x[1:])
    o, grads = jax.jit(lambda x, c: _with_gradient(attend, x, c))(x, cotangent)
  return {"o": tokens(o), "lse": lse[None]} | dict(zip(NAMES, map(tokens, grads), strict=True))


def _with_gradient(attend, x, cotangent):
  o, transpose = jax.vjp(attend, *x)
  return o, transpose(cotangent)


def ours(kernel, mask):
  problem = inputs()

  def run(x, cotangent):
    o, lse = kernel.forward(*x, mask, scale=problem.scale)
    delta = jnp.einsum("bqhd,bqhd->bhq", cotangent, o)
    wanted = (True, True, True)
    grads = kernel.backward(*x, lse, cotangent, delta, mask, scale=problem.scale, wanted=wanted)
    return {"o": o, "lse": lse} | dict(zip(NAMES, grads, strict=True))

  return jax.jit(run)(problem.x, problem.cotangents[0])


def check(kernel, case, mask):
  expected = theirs(case)
  for name, got in ours(kernel, mask).items():
    error = jnp.linalg.norm((got - expected[name]).ravel()) / jnp.linalg.norm(
      expected[name].ravel()
    )
    assert error < 3e-6, (name, float(error))


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("kernel", KERNELS, ids=lambda kernel: kernel.name)
def test_output_log_sum_exp_and_gradients_are_splashs(kernel, case):
  check(kernel, case, CASES[case][1])


def test_one_token_more_in_the_window_is_noticed():
  wider = kernel_mask(masks.CausalFrames() & masks.Window(101), TOKENS)
  assert_caught(check, KERNELS[0], "local window", wider)
