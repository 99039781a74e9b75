"""Attention by cuDNN: the dense forward, as a yardstick and for sampling.

It does less than the other kernels, and says so instead of making up for it:

- No tangent: cuDNN has none, and `jax.jvp` does not pass through its `custom_vjp`.
- No backward: cuDNN's wants `o` and forms `rowsum(do * o)` itself, so that a gradient of `lse`
  (which merging shards needs) has no way in.
- No mask but a number of keys (`Mask.prefix`, a cache that fills in order), which costs less than
  none: keys beyond it are not read. Any other would be a bias of N x N numbers, read from memory.

`jax.nn.dot_product_attention(..., return_residual=True)` is public, but rounds `lse` to the dtype
of `o`: 8 bits in bfloat16. So the function below it is called, which keeps float32; it is private,
and where it is gone or cuDNN is not installed, this kernel refuses.
"""

import jax
import jax.numpy as jnp

from pallas_kernels.attention.kernel import Kernel
from pallas_kernels.attention.mask import Mask

try:
  from jax._src.cudnn import fused_attention_stablehlo as fused
except ImportError:  # pragma: no cover
  fused = None

_WIDEST = 128  # head dim on every GPU that has flash attention


def forward(
  q: jax.Array, k: jax.Array, v: jax.Array, mask: Mask, *, scale: float
) -> tuple[jax.Array, jax.Array]:
  """`o = P v` and `lse`, of all keys or of the first ones."""
  kept = {}
  if mask.rule is not None:
    lengths = jnp.broadcast_to(mask.lengths(), q.shape[:1])
    kept = {"kv_seqlen": lengths, "q_seqlen": jnp.full_like(lengths, q.shape[1])}
    kept["mask_type"] = fused.MaskType.PADDING
  o, lse = fused.dot_product_attention(
    q, k, v, scale=scale, qkv_layout="BTNH", return_residual=True, **kept
  )
  return o, lse.astype(jnp.float32)


def _refused(*args, **kwargs):
  raise NotImplementedError("cudnn has a forward only; `refuses` says so before.")


def refuses(mode: str, q: jax.Array, k: jax.Array, mask: Mask) -> str | None:
  """Why a call is not supported, or None."""
  if mode == "tangent":
    return "cuDNN has no forward mode"
  if mode == "backward":
    return "cuDNN's backward takes no gradient of the log-sum-exp"
  if mask.rule is not None and not mask.prefix:
    return "a mask would be a dense N x N bias"
  if q.dtype not in (jnp.bfloat16, jnp.float16):
    return f"{q.dtype} is neither bfloat16 nor float16"
  if q.shape[-1] % 8 or q.shape[-1] > _WIDEST:
    return f"head dim {q.shape[-1]} is not a multiple of 8 up to {_WIDEST}"
  return _missing()


def _missing() -> str | None:
  if fused is None:
    return "this version of jax keeps its call of cuDNN elsewhere"
  try:
    fused.check_cudnn_version()
  except RuntimeError as error:
    return str(error)
  return None


KERNELS = (
  Kernel(
    name="cudnn",
    platforms=("cuda",),
    forward=forward,
    tangent=_refused,
    backward=_refused,
    refuses=refuses,
    experimental=True,  # never executed on its hardware
  ),
)
