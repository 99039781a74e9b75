"""Discrete consistency: jumps to x0 agree at neighbours on a grid, here along a teacher's ODE."""

import math
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
  steps: int = 48,
  skip: int = 1,
  shift: float = 3.0,
  double: int | None = None,
  max_steps: int = 1280,
  solver: str = "euler",
  guidance: float = 1.0,
  unconditional: Callable[[Any], Any] | None = None,
  target: str = "self",
  distance: str = "mse",
  weighting: str = "none",
  scale: float = 1.0,
  chunk: int | None = None,
) -> Objective:
  """Consistency distillation on a grid (Song et al. 2023, alg. 2; TF-dCM of Causal-rCM).

      s ~ U(0, 1],  t0 = shift(s),  t1 = shift(max(s - skip / steps, 0))
      x_t1 = x_t0 - (t0 - t1) v_T(x_t0, t0)          one solver step of the guided teacher
      L = E scale w d(f(x_t0, t0), sg f'(x_t1, t1)),   f(x, t) = x - t v_theta(x, t)

  Its optimum is the *discretised* flow: f(x, t0) is where the teacher's solver ends when it walks
  the grid from t0, s falling by `skip / steps` at a time. The distance to the true consistency
  function shrinks with `steps / skip`; the loss is 0 at the optimum, for each sample.

  f(x, 0) = x holds for any network, so in the last interval the target is exactly the teacher's
  own jump to x0 and anchors all others. Public code draws s above `skip / steps` only, which leaves
  that interval, and with it the anchor, to the initialisation.

  Args:
    velocity: the student, `velocity(params, x [B, F, H, W, C], t [B] or [B, F], cond) -> v`.
    teacher: the teacher, same signature.
    steps: grid intervals in [0, 1].
    skip: grid intervals that one teacher step covers.
    shift: time shift of the grid.
    double: training steps after which the grid is refined by 2, again and again; None: never.
    max_steps: the finest grid.
    solver: "euler" (one teacher evaluation a step) or "heun" (two, second order).
    guidance: the teacher's, `v_u + w (v_c - v_u)`; 1 is none. It ends up in the student.
    unconditional: cond -> cond for the guidance (`vidstep.models.null_cond`).
    target: whose f' is the target: "self" (the student's own weights, as rCM and iCT do) or "ema"
      (its moving average, `nets["student.ema"]`).
    distance: "mse", or "pseudo_huber" = `sqrt(mse + c^2) - c` with c = 0.00054, which is iCT's in
      a form that does not depend on the size of the video.
    weighting: w, "none" (1) or "gap" (1 / (t0 - t1), as iCT and ECT).
    scale: factor on the loss.
    chunk: number of frames that share a time; None: all (as teacher forcing does too).

  Returns:
    Objective with the role "student", the frozen "teacher" and the metrics `loss` and `loss_t0` ..
    `loss_t3` (distance by quarter of t0).

  Raises:
    ValueError: on an unknown solver, target, distance or weighting, a skip outside 1 .. steps, a
      curriculum that goes nowhere, or guidance without `unconditional`.
  """
  parts.check_choice("solver", solver, ("euler", "heun"))
  teacher = parts.apply_guidance(teacher, guidance, unconditional)

  def teacher_step(params, x, t0, t1, cond):
    dt = paths.expand(t0 - t1, x)
    v = parts.wide(teacher(params, x, t0, cond))
    if solver == "heun":
      v = (v + parts.wide(teacher(params, x - dt * v, t1, cond))) / 2
    return x - dt * v

  def below(nets, x0, eps, x_t0, t0, t1, cond):
    del x0, eps
    return teacher_step(network(nets, "teacher"), x_t0, t0, t1, cond)

  return consistency(
    velocity,
    below,
    role="student",
    frozen=("teacher",),
    time=paths.Uniform(shift),
    intervals=curriculum(steps, skip, double, max_steps),
    skip=skip,
    target=target,
    distance=distance,
    weighting=weighting,
    scale=scale,
    chunk=chunk,
  )


def consistency(
  velocity, below, *, role, frozen, time, intervals, skip, target, distance, weighting, scale, chunk
) -> Objective:
  """What consistency training and distillation share: all but the way from x_t0 to x_t1.

      s ~ U(0, 1],  t0 = icdf(s),  t1 = icdf(max(s - skip / N(step), 0))
      L = E scale w d(f(x_t0, t0), sg f'(x_t1, t1)),   f(x, t) = x - t v_theta(x, t)

  The grid is uniform in the quantiles of `time`, so it is as fine as times are dense.

  Args:
    velocity: of the role.
    below: `(nets, x0, eps, x_t0, t0, t1, cond) -> x_t1`.
    role: name of the network that learns.
    frozen: names of the networks that `below` reads.
    time: sampler of t0 with `icdf`.
    intervals: step -> N (`curriculum`).
    skip, target, distance, weighting, scale, chunk: as in `dcm`.

  Returns:
    Objective with the metrics `loss` and `loss_t0` .. `loss_t3` (unweighted distance).
  """
  parts.check_choice("target", target, ("self", "ema"))
  parts.check_choice("distance", distance, tuple(DISTANCES))
  parts.check_choice("weighting", weighting, ("none", "gap"))

  def jump(params, x, t, cond):
    return paths.x0_from_v(x, parts.wide(velocity(params, x, t, cond)), t)

  def loss(trainable, nets, aux, batch, key, step):
    steps = intervals(step)
    time_key, noise_key = jax.random.split(key)
    x0 = parts.wide(batch.x0)
    eps = parts.noise_like(noise_key, x0)
    s = 1 - parts.draw_times(parts.UNIFORM, time_key, x0, chunk)
    t0, t1 = time.icdf(s), time.icdf(jnp.maximum(s - skip / steps, 0))
    x_t0 = paths.interpolate(x0, eps, t0)
    x_t1 = below(nets, x0, eps, x_t0, t0, t1, batch.cond)
    other = trainable if target == "self" else network(nets, f"{role}.ema")
    goal = jax.lax.stop_gradient(jump(other, x_t1, t1, batch.cond))
    error = jump(trainable, x_t0, t0, batch.cond) - goal
    error = DISTANCES[distance](parts.mean_like(error**2, t0))
    weight = 1 / (t0 - t1) if weighting == "gap" else 1
    value = scale * jnp.mean(weight * error)
    return value, ({"loss": value, **parts.by_time("loss", error, t0, time)}, aux)

  return Objective(roles=(role,), loss={role: loss}, frozen=frozen)


def curriculum(steps, skip=1, double=None, max_steps=1280):
  """The number of grid intervals at a training step (iCT, Song and Dhariwal 2024, section 3.4).

      N(k) = min(steps 2^floor(k / double), max_steps)

  A coarse grid carries the anchor at t = 0 to t = 1 in few hops, with bias; a fine one has little
  bias and learns slowly: so it starts coarse. ECT's mapping is the same halving of the gap.

  Args:
    steps: N at the start.
    skip: intervals that one hop covers, for the check only.
    double: training steps between refinements; None: N stays what it is.
    max_steps: the largest N.

  Returns:
    step -> N; takes Python ints and traced ones.

  Raises:
    ValueError: if skip is not in 1 .. steps, double is not positive or max_steps is below steps.
  """
  if not 1 <= skip <= steps:
    raise ValueError(f"skip must be between 1 and steps={steps}, got {skip}.")
  if double is None:
    return lambda step: steps
  if double < 1 or max_steps < steps:
    raise ValueError(
      "The grid is refined every `double` >= 1 steps up to max_steps >= steps; got "
      f"double={double}, steps={steps}, max_steps={max_steps}."
    )
  most = math.ceil(math.log2(max_steps / steps))
  return lambda step: jnp.minimum(steps * 2 ** jnp.minimum(step // double, most), max_steps)


def _pseudo_huber(mse, c=0.00054):
  # = sqrt(mse + c^2) - c, without the cancellation, and with a gradient at 0.
  return mse / (jnp.sqrt(mse + c**2) + c)


DISTANCES = {"mse": lambda mse: mse, "pseudo_huber": _pseudo_huber}
