"""One clip more of a video that goes on: what streaming long tuning trains on."""

from collections.abc import Callable
from typing import Any

import flax.struct
import jax
import jax.numpy as jnp

from vidstep.causal.rollout import begin, rollout
from vidstep.losses import parts
from vidstep.losses.base import Batch
from vidstep.models.cond import Cond


@flax.struct.dataclass
class Stream:
  """Videos in the middle of being generated.

  Attributes:
    cache: the network's cache.
    frames: [B, n+o, H, W, C] their last frames.
    cond: actions [B, n+o, A] and image of those, text and image tokens of the whole video.
    count: int32, frames generated so far, of all videos alike; negative: not begun.
  """

  cache: Any
  frames: jax.Array
  cond: Cond
  count: jax.Array


def extension(
  network, *, chunk, solver="consistency", context="clean", gradient="last_step"
) -> tuple[Callable, Callable]:
  """Generation that goes on from call to call: what `vidstep.losses.long_tuning` takes.

      x0 = rollout of F - o new frames behind stream.cache, under the batch's actions
      clip = [last o frames | x0],  given the n frames before them

  A video begins from data: the n context frames of the batch and the first o of its frames, read
  clean. It then leaves the data behind: batches only say what is done next. Nothing of what a call
  passes on has a gradient, so memory does not grow with the video.

  Args:
    network: a `CausalNetwork` whose cache holds the frames that it attends to, and F more.
    chunk: frames in a chunk; must divide o and F - o.
    solver, context, gradient: as in `rollout`.

  Returns:
    `blank(params, batch, *, overlap, longest) -> Stream`, not begun, all zeros, and
    `extend(params, stream, batch, key, *, times, depth, overlap, longest) -> (clip, stream)`: clip
    is a `Batch` of F frames with the condition of a network that sees all of it; `gradient=None`
    spares who wants no gradient its cost. All videos begin anew where they would become longer than
    `longest` frames.
  """

  def fresh(params, batch, overlap, longest):
    n = 0 if batch.cond.context is None else batch.cond.context.shape[1]
    first = lambda a: None if a is None else a[:, : n + overlap]
    b, _, *rest = batch.x0.shape
    like = jnp.broadcast_to(parts.wide(batch.x0[:, :1]), (b, overlap + longest, *rest))
    cache = begin(network, params, like, batch.cond)
    told = _given(batch.cond, first)
    for start in range(0, overlap, chunk):
      cut = lambda a, at=n + start: None if a is None else a[:, at : at + chunk]
      own = Cond(actions=cut(told.actions), image=cut(told.image))
      x = parts.wide(batch.x0[:, start : start + chunk])
      cache = network.append(params, x, own, cache)
    past = [parts.wide(batch.cond.context)] if n else []
    frames = jnp.concatenate([*past, parts.wide(batch.x0[:, :overlap])], axis=1)
    return Stream(cache, frames, told, jnp.int32(0))

  def blank(params, batch, *, overlap, longest):
    shapes = jax.eval_shape(lambda p, b: fresh(p, b, overlap, longest), params, batch)
    zeros = jax.tree.map(lambda a: jnp.zeros(a.shape, a.dtype), shapes)
    return zeros.replace(count=jnp.int32(-1))

  reach = gradient

  def extend(params, stream, batch, key, *, times, depth, overlap, longest, gradient=reach):
    frames = batch.x0.shape[1]
    n, new = stream.frames.shape[1] - overlap, frames - overlap
    if overlap % chunk or new % chunk or not 0 < new <= longest:
      raise ValueError(
        f"overlap={overlap} and the {new} new frames of a clip must be whole chunks of {chunk}, "
        f"at least one new one, and longest={longest} hold a clip."
      )
    if len(batch.x0) != len(stream.frames):
      raise ValueError(
        f"{len(stream.frames)} videos go on, but the batch has {len(batch.x0)}: streams allow no "
        "microbatches (train.accumulate=1)."
      )
    held = jax.lax.stop_gradient(params)
    anew = (stream.count < 0) | (stream.count + new > longest)
    stream = jax.lax.cond(anew, lambda: fresh(held, batch, overlap, longest), lambda: stream)
    told = _given(batch.cond, lambda a: None if a is None else a[:, n + overlap :])
    own = stream.cond  # what a video was begun with holds for all of it
    told = told.replace(text=own.text, text_mask=own.text_mask, image_tokens=own.image_tokens)
    noise_key, key = jax.random.split(key)
    how = {"times": times, "depth": depth, "chunk": chunk, "solver": solver, "context": context}
    noise = parts.noise_like(noise_key, batch.x0[:, overlap:])
    x0, cache = rollout(
      network, params, noise, told, key, gradient=gradient, cache=stream.cache, **how
    )

    join = lambda a, b: None if a is None else jnp.concatenate([a, b], axis=1)
    whole = join(stream.frames, x0)
    seen = told.replace(
      actions=join(stream.cond.actions, told.actions), image=join(stream.cond.image, told.image)
    )
    clip = Batch(whole[:, n:], seen.replace(context=whole[:, :n] if n else None))
    last = lambda a: None if a is None else a[:, new:]
    after = Stream(cache, last(whole), _given(seen, last), stream.count + new)
    return clip, jax.lax.stop_gradient(after)

  return blank, extend


def _given(cond, cut):
  """The condition with what is given frame by frame cut, and without frames themselves."""
  return cond.replace(actions=cut(cond.actions), image=cut(cond.image), context=None, clean=None)
