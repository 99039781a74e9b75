"""Three-dimensional rotary position embedding, split over the head dimension as Wan does."""

import jax
import jax.numpy as jnp
import numpy as np

from vidstep.models.precision import stat_dtype


def rope_table(frame, height: int, width: int, head_dim: int, *, theta: float = 10000.0):
  """Cosines and sines of the rotation of every token.

  The head dimension D is split into (D - 4 (D//6), 2 (D//6), 2 (D//6)) channels for time, height
  and width; within each, pair i of d channels turns by position * theta^(-2 i / d)
  (Wan 2.1, `rope_params`; RoFormer, arXiv 2104.09864).

  Angles are as exact at frame 10^6 as at frame 1: NumPy frames are turned in float64, traced ones
  in fixed-point fractions of a turn, where float32 would be wrong by 0.06 rad.

  Args:
    frame: [F] or [B, F] integer temporal positions, in patches. A NumPy array gives constants.
    height: rows of patches.
    width: columns of patches.
    head_dim: D, even.
    theta: base of the frequencies.

  Returns:
    (cos, sin), float32, each [F*height*width, 1, D/2] or [B, F*height*width, 1, D/2].
  """
  side = 2 * (head_dim // 6)
  rates = [theta ** (-np.arange(0, d, 2) / d) for d in (head_dim - 2 * side, side, side)]
  if isinstance(frame, np.ndarray):
    by_frame = np.float64(frame)[..., None] * rates[0].reshape((1,) * frame.ndim + (-1,))
  else:
    by_frame = _angle(frame, rates[0])
  by_row = np.arange(height, dtype=np.float64)[:, None, None] * rates[1][None, None]
  by_column = np.arange(width, dtype=np.float64)[:, None] * rates[2][None]
  parts = by_frame[..., None, None, :], by_row, by_column
  lead = (*frame.shape, height, width)

  def table(f):
    xp = np if isinstance(frame, np.ndarray) else jnp
    turned = [f(np if isinstance(a, np.ndarray) else jnp, a).astype(np.float32) for a in parts]
    turned = [xp.broadcast_to(a, (*lead, a.shape[-1])) for a in turned]
    return xp.concatenate(turned, axis=-1).reshape(*frame.shape[:-1], -1, 1, head_dim // 2)

  return table(lambda xp, a: xp.cos(a)), table(lambda xp, a: xp.sin(a))


def _angle(frame, rates):
  """frame * rates modulo 2 pi, within 1e-6 for frames up to 2^24: fractions of a turn in 48 bits.

  The product of an integer with a fraction of 2^32 wraps around by itself.
  """
  turns = rates / (2 * np.pi) * 2.0**32
  high = np.floor(turns).astype(np.uint32)[None]
  low = np.floor(turns % 1 * 2.0**16).astype(np.uint32)[None]
  flat = frame.astype(jnp.int32).reshape(-1, 1)
  bits = jax.lax.bitcast_convert_type(flat, jnp.uint32)
  top = jax.lax.bitcast_convert_type(flat >> 16, jnp.uint32)
  turn = bits * high + top * low + ((bits & 0xFFFF) * low >> 16)
  angle = jax.lax.bitcast_convert_type(turn, jnp.int32).astype(jnp.float32)
  return (angle * np.float32(2 * np.pi / 2**32)).reshape(*frame.shape, -1)


def halves(x):
  """Channel pairs (2i, 2i+1) of x [..., D] as all first members, then all second ones.

  Queries and keys in the same order have the same products, and it turns without strides.
  """
  return jnp.concatenate([x[..., 0::2], x[..., 1::2]], axis=-1)


def turn(x, table):
  """Turns channel pairs of queries or keys.

  Args:
    x: [B, N, heads, D] in the order of `halves`.
    table: (cos, sin) of `rope_table`.

  Returns:
    [B, N, heads, D] in the dtype of x; computed in float32 or better.
  """
  stat = stat_dtype(x.dtype)
  cos, sin = (_like(c, x).astype(stat) for c in table)
  a, b = jnp.split(x.astype(stat), 2, axis=-1)
  return jnp.concatenate([a * cos - b * sin, a * sin + b * cos], axis=-1).astype(x.dtype)


def apply_rope(x, table):
  """`turn` of x [B, N, heads, D] in the order of channels that a network has; not put back."""
  return turn(halves(x), table)


def _like(c, x):
  c = jnp.asarray(c)
  return c[None] if c.ndim < x.ndim else c
