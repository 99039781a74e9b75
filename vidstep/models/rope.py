"""Three-dimensional rotary position embedding, split over the head dimension as Wan does."""

import jax.numpy as jnp
import numpy as np

from vidstep.models.precision import stat_dtype


def rope_table(frame, height: int, width: int, head_dim: int, *, theta: float = 10000.0):
  """Cosines and sines of the rotation of every token.

  The head dimension D is split into (D - 4 (D//6), 2 (D//6), 2 (D//6)) channels for time, height
  and width; within each, pair i of d channels turns by position * theta^(-2 i / d)
  (Wan 2.1, `rope_params`; RoFormer, arXiv 2104.09864).

  Args:
    frame: [F] or [B, F] integer temporal positions, in patches. A NumPy array gives constants.
    height: rows of patches.
    width: columns of patches.
    head_dim: D, even.
    theta: base of the frequencies.

  Returns:
    (cos, sin), float32, each [F*height*width, 1, D/2] or [B, F*height*width, 1, D/2].
  """
  xp = np if isinstance(frame, np.ndarray) else jnp
  exact = np.float64 if xp is np else np.float32
  side = 2 * (head_dim // 6)
  rates = [theta ** (-np.arange(0, d, 2) / d) for d in (head_dim - 2 * side, side, side)]
  rates = [r.astype(exact) for r in rates]
  lead = (*frame.shape, height, width)
  by_frame = frame.astype(exact)[..., None] * rates[0].reshape((1,) * frame.ndim + (-1,))
  by_frame = by_frame[..., None, None, :]
  by_row = np.arange(height, dtype=exact)[:, None, None] * rates[1][None, None]
  by_column = np.arange(width, dtype=exact)[:, None] * rates[2][None]
  parts = [xp.broadcast_to(a, (*lead, a.shape[-1])) for a in (by_frame, by_row, by_column)]
  angle = xp.concatenate(parts, axis=-1)
  angle = angle.reshape(*frame.shape[:-1], -1, 1, head_dim // 2)
  return xp.cos(angle).astype(np.float32), xp.sin(angle).astype(np.float32)


def apply_rope(x, table):
  """Turns channel pairs (2i, 2i+1) of queries or keys.

  The result holds all first members, then all second ones. Queries and keys come out in the same
  order, so their products do not see it, and the interleaving copy is saved.

  Args:
    x: [B, N, heads, D].
    table: (cos, sin) of `rope_table`.

  Returns:
    [B, N, heads, D] in the dtype of x; computed in float32 or better.
  """
  stat = stat_dtype(x.dtype)
  cos, sin = (_like(c, x).astype(stat) for c in table)
  a, b = x[..., 0::2].astype(stat), x[..., 1::2].astype(stat)
  return jnp.concatenate([a * cos - b * sin, a * sin + b * cos], axis=-1).astype(x.dtype)


def _like(c, x):
  c = jnp.asarray(c)
  return c[None] if c.ndim < x.ndim else c
