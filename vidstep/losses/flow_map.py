"""Flow-map distillation: one network that takes a teacher's ODE from any t to any s in one step."""

from collections.abc import Callable
from typing import Any

import jax

from vidstep import paths
from vidstep.losses import parts, tangents
from vidstep.losses.base import Objective, Velocity, network
from vidstep.losses.mean_flow import Pairs, check_regression, eulerian, regression

TIME = paths.Uniform(5.0)


def flow_map(
  velocity: Velocity,
  teacher: Velocity,
  *,
  identity: str = "eulerian",
  equal: float = 0.5,
  zero: float = 0.25,
  power: float = 1.0,
  c: float = 1e-3,
  tangent: str = "jvp",
  delta: float = 1e-3,
  time=TIME,
  guidance: float = 1.0,
  unconditional: Callable[[Any], Any] | None = None,
  chunk: int | None = None,
  scale: float = 1.0,
) -> Objective:
  """Distils X(x, t, s) = x - (t - s) u(x, t, s), u = v_theta, for any number of steps.

      eulerian     u = v_T(x, t) - (t - s) du/dt,  d/dt along (v_T, 1): the start of the step moves
      lagrangian   u = v_T(X(x, t, s), s) + (t - s) du/ds:              its end moves
      L = E scale w mean |u - sg[right-hand side]|^2,      w = sg (mean |..|^2 + c)^-power

  eulerian is MeanFlow with a teacher, and `scm` (power=2) at s = 0; (t, s) are drawn as AnyFlow
  does (arXiv 2605.13724): s = t in half of the samples, s = 0 in a quarter. lagrangian (Boffi et
  al. 2024; Sabour et al. 2025) asks the teacher where the student's own step ends, takes no
  derivative in x, and its teacher call has to wait for the student's. Both have one optimum, the
  flow map of the guided teacher, where the residual vanishes for each sample: the adaptive weight
  costs nothing here (it does in `mean_flow`, which has no teacher).

  Sample with `samplers.sample(u, noise, times, solver="flow_map")`, u(x, t, s=s).

  Traps of public code that this avoids: AnyFlow's first stage divides the difference by the
  guidance scale and guides u over the whole interval with an unconditional u, which is a guided
  flow at s = t only; here guidance acts on the teacher's velocity. A two-time network that is asked
  without s answers for s = t: `solver="consistency"` needs s = 0 spelled out.

  Args:
    velocity: the student, `velocity(params, x [B, F, H, W, C], t, cond, s=s) -> u`, t and s [B] or
      [B, F]; `VideoDiT(second_time=True)` is one (in a config: `model.second_time=True`).
    teacher: the teacher, `velocity(params, x, t, cond) -> v`.
    identity: "eulerian" or "lagrangian".
    equal: share of samples with s = t, where u is regressed on the teacher.
    zero: share of samples with s = 0.
    power: of the adaptive weight; 0: none.
    c: of the adaptive weight, in units of a mean square.
    tangent: "jvp", "semi" or "difference", see `tangents.derivative`.
    delta: step of the differences, a share of t - s.
    time: sampler of which t and s are the larger and the smaller of two draws.
    guidance: the teacher's, `v_u + w (v_c - v_u)`; 1 is none. It ends up in the student.
    unconditional: cond -> cond for the guidance (`vidstep.models.null_cond`).
    chunk: number of frames that share t and s; None: all.
    scale: factor on the loss.

  Returns:
    Objective with the role "student", the frozen "teacher" and the metrics of `mean_flow`.

  Raises:
    ValueError: on an unknown identity or tangent, shares that are none, or guidance without
      `unconditional`.
  """
  parts.check_choice("identity", identity, ("eulerian", "lagrangian"))
  teacher = parts.apply_guidance(teacher, guidance, unconditional)
  make = {"eulerian": eulerian, "lagrangian": lagrangian}[identity]

  def field(own, nets, x, t, cond, x0, eps):
    del own, x0, eps
    v = parts.wide(teacher(network(nets, "teacher"), x, t, cond))
    return v, v

  loss = make(
    velocity,
    field,
    pairs=Pairs(time, equal, zero),
    power=power,
    c=c,
    tangent=tangent,
    delta=delta,
    chunk=chunk,
    scale=scale,
  )
  return Objective(roles=("student",), loss={"student": loss}, frozen=("teacher",))


def lagrangian(velocity, field, *, pairs, power, c, tangent, delta, chunk, scale):
  """`E scale w mean |u - sg[v(X, s) + (t - s) du/ds]|^2`; arguments as those of `eulerian`."""
  check_regression(power, c, tangent, delta)

  def loss(trainable, nets, aux, batch, key, step):
    del step
    time_key, noise_key = jax.random.split(key)
    x0, cond = parts.wide(batch.x0), batch.cond
    t, s = pairs.sample(time_key, x0, chunk)
    eps = parts.noise_like(noise_key, x0)
    x = paths.interpolate(x0, eps, t)
    call = lambda params, x, t, s: velocity(params, x, t, cond, s=s)
    # Along s - t, so that differences look at times between s and t.
    u, change = tangents.derivative(
      call, trainable, x, (t, s), None, (None, s - t), tangent=tangent, delta=delta
    )
    end = jax.lax.stop_gradient(x - paths.expand(t - s, x) * u)
    v, _ = field(None, nets, end, s, cond, x0, eps)
    return regression(u, v - change, change, t, aux, time=pairs, power=power, c=c, scale=scale)

  return loss
