"""A causal network generates a video chunk after chunk: one scan, for sampling and training."""

from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np

from vidstep import paths
from vidstep.losses import parts
from vidstep.losses.base import Velocity
from vidstep.masks import chunk_index


def rollout(velocity, denoise, noise, cond, *, chunk):
  """Generates chunk after chunk, each knowing the clean chunks before it.

      for chunk i:  field(x, t) = velocity(x, t, cond with clean = chunks 0 .. i-1)
                    video[i] = denoise(field, noise)[i]

  One `lax.scan` over a clean buffer of fixed size. Each call is the packed, teacher-forced forward,
  of which the frames of one chunk are kept: chunk i reads no clean chunk from i on, so that those
  may hold anything. Later chunks, their actions and their noise cannot change it, bit for bit.

  Args:
    velocity: `velocity(x, t, cond) -> v`, causal and teacher forced by `cond.clean`, such as
      `velocity_fn(model, chunk=chunk)` with its parameters bound.
    denoise: `denoise(field, x) -> x0` for all frames at once, with `field(x, t) -> v` (and s= for
      flow maps); such as `samplers.sample` at given times. It draws its noise for all frames.
    noise: [B, F, H, W, C], what `denoise` starts from.
    cond: `Cond` of the whole video; its context precedes the first chunk.
    chunk: frames in a chunk, k or (first, k); that of the velocity.

  Returns:
    [B, F, H, W, C] clean video, in the dtype of noise.
  """
  index = chunk_index(noise.shape[1], chunk)

  def step(clean, i):
    field = lambda x, t, **s: velocity(x, t, cond.replace(clean=clean), **s)
    return _put(clean, denoise(field, noise), index == i), None

  return jax.lax.scan(step, jnp.zeros_like(noise), _count(index))[0]


def self_rollout(velocity: Velocity, *, chunk) -> Callable:
  """Few-step generation as at inference, with gradients through the last step of every chunk.

  Within a chunk, at its times t_1 = 1 > t_2 > .. and with fresh noise for each step,

      x = (1 - t_s) f + t_s eps_s,   f = x - t_s v(x, t_s)     s = 1 .. min(depth, its steps)

  and f is what later chunks read. All of this is without gradient, and keeps the last x of each
  chunk. The last steps of all chunks are then repeated *together*, as one teacher-forced forward
  over the student's own video: its value is the rollout's, to rounding, and its gradient that of
  each chunk's last step with the frames before it held fixed (Self-Forcing, section 3.3). Memory is
  that of one forward however many chunks and steps there were. How the network *reads* those frames
  is differentiated, as in teacher forcing; public code stops there, too, since it caches keys.

  Args:
    velocity: causal student, `velocity(params, x [B, F, H, W, C], t [B, F], cond) -> v`, teacher
      forced by `cond.clean`.
    chunk: frames in a chunk, k or (first, k); that of the velocity.

  Returns:
    `generate(params, batch, key, *, times, first_times, depth) -> x0`, see
    `vidstep.losses.self_forcing`. Of `batch.x0` only the shape is used, and `batch.cond.clean` not
    at all.
  """

  def generate(params, batch, key, *, times, first_times, depth):
    index = chunk_index(batch.x0.shape[1], chunk)
    own = [first_times or times] + [times] * int(index[-1])  # of each chunk
    grid = np.zeros((len(own), max(map(len, own))), np.float32)
    for row, numbers in zip(grid, own, strict=True):
      row[: len(numbers)] = numbers
    grid, steps = jnp.asarray(grid), jnp.minimum(jnp.int32([*map(len, own)]), depth)
    frozen = jax.lax.stop_gradient(params)

    def jump(params, x, t, clean):
      t = jnp.broadcast_to(t, x.shape[:2])
      cond = batch.cond.replace(clean=clean)
      return paths.x0_from_v(x, parts.wide(velocity(params, x, t, cond)), t)

    def one(carry, i):
      clean, noisy = carry

      def step(s, state):
        _, f = state
        eps = parts.noise_like(jax.random.fold_in(key, s), f)
        x = paths.interpolate(f, eps, grid[i, s])
        return x, jump(frozen, x, grid[i, s], clean)

      x, f = jax.lax.fori_loop(0, steps[i], step, (empty, empty))
      return (_put(clean, f, index == i), _put(noisy, x, index == i)), None

    empty = jnp.zeros_like(parts.wide(batch.x0))
    (clean, noisy), _ = jax.lax.scan(one, (empty, empty), _count(index))
    last = jnp.take_along_axis(grid, steps[:, None] - 1, axis=1)[index, 0]
    return jump(params, noisy, last[None], clean)

  return generate


def _count(index):
  """Numbers of the chunks, to scan over."""
  return jnp.arange(index[-1] + 1, dtype=jnp.int32)


def _put(video, frames, where):
  """The video with those of its frames replaced that `where` [F] names."""
  return jnp.where(where.reshape(1, -1, *(1,) * (video.ndim - 2)), frames, video)
