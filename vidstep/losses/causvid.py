"""CausVid: a causal student denoises noised data in one jump, matched by a whole-clip teacher."""

from collections.abc import Callable, Sequence
from typing import Any

import jax

from vidstep import paths
from vidstep.losses import parts
from vidstep.losses.base import Objective, Velocity
from vidstep.losses.dmd2 import TIME, check_times, distribution_matching


def causvid(
  velocity: Velocity,
  teacher: Velocity,
  fake: Velocity,
  *,
  times: Sequence[float] = (1.0, 15 / 16, 5 / 6, 5 / 8),
  chunk: int | tuple[int, int] = 1,
  time=TIME,
  ratio: int = 5,
  guidance: float = 1.0,
  unconditional: Callable[[Any], Any] | None = None,
  scale: float = 1.0,
) -> Objective:
  """Asymmetric distillation (Yin et al. 2025, section 4.2): causal student, whole-clip teacher.

      t ~ U(times) for each chunk,  x_t = (1 - t) x0 + t eps,  g = x_t - t v_theta(x_t, t)
      student, fake: `distribution_matching` of g

  The student sees the *noisy* chunks before the one that it denoises (diffusion forcing). It draws
  the teacher's distribution exactly where all times are 1; at lower times it is given part of the
  answer, and the mixture over all times is what is matched.

  The method's own gap: it is trained behind noised data and samples behind its own clean output,
  which it never saw. `self_forcing` closes it. Public text often reads as if a whole-clip student
  were distilled first: that is a separate baseline.

  Args:
    velocity: causal student, `velocity(params, x [B, F, H, W, C], t [B, F], cond) -> v`.
    teacher: frozen, sees the whole clip; same signature with t [B].
    fake: learns the score of g; start it from the teacher's weights.
    times: the student's times, from 1 downwards.
    chunk: frames that share a time, k or (first, k): the student's chunks.
    time, ratio, guidance, unconditional, scale: see `distribution_matching`.

  Returns:
    Objective with the roles "student" and "fake" and the frozen "teacher"; for its metrics and
    further errors see `distribution_matching`.

  Raises:
    ValueError: if times do not start at 1 and fall strictly, staying positive.
  """
  grid = parts.OneOf(check_times(times))

  def generate(params, batch, key):
    time_key, noise_key = jax.random.split(key)
    x0 = parts.wide(batch.x0)
    t = parts.draw_times(grid, time_key, x0, chunk)
    x = paths.interpolate(x0, parts.noise_like(noise_key, x0), t)
    return paths.x0_from_v(x, parts.wide(velocity(params, x, t, batch.cond)), t)

  return distribution_matching(
    generate,
    teacher,
    fake,
    time=time,
    ratio=ratio,
    guidance=guidance,
    unconditional=unconditional,
    scale=scale,
  )
