"""Discrete consistency distillation: neighbours on the teacher's path share one endpoint."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from vidstep import paths
from vidstep.losses import parts
from vidstep.losses.base import Objective, Velocity, network


def dcm(
  velocity: Velocity,
  teacher: Velocity,
  *,
  grid: int = 48,
  skip: int = 1,
  shift: float = 3.0,
  chunk: int | None = None,
  guidance: float = 1.0,
  unconditional: Callable[[Any], Any] | None = None,
) -> Objective:
  """Discrete consistency distillation (Song et al. 2023; the dCM of Causal-rCM, section 2.4 there).

      t_i = shift_time(i / grid),   x_{t'} = x_t - (t - t') v_teacher(x_t, t),   t' = t_{i - skip}
      E mean |f_theta(x_t, t) - sg f_theta(x_{t'}, t')|^2,   f(x, t) = x - t v(x, t)

  with i uniform on skip .. grid and sg = stop_gradient: the target is the student itself, without
  a moving average. At t' = 0 the target is the teacher's endpoint, exactly. The optimum is the
  composition of the teacher's Euler steps, which is the flow's endpoint only as grid grows.

  Args:
    velocity: of the student, `velocity(params, x [B, F, H, W, C], t [B] or [B, F], cond) -> v`.
    teacher: of the frozen teacher.
    grid: number of intervals of the time grid.
    skip: intervals that one teacher step spans; divides nothing, 1 <= skip <= grid.
    shift: time shift of the grid.
    chunk: number of frames that share a time; None: all.
    guidance: weight of the teacher's guidance, `v_u + w (v_c - v_u)`; 1 is none.
    unconditional: cond -> cond without the condition, for guidance.

  Returns:
    Objective with role "student", frozen "teacher".

  Raises:
    ValueError: if skip is not in 1 .. grid, or guidance lacks `unconditional`.
  """
  if not 1 <= skip <= grid:
    raise ValueError(f"skip={skip} must be one of 1 .. grid={grid}.")
  teacher = parts.apply_guidance(teacher, guidance, unconditional)
  endpoint = lambda params, x, t, cond: paths.x0_from_v(
    x, parts.wide(velocity(params, x, t, cond)), t
  )

  def loss(trainable, nets, aux, batch, key, step):
    del step
    time_key, noise_key = jax.random.split(key)
    x0, cond = parts.wide(batch.x0), batch.cond
    u = parts.draw_times(paths.Uniform(), time_key, x0, chunk)
    index = skip + jnp.floor(u * (grid - skip + 1)).astype(jnp.int32)
    t, earlier = (
      paths.shift_time(i.astype(jnp.float32) / grid, shift) for i in (index, index - skip)
    )
    x_t = paths.interpolate(x0, parts.noise_like(noise_key, x0), t)
    v = parts.wide(teacher(network(nets, "teacher"), x_t, t, cond))
    target = endpoint(trainable, x_t - paths.expand(t - earlier, x_t) * v, earlier, cond)
    error = (endpoint(trainable, x_t, t, cond) - jax.lax.stop_gradient(target)) ** 2
    error = parts.mean_like(error, t)
    value = jnp.mean(error)
    return value, ({"loss": value, **parts.by_time("loss", error, t, paths.Uniform(shift))}, aux)

  return Objective(roles=("student",), loss={"student": loss}, frozen=("teacher",))
