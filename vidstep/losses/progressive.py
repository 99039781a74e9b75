"""Progressive distillation: one step of the student does what two of the teacher do."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from vidstep import paths
from vidstep.losses import parts
from vidstep.losses.base import Objective, Velocity, network


def progressive(
  velocity: Velocity,
  teacher: Velocity,
  *,
  steps: int = 4,
  shift: float = 1.0,
  guidance: float = 1.0,
  unconditional: Callable[[Any], Any] | None = None,
  scale: float = 1.0,
  chunk: int | None = None,
) -> Objective:
  """Halves the number of steps once (Salimans and Ho 2022, algorithm 2), in rectified flow.

      i ~ U{1 .. N},  t = shift(i / N),  m = shift((i - 1/2) / N),  s = shift((i - 1) / N)
      x_m = x_t - (t - m) v_T(x_t, t),   x_s = x_m - (m - s) v_T(x_m, m)
      L = E scale mean |v_theta(x_t, t) - sg[(x_t - x_s) / (t - s)]|^2

  Its optimum is the two-step map itself, on data noised to the times of the grid: the loss is 0 for
  each sample. The teacher of N = `steps` is one that walks 2 N: a diffusion model, or the student
  of the stage before. So stages are runs: a pipeline trains steps = 32, 16, .. 1 with
  `nets.teacher` and the student's own `init` at the run before it, and the same `shift`.

  Traps. The student knows the N times of its grid only: sample it by Euler on `timesteps(N, shift)`
  and nowhere else. Guidance belongs to the first stage; a second helping would square it. Errors in
  eps (the habit of diffusion code) say nothing at t = 1, where x_t is eps: errors in v do, and are
  Salimans and Ho's weight 1 + SNR up to the change of path.

  Args:
    velocity: the student, `velocity(params, x [B, F, H, W, C], t [B] or [B, F], cond) -> v`.
    teacher: the teacher, same signature; asked at the times t and m.
    steps: N, the steps of the student.
    shift: time shift of the grid.
    guidance: the teacher's, `v_u + w (v_c - v_u)`; 1 is none.
    unconditional: cond -> cond for the guidance (`vidstep.models.null_cond`).
    scale: factor on the loss.
    chunk: number of frames that share a time; None: all.

  Returns:
    Objective with the role "student", the frozen "teacher" and the metrics `loss` and `loss_t0` ..
    `loss_t3` (by quarter of t).

  Raises:
    ValueError: if steps < 1, shift is not positive, or guidance comes without `unconditional`.
  """
  if steps < 1:
    raise ValueError(f"The student takes at least 1 step, got steps={steps}.")
  grid = parts.OneOf(tuple(paths.shift_time(i / steps, shift) for i in range(1, steps + 1)))
  teacher = parts.apply_guidance(teacher, guidance, unconditional)

  def loss(trainable, nets, aux, batch, key, step):
    del step
    time_key, noise_key = jax.random.split(key)
    x0, params = parts.wide(batch.x0), network(nets, "teacher")
    i = jnp.ceil(steps * (1 - parts.draw_times(parts.UNIFORM, time_key, x0, chunk)))
    t, m, s = (paths.shift_time((i - back) / steps, shift) for back in (0, 0.5, 1))
    x = paths.interpolate(x0, parts.noise_like(noise_key, x0), t)
    ask = lambda x, t, s: parts.wide(teacher(params, x, t, batch.cond))
    goal = jax.lax.stop_gradient(two_steps(ask, x, t, m, s))
    v = parts.wide(velocity(trainable, x, t, batch.cond))
    error = parts.mean_like((v - goal) ** 2, t)
    value = scale * jnp.mean(error)
    return value, ({"loss": value, **parts.by_time("loss", error, t, grid)}, aux)

  return Objective(roles=("student",), loss={"student": loss}, frozen=("teacher",))


def two_steps(velocity, x, t, m, s):
  """Average velocity over [s, t] of a walk in two Euler steps, from t to m and from m to s.

      x_m = x - (t - m) v(x, t, m),   x_s = x_m - (m - s) v(x_m, m, s),   (x - x_s) / (t - s)

  Args:
    velocity: `velocity(x, t, s) -> v`, for the step from t to s.
    x: [B, F, ...] at time t.
    t: [B] or [B, F].
    m: below t, same shape.
    s: below m, same shape.
  """
  upper, lower = paths.expand(t - m, x), paths.expand(m - s, x)
  first = velocity(x, t, m)
  second = velocity(x - upper * first, m, s)
  return (upper * first + lower * second) / (upper + lower)
