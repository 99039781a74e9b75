"""The tokens of every frame dealt out in parts, for devices among which frames do not divide."""

import jax.numpy as jnp
import numpy as np

from vidstep.masks import TokenInfo


def deal(x, parts: int):
  """[B, F, S, ...] -> [B, parts F, S / parts, ...]: first the first part of every frame, and so on.

  Cut into `parts` along the frames, each piece then holds a part of every frame: work is shared
  equally whatever the mask over frames.
  """
  b, f, s, *rest = x.shape
  x = x.reshape(b, f, parts, s // parts, *rest).swapaxes(1, 2)
  return x.reshape(b, parts * f, s // parts, *rest)


def collect(x, parts: int):
  """The inverse of `deal`."""
  b, f, s, *rest = x.shape
  x = x.reshape(b, parts, f // parts, s, *rest).swapaxes(1, 2)
  return x.reshape(b, f // parts, parts * s, *rest)


def repeat_frames(info: TokenInfo, parts: int) -> TokenInfo:
  """Attributes of frames, [F] or [B, F], as those of the parts of them that `deal` makes."""
  repeat = lambda a: _xp(a).concatenate([a] * parts, axis=-1)
  return info if parts == 1 else TokenInfo(*map(repeat, info))


def deal_table(table, frames: int, parts: int):
  """Tables of `rope_table`, [F S, 1, D/2] or [B, F S, 1, D/2], in the order of `deal`."""

  def dealt(a):
    shape = (*a.shape[:-3], frames, parts, -1, *a.shape[-2:])
    return a.reshape(shape).swapaxes(-5, -4).reshape(a.shape)

  return tuple(map(dealt, table))


def _xp(a):
  return np if isinstance(a, np.ndarray) else jnp
