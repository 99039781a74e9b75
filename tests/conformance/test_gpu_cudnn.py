"""cuDNN's forward lowers for CUDA with its log-sum-exp in float32, and refuses all the rest."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from pallas_kernels.attention import Mask, cudnn
from vidstep import masks
from vidstep.attention import attention
from vidstep.masks.plan import kernel_mask

KERNEL = cudnn.KERNELS[0]
N = 100
Q = jnp.ones((2, N, 3, 64), jnp.bfloat16)


@pytest.fixture
def installed(monkeypatch):
  if cudnn.fused is None:
    pytest.skip("this version of jax keeps its call of cuDNN elsewhere")
  monkeypatch.setattr(cudnn.fused, "check_cudnn_version", lambda: 91000)


def attend(q, **options):
  return attention(q, q, q, implementation="cudnn", return_lse=True, **options)


def test_the_forward_is_one_call_and_lse_stays_float32(installed):
  # jax partitions the call by a rule that must know its devices, or that there is one: here one.
  mesh = jax.sharding.Mesh(np.array(jax.devices()[:1]), ("x",))
  spec = jax.sharding.PartitionSpec()
  alone = jax.shard_map(attend, mesh=mesh, in_specs=spec, out_specs=spec, check_vma=False)
  text = jax.jit(alone).trace(Q).lower(lowering_platforms=("cuda",)).as_text()
  assert text.count("__cudnn$fmhaSoftmax") == 1
  assert f"-> (tensor<2x{N}x3x64xbf16>" in text and f"tensor<2x3x{N}xbf16>" not in text


def test_what_is_not_supported_says_why(installed):
  rule = masks.CausalFrames()
  mask = kernel_mask(rule, masks.token_info(np.arange(N)))
  dense = Mask(N, N)
  why = lambda mode="forward", q=Q, mask=dense: KERNEL.refuses(mode, q, q, mask)
  assert why() is None
  assert "no forward mode" in why("tangent")
  assert "log-sum-exp" in why("backward")
  assert "dense N x N bias" in why(mask=mask)
  assert "float32" in why(q=Q.astype(jnp.float32))
  assert "head dim 60" in why(q=Q[..., :60])
  with pytest.raises(NotImplementedError, match="no forward mode"):
    jax.jit(lambda q: jax.jvp(attend, (q,), (q,))).trace(Q).lower(lowering_platforms=("cuda",))


def test_without_cudnn_it_refuses(installed, monkeypatch):
  def missing():
    raise RuntimeError("cuDNN is not detected.")

  monkeypatch.setattr(cudnn.fused, "check_cudnn_version", missing)
  with pytest.raises(NotImplementedError, match="cuDNN is not detected"):
    attend(Q)
