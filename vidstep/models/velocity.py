"""A network as a function: velocity(params, x, t, cond), context frames packed in front."""

from collections.abc import Callable

import flax.linen as nn

from vidstep.masks import Rule
from vidstep.models.cond import Cond
from vidstep.models.layout import pack, pack_time, plain, unpack


def velocity_fn(model: nn.Module, *, chunks=None, mask: Rule | None = None) -> Callable:
  """Turns a network into the currency of this library: a velocity of x, v = eps - x0.

  With `cond.context` [B, n, H, W, C] the context is packed in front of x as clean frames at time 0
  and its outputs are cut off again; `cond.actions` and `cond.image` then cover n + F frames.

  Args:
    model: a network with the contract of `VideoDiT`.
    chunks: chunk of every frame (`vidstep.masks.chunk_index`); default: each frame its own.
    mask: rule over frames; None is full attention, context and noisy frames alike.

  Returns:
    velocity(params, x, t, cond=Cond(), *, s=None) -> v, in the shape of x.
  """

  def velocity(params, x, t, cond: Cond | None = None, *, s=None):
    cond = Cond() if cond is None else cond
    if cond.context is None:
      layout = plain(x.shape[1], chunks=chunks, mask=mask)
      return model.apply({"params": params}, x, t, s=s, cond=cond, layout=layout).v
    x, t, cond, layout = pack(x, t, cond, clean=cond.context, chunks=chunks, mask=mask)
    s = None if s is None else pack_time(s, layout)
    return unpack(model.apply({"params": params}, x, t, s=s, cond=cond, layout=layout).v, layout)

  return velocity
