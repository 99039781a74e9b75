"""What a mask allows, computed on the host: dense array, exact number of pairs, tile map."""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from pallas_kernels.attention.mask import HostArray, Mask, TileMap
from vidstep.masks.info import TokenInfo
from vidstep.masks.rules import Full, Prefix, Rule, fields_read


@dataclasses.dataclass(frozen=True)
class FieldRule:
  """A rule as kernels call it: on plain sequences of fields instead of `TokenInfo`."""

  rule: Rule

  def __call__(self, q: Any, k: Any) -> Any:
    return self.rule(TokenInfo(*q), TokenInfo(*k))

  @property
  def prefix(self) -> bool:
    """Whether all queries see the same keys, the first ones: see `Mask.lengths`."""
    return isinstance(self.rule, Prefix)


def pack_info(rule: Rule, info: TokenInfo, static: bool) -> HostArray | jax.Array:
  """Attributes as one int32 array `[B or 1, 4, N]`: a `HostArray` if `static`, else a JAX array.

  Those that `rule` does not look at are set to 0, so that runs are as long as the mask allows.

  Raises:
    ValueError: for fields that are not `[N]` or `[B, N]`.
  """
  xp = np if static else jnp
  fields = [xp.asarray(field).astype(xp.int32) for field in info]
  if any(field.ndim not in (1, 2) for field in fields):
    raise ValueError(f"attributes are [N] or [B, N]; got {[field.shape for field in fields]}.")
  fields = [field[None] if field.ndim == 1 else field for field in fields]
  read = fields_read(rule)
  fields = [f if name in read else 0 * f for name, f in zip(info._fields, fields, strict=True)]
  fields = xp.stack(xp.broadcast_arrays(*fields), axis=1)
  return HostArray(fields) if static else fields


def kernel_mask(rule: Rule | None, q_info: TokenInfo, k_info: TokenInfo | None = None) -> Mask:
  """The mask that `rule` makes of these tokens, as kernels take it.

  Args:
    rule: who attends to whom; None for everyone.
    q_info: attributes of the queries.
    k_info: attributes of the keys; those of the queries when left out.
  """
  k_info = q_info if k_info is None else k_info
  q_len, k_len = np.shape(q_info.frame)[-1], np.shape(k_info.frame)[-1]
  rule, static = rule or Full(), q_info.static and k_info.static
  infos = (pack_info(rule, info, static) for info in (q_info, k_info))
  return Mask(q_len, k_len, FieldRule(rule), *infos)


def dense(rule: Rule | None, q_info: TokenInfo, k_info: TokenInfo | None = None) -> Any:
  """The mask as a bool array `[Nq, Nk]`, `[B, Nq, Nk]` for batched attributes. O(N^2) memory."""
  k_info = q_info if k_info is None else k_info
  q = TokenInfo(*(field[..., :, None] for field in q_info))
  k = TokenInfo(*(field[..., None, :] for field in k_info))
  return (rule or Full())(q, k)


def pairs(rule: Rule | None, q_info: TokenInfo, k_info: TokenInfo | None = None) -> int:
  """The exact number of attended pairs, summed over the batch of the attributes (NumPy only)."""
  return kernel_mask(rule, q_info, k_info).pairs()


def density(rule: Rule | None, q_info: TokenInfo, k_info: TokenInfo | None = None) -> float:
  """The share of all pairs that is attended."""
  mask = kernel_mask(rule, q_info, k_info)
  return mask.pairs() / (mask.batch * mask.q_len * mask.k_len)


def tile_map(
  rule: Rule | None,
  block_q: int,
  block_k: int,
  q_info: TokenInfo,
  k_info: TokenInfo | None = None,
) -> TileMap:
  """Which tiles of the score matrix a kernel touches; see `TileMap`."""
  return kernel_mask(rule, q_info, k_info).tiles(block_q, block_k)
