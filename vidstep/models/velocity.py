"""A network as a function: velocity(params, x, t, cond), clean frames packed in front."""

from collections.abc import Callable

import flax.linen as nn
import numpy as np

from vidstep.masks import CausalChunks, Rule, TeacherForcing, chunk_index
from vidstep.models.cond import Cond
from vidstep.models.layout import pack, pack_time, plain, teacher_forcing, unpack
from vidstep.models.positions import Positions

ABSOLUTE = Positions()


def velocity_fn(
  model: nn.Module,
  *,
  chunk: int | tuple[int, int] | None = None,
  mask: Rule | None = None,
  shards: int = 1,
  positions: Positions = ABSOLUTE,
) -> Callable:
  """Turns a network into the currency of this library: a velocity of x, v = eps - x0.

  With `cond.context` [B, n, H, W, C] the context is packed in front of x as clean frames at time 0
  and its outputs are cut off again; `cond.actions` and `cond.image` then cover n + F frames.

  With `chunk` the network is causal; the context is one more chunk, in front of the others.

  - Given `cond.clean` [B, F, H, W, C] it is teacher forced: each chunk is denoised knowing the
    context and the *clean* chunks before it (mask `TeacherForcing`, layout `teacher_forcing`).
    Derivatives in x and t see clean frames as constants at time 0.
  - Otherwise each chunk knows the *noisy* chunks before it, at their own times (mask
    `CausalChunks`): diffusion forcing.

  For one chunk behind clean frames both are the same function, and so is what a cache computes.
  A network without `chunk` never sees `cond.clean`: it would read the answer.

  Args:
    model: a network with the contract of `VideoDiT`.
    chunk: frames that are denoised together, k or (first, k) if the first chunk has another
      length; None for a network that sees the whole clip.
    mask: rule over frames on top of causality, such as a `Window`; None is no other.
    shards: devices that share a teacher-forced sequence (see `layout.teacher_forcing`): each holds
      clean and noisy copies of its own frames. It changes the order of tokens, not what comes out;
      the network is to have a sharded `attention` (`vidstep.parallel.attention`). Where frames do
      not divide, the network gives every device a part of each instead.
    positions: which RoPE positions frames have; those of the cache that the network will run with
      (`CachePolicy.rope`), so that it is trained on what it will see.

  Returns:
    velocity(params, x, t, cond=Cond(), *, s=None) -> v, in the shape of x.

  Raises:
    ValueError: when called, if a chunk does not begin where a patch of several frames does.
  """

  run = apply_fn(model, chunk=chunk, mask=mask, shards=shards, positions=positions)

  def velocity(params, x, t, cond: Cond | None = None, *, s=None):
    out, layout = run(params, x, t, cond, s=s)
    return unpack(out.v, layout)

  return velocity


def apply_fn(model: nn.Module, *, chunk=None, mask=None, shards=1, positions=ABSOLUTE) -> Callable:
  """The network with its clean frames packed: run(params, x, t, cond, *, s=None) -> Out, layout.

  Arguments are those of `velocity_fn`.
  """
  causal = lambda rule: rule if mask is None else rule & mask

  def run(params, x, t, cond: Cond | None = None, *, s=None):
    cond = Cond() if cond is None else cond
    clean, cond = cond.clean, cond.replace(clean=None)
    chunks, rule = None, mask
    if chunk is not None:
      chunks = _chunks(model, cond.context, x.shape[1], chunk)
      rule = causal(CausalChunks() if clean is None else TeacherForcing())
    if chunk is not None and clean is not None:
      own = shards if _frames_divide(chunks, x.shape[1], shards, model.patch[0]) else 1
      x, t, cond, layout = teacher_forcing(
        x, t, cond, clean=clean, chunks=chunks, mask=rule, shards=own
      )
    elif cond.context is not None:
      x, t, cond, layout = pack(x, t, cond, clean=cond.context, chunks=chunks, mask=rule)
    else:
      layout = plain(x.shape[1], chunks=chunks, mask=rule)
    layout = layout.replace(positions=positions)
    s = None if s is None else pack_time(s, layout)
    return model.apply({"params": params}, x, t, s=s, cond=cond, layout=layout), layout

  return run


def _frames_divide(chunks, frames, shards, patch):
  """Whether every shard can have clean and noisy copies of its own frames, in whole patches."""
  too_many, unread = (len(chunks) - frames) % shards, (chunks == chunks[-1]).sum()
  cut = any(n // shards % patch for n in (frames, len(chunks)))
  return frames % shards == 0 and too_many <= unread and not cut


def _chunks(model, context, frames, chunk):
  """Chunk of every frame: 0 for the context, if there is any, then those of the frames of x."""
  chunks = chunk_index(frames, chunk)
  if context is not None:
    chunks = np.concatenate([np.zeros(context.shape[1], np.int32), 1 + chunks])
  starts = np.flatnonzero(np.diff(chunks)) + 1
  if (starts % model.patch[0]).any():
    raise ValueError(
      f"chunks that begin at frames {starts.tolist()} cut patches of {model.patch[0]} frames: "
      "choose lengths of context and chunks that the patch divides."
    )
  return chunks
