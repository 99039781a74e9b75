"""The op lowers to the TPU kernels, as many as the mode needs, on a machine without a TPU."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from vidstep import masks
from vidstep.attention import attention

INFO = masks.token_info(np.arange(8)).tokens(128)
Q = jnp.ones((1, 1024, 2, 128), jnp.bfloat16)


def attend(q, k, v):
  options = {"q_info": INFO, "k_info": INFO, "implementation": "pallas_tpu"}
  return attention(q, k, v, masks.CausalFrames(), **options)


def tangent(q):
  return jax.jvp(lambda q: attend(q, q, q), (q,), (q,))


def consistency(q):
  out, dout = tangent(q)
  return ((out - jax.lax.stop_gradient(out + dout)).astype(jnp.float32) ** 2).sum()


def kernels(fn, *args):
  lowered = jax.jit(fn).trace(*args).lower(lowering_platforms=("tpu",))
  return lowered.as_text().count("tpu_custom_call")


def test_forward_is_one_kernel():
  assert kernels(attend, Q, Q, Q) == 1


def test_value_and_tangent_are_one_fused_kernel():
  assert kernels(tangent, Q) == 1


def test_the_gradient_of_a_consistency_loss_is_forward_tangent_and_backward():
  # The backward kernel is two calls, dq and dk/dv; forward and tangent share one.
  assert kernels(jax.grad(consistency), Q) == 3


def test_it_refuses_other_machines_and_is_never_a_default():
  with pytest.raises(NotImplementedError, match="it runs on tpu, not on cpu"):
    attend(Q, Q, Q)
  default = lambda q: attention(q, q, q)
  lowered = jax.jit(default).trace(Q).lower(lowering_platforms=("tpu",))
  assert "tpu_custom_call" not in lowered.as_text()
