"""A causal network generates a video chunk after chunk behind its cache: sampling and training."""

import functools
import itertools
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from vidstep import samplers
from vidstep.causal.denoise import SINGLE, denoise, fold, jump
from vidstep.causal.guided import Guided
from vidstep.losses import parts
from vidstep.masks import chunk_index
from vidstep.models.cond import Cond, null_cond
from vidstep.solvers import TWO_TIMES

CONTEXTS = ("clean", "last_step")


def rollout(
  network,
  params,
  noise,
  cond,
  key,
  *,
  chunk,
  times,
  first_times=(),
  solver="consistency",
  context="clean",
  guidance=1.0,
  unconditional=null_cond,
  depth=None,
  gradient=None,
  cache=None,
):
  """Generates chunk after chunk, each behind the cache of those before it.

      cache = append(context)
      for chunk i:  video[i] = solve(x, t -> network.read(x, t, cache)),  cache = append(video[i])

  One `lax.scan` over chunks of equal length; a first chunk or a remainder of another length stands
  outside it. Later chunks, their noise and their actions cannot change earlier ones.

  Args:
    network: a `vidstep.causal.network.CausalNetwork`.
    params: its parameters.
    noise: [B, F, H, W, C], standard normal: where each chunk starts, at the first of its times.
    cond: `Cond` of the whole video; its context precedes the first chunk, its `clean` is not read.
    key: of the noise that a solver adds; one, or [B] keys, one a sample.
    chunk: frames in a chunk, k or (first, k); that of the network.
    times: falling times of the steps of a chunk, without the final 0; or a sequence of such lists,
      one a chunk, the last of which holds for all further chunks (Causal-rCM's [4, 1] steps).
    first_times: those of the first chunk, if they differ.
    solver: a name in `samplers.SOLVERS`.
    context: what later chunks read: "clean", the finished frames at time 0 in a forward of their
      own, n + 1 forwards for n steps; "last_step", what the last step computed on its way (noisy
      context, Causal-rCM section 4.6): n.
    guidance: weight w of `v_u + w (v_c - v_u)`; 1 is none, others double the batch.
    unconditional: cond -> cond for the guidance.
    depth: make at most so many steps a chunk, the first of its times; an integer, may be traced.
      Keys of noisy context then belong to the last of *all* times of the chunk: the frames are
      noised again to it. None: all steps.
    gradient: how far gradients in params reach.
      None: nowhere.
      "last_step": through the last step of each chunk, the frames before it held fixed
      (Self-Forcing, section 3.3). The rollout is made without gradient, then the last step of each
      chunk is repeated, one chunk at a time, from the finished cache, in which a chunk sees nothing
      from itself on: activations of one chunk however long the video.
      k: through all steps, and through the cache up to k chunks: it is cut before chunk 0, k, 2k ..
      (truncated backpropagation). Keeps one cache a chunk.
      "all": through everything.
    cache: goes on behind this cache, instead of starting one; `cond` is then of the F frames alone.
      With "last_step" it must hold F frames more than the network attends to, so that none of those
      read is overwritten before the repetition.

  Returns:
    video [B, F, H, W, C], float32 or wider, and the cache after it.

  Raises:
    ValueError: for times that do not fall within (0, 1], an unknown solver or context, where a
      solver of several calls a step meets depth, noisy context or gradient="last_step", and where
      the latter meets a cache that is too short.
  """
  cond = (Cond() if cond is None else cond).replace(clean=None)
  index = chunk_index(noise.shape[1], chunk)
  lists = schedule(times, first_times, index[-1] + 1)
  _check(solver, context, gradient, depth)
  if guidance != 1:
    network = Guided(network, guidance, unconditional)
  noise = parts.wide(noise)
  through = gradient not in (None, "last_step")  # a scan that is itself differentiated
  live = params if through else jax.lax.stop_gradient(params)
  kept = noise.shape[1]
  if cache is None:
    cache = begin(network, live, noise, cond)
    kept += 0 if cond.context is None else cond.context.shape[1]
  if gradient == "last_step":
    _check_kept(cache, kept)
  base = cache

  def detached(cache):
    """The cache held fixed, but for the text, which all chunks read."""
    cache = jax.lax.stop_gradient(cache)
    return cache if cond.text is None else network.switch(params, cond, cache)

  def one(cache, inputs, times, steps):
    if through and gradient != "all":
      cut = inputs.number % gradient == 0
      cache = jax.tree.map(lambda a, b: jnp.where(cut, a, b), detached(cache), cache)
    walk = lambda params, cache: denoise(
      network,
      params,
      inputs.noise,
      inputs.cond,
      cache,
      fold(key, inputs.number),
      times=inputs.times if times is None else times,
      steps=inputs.steps if steps is None else steps,
      until=None if depth is None else inputs.until,
      solver=solver,
      context=context,
      differentiable=through,
    )
    last, cache = (jax.checkpoint(walk) if through else walk)(live, cache)
    return cache, last

  def again(_, pair):
    """The last step of a chunk, with gradient, behind the cache that holds all chunks."""
    inputs, last = pair
    past = at(cache, base.count + inputs.start, base.chunks + inputs.number)
    ends = {"s": jnp.zeros_like(last.t)} if solver in TWO_TIMES else {}
    step = lambda params, x, t: jump(network.read(params, x, t, inputs.cond, past, **ends), x, t)
    return None, jax.checkpoint(step)(params, last.x, last.t)

  frames = _frames_of(cond, noise.shape[1])
  runs, lasts = _runs(index, lists, solver, depth, noise, frames), []
  for inputs, times, steps in runs:
    cache, last = _scan(functools.partial(one, times=times, steps=steps), cache, inputs)
    lasts.append(last)
  videos = [last.x0 for last in lasts]
  if gradient == "last_step":
    cache, lasts = detached(cache), jax.lax.stop_gradient(lasts)
    videos = [_scan(again, None, (run[0], last))[1] for run, last in zip(runs, lasts, strict=True)]
  return jnp.concatenate([_join(video) for video in videos], axis=1), cache


def self_rollout(
  network, *, chunk, solver="consistency", context="clean", gradient="last_step"
) -> Callable:
  """Generation as at inference, with gradients: what `vidstep.losses.self_forcing` takes.

  Args:
    network, chunk, solver, context, gradient: see `rollout`.

  Returns:
    `generate(params, batch, key, *, times, first_times, depth) -> x0`; `gradient=None` spares who
    wants no gradient its cost. Of `batch.x0` only the shape is used, and `batch.cond.clean` not at
    all.
  """
  reach = gradient

  def generate(params, batch, key, *, times, first_times=(), depth=None, gradient=reach):
    noise_key, key = jax.random.split(key)
    return rollout(
      network,
      params,
      parts.noise_like(noise_key, batch.x0),
      batch.cond,
      key,
      chunk=chunk,
      times=times,
      first_times=first_times,
      solver=solver,
      context=context,
      depth=depth,
      gradient=gradient,
    )[0]

  return generate


def next_chunk(
  network,
  params,
  noise,
  cond,
  cache,
  key,
  *,
  times,
  steps=None,
  solver="consistency",
  context="clean",
):
  """One chunk behind a cache: denoises it and appends it. No gradient passes.

      x_1 = noise,   f = x_s - t_s read(x_s, t_s)                         s = 1 .. steps
      x_{s+1} = (1 - t_{s+1}) f + t_{s+1} eps_s        "consistency", fresh noise
      x_{s+1} = f + t_{s+1} / t_s (x_s - f)            "euler", "flow_map"

  Args:
    network, params: as in `rollout`.
    noise: [B, c, H, W, C], standard normal.
    cond: `Cond` of these frames only: actions [B, c, A], image.
    cache: what came before.
    key: one key, or [B] keys, one a sample.
    times: falling times without the final 0: a list, or an array [N] or [B, N], which may be
      traced for the solvers in `SINGLE`; entries from `steps` on are not looked at.
    steps: how many are made: an integer or [B] integers, traced or not, from 1 to N. None: N. Costs
      as many reads as the largest of them.
    solver, context: as in `rollout`.

  Returns:
    x0 [B, c, H, W, C], and the cache with it.

  Raises:
    ValueError: as `rollout`.
  """
  _check(solver, context, None, steps)
  noise, params = parts.wide(noise), jax.lax.stop_gradient(params)
  if solver in SINGLE:
    times = jnp.asarray(times, noise.dtype)
    steps = times.shape[-1] if steps is None else steps
  how = {"times": times, "steps": steps, "solver": solver, "context": context}
  last, cache = denoise(network, params, noise, cond, cache, key, **how)
  return last.x0, cache


def begin(network, params, noise, cond):
  """The cache before the first of the frames of `noise` [B, F, ...]: the context is appended."""
  b, frames, *rest = noise.shape
  n = 0 if cond.context is None else cond.context.shape[1]
  like = jax.ShapeDtypeStruct((b, n + frames, *rest), noise.dtype)
  cache = network.start(params, like, cond)
  if n == 0:
    return cache
  first = lambda a: None if a is None else a[:, :n]
  own = Cond(actions=first(cond.actions), image=first(cond.image))
  return network.append(params, cond.context.astype(noise.dtype), own, cache)


def at(cache, frame, chunk):
  """The cache as its reader sees it before this frame and chunk [B]: nothing later is seen."""
  return cache.replace(count=frame, chunks=chunk)


def schedule(times, first_times, chunks):
  """The times of each of the chunks, as tuples; arguments as in `rollout`.

  Raises:
    ValueError: for times that do not fall within (0, 1].
  """
  lists = list(times) if np.ndim(times[0]) else [times]
  if first_times:
    lists = [first_times, *(lists if len(lists) == 1 else lists[1:])]
  lists = [tuple(float(t) for t in lists[min(i, len(lists) - 1)]) for i in range(chunks)]
  for own in lists:
    if not own or any(a < b for a, b in itertools.pairwise((1.0, *own))) or own[-1] <= 0:
      raise ValueError(f"Times of a chunk must fall within (0, 1], 1 being noise, got {own}.")
  return lists


def forwards(lists, *, solver="consistency", context="clean", guidance=1.0, context_frames=0):
  """Network evaluations of a rollout: reads, cache writes, and those of the context; guidance x 2.

  Args:
    lists: times of each chunk, see `schedule`.
    solver, context, guidance: as in `rollout`.
    context_frames: frames that are given; their append counts.
  """
  reads = sum(samplers.nfe(solver, len(own)) for own in lists)
  writes = (len(lists) if context == "clean" else 0) + (context_frames > 0)
  return (reads + writes) * (1 if guidance == 1 else 2)


# ------------------------------------------------------------------------------------------------
# All chunks
# ------------------------------------------------------------------------------------------------


class _Inputs(NamedTuple):
  """What a chunk is given; stacked over the chunks of a run, or of one chunk alone."""

  number: jax.Array  # of the chunk
  start: jax.Array  # its first frame
  noise: jax.Array  # [B, c, ...]
  cond: Cond  # of its frames
  times: jax.Array  # its list, padded
  steps: jax.Array  # how many of them are made
  until: jax.Array  # the last of its list


def _runs(index, lists, solver, depth, noise, cond):
  """Chunks in runs that one scan can do: (`_Inputs`, times, steps), the last two if all have them.

  A run has chunks of one length, and of one list of times where the solver must know it.
  """
  sizes, most = np.bincount(index), max(map(len, lists))
  starts = np.cumsum(sizes) - sizes
  padded = np.asarray([(*own, *own[-1:] * (most - len(own))) for own in lists])
  single = solver in SINGLE
  runs = []
  for (size, _), group in itertools.groupby(
    range(len(lists)), lambda i: (sizes[i], None if single else lists[i])
  ):
    group = list(group)
    grid = jnp.asarray(padded[group], noise.dtype)
    steps = jnp.asarray([len(lists[i]) for i in group], jnp.int32)
    if depth is not None:
      steps = jnp.minimum(steps, jnp.asarray(depth, jnp.int32))
    a, b = starts[group[0]], starts[group[-1]] + size
    cut = lambda x, a=a, b=b, size=size: _split(x[:, a:b], size)
    inputs = _Inputs(
      jnp.asarray(group, jnp.int32),
      jnp.asarray(starts[group], jnp.int32),
      cut(noise),
      jax.tree.map(cut, cond),
      grid,
      steps,
      grid[:, -1],
    )
    own, alike = lists[group[0]], len({lists[i] for i in group}) == 1
    times = own if not single else jnp.asarray(own, noise.dtype) if alike else None
    runs.append((inputs, times, len(own) if alike and depth is None else None))
  return runs


def _scan(body, carry, inputs):
  """`lax.scan`; a run of one chunk is not a loop."""
  if jax.tree.leaves(inputs)[0].shape[0] > 1:
    return jax.lax.scan(body, carry, inputs)
  carry, out = body(carry, jax.tree.map(lambda a: a[0], inputs))
  return carry, jax.tree.map(lambda a: a[None], out)


def _split(x, size):
  """[B, n size, ...] -> [n, B, size, ...]."""
  return jnp.moveaxis(x.reshape(x.shape[0], -1, size, *x.shape[2:]), 1, 0)


def _join(x):
  """[n, B, size, ...] -> [B, n size, ...]."""
  x = jnp.moveaxis(x, 0, 1)
  return x.reshape(x.shape[0], -1, *x.shape[3:])


def _frames_of(cond, frames):
  """What is given frame by frame, of the last frames: those after the context."""
  last = lambda a: None if a is None else a[:, a.shape[1] - frames :]
  return Cond(actions=last(cond.actions), image=last(cond.image))


def _check_kept(cache, frames):
  policy = getattr(cache, "policy", None)
  if policy is not None and policy.window < frames:
    raise ValueError(
      f"The cache keeps {policy.window} frames, but gradients of the last steps read it again when "
      f"all {frames} are made: build it with CachePolicy(window={frames}) or more, and bound what "
      "is seen by a Window in the mask."
    )


def _check(solver, context, gradient, depth):
  if solver not in samplers.SOLVERS:
    raise ValueError(f"Unknown solver {solver!r}; there are {', '.join(sorted(samplers.SOLVERS))}.")
  parts.check_choice("context", context, CONTEXTS)
  chunks = isinstance(gradient, int) and not isinstance(gradient, bool) and gradient > 0
  if not (gradient in (None, "last_step", "all") or chunks):
    raise ValueError(
      f'gradient={gradient!r}: choose None, "last_step", "all", or a number of chunks.'
    )
  last = context == "last_step" or gradient == "last_step" or depth is not None
  if solver not in SINGLE and last:
    raise ValueError(
      f"Solver {solver!r} has no last step of one network call: noisy context, gradients of the "
      f"last step and a depth need one of {', '.join(SINGLE)}."
    )
