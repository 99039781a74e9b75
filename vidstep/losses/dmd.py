"""Distribution matching with regression (DMD): a one-step student tied to the teacher's pairs."""

from collections.abc import Callable
from typing import Any

import jax

from vidstep.losses.base import Objective, Velocity
from vidstep.losses.dmd2 import TIME, backward_simulation, distribution_matching
from vidstep.losses.gan import check_weights
from vidstep.losses.kd import kd


def dmd(
  velocity: Velocity,
  teacher: Velocity,
  fake: Velocity,
  *,
  regression: float = 0.25,
  source: str = "teacher",
  steps: int = 48,
  shift: float = 5.0,
  solver: str = "euler",
  time=TIME,
  ratio: int = 2,
  guidance: float = 1.0,
  unconditional: Callable[[Any], Any] | None = None,
  scale: float = 1.0,
) -> Objective:
  """DMD (Yin et al. 2024a, section 3): `distribution_matching` plus `kd` on pairs, in one step.

      student   scale (matching of x0 = G(eps)) + regression E mean |G(x_1) - x_0|^2
                x_1 -> x_0 the teacher's ODE,   G(eps) = eps - v_theta(eps, 1)
      fake      flow matching on the samples, as there

  Alone, matching may leave modes out: samples in one mode feel nothing of another. The pairs name
  a target for every noise, so no mode of the teacher is without its share; DMD2 dropped them, since
  they cost the teacher's whole ODE and hold the student to that ODE's own quality. Both terms share
  their optimum only if the solver is exact: otherwise the student ends between the teacher's
  distribution and that of its solver.

  Differences to the paper: it measures the distance of pairs by LPIPS, which knows images and not
  latents, and updates both networks at every step; here they take turns, so that the fake has seen
  the student as it is (`ratio` 2 is one update each).

  Args:
    velocity: the student, `velocity(params, x [B, F, H, W, C], t [B], cond) -> v`.
    teacher: frozen, same signature.
    fake: learns the score of the student's samples; start it from the teacher's weights.
    regression: weight of the pairs; 0 leaves them out, and with them the teacher's ODE.
    source: "teacher" solves the ODE inside the loss; "path" reads `batch.path` [B, 1, ...], the
      noise, and its end `batch.x0`.
    steps, shift, solver: of the teacher's ODE, see `kd`.
    time, ratio, unconditional: see `distribution_matching`.
    guidance: the teacher's, in both terms; 1 is none.
    scale: factor on the matching term.

  Returns:
    Objective with the roles "student" and "fake" and the frozen "teacher". Metrics as those of
    `distribution_matching`, and of the student also `regression`.

  Raises:
    ValueError: if regression is negative, or as `kd` and `distribution_matching`.
  """
  check_weights(regression=regression)
  guided = {"guidance": guidance, "unconditional": unconditional}
  matching = distribution_matching(
    backward_simulation(velocity, (1.0,)),
    teacher,
    fake,
    time=time,
    ratio=ratio,
    scale=scale,
    **guided,
  )
  pairs = kd(
    velocity,
    teacher,
    times=(1.0,),
    source=source,
    steps=steps,
    shift=shift,
    solver=solver,
    **guided,
  )

  def student_loss(trainable, nets, aux, batch, key, step):
    matching_key, pairs_key = jax.random.split(key)
    value, (metrics, aux) = matching.loss["student"](
      trainable, nets, aux, batch, matching_key, step
    )
    if regression:
      distance = pairs.loss["student"](trainable, nets, {}, batch, pairs_key, step)[0]
      value, metrics = value + regression * distance, {**metrics, "regression": distance}
    return value, ({**metrics, "loss": value}, aux)

  return Objective(
    matching.roles, {**matching.loss, "student": student_loss}, matching.due, frozen=matching.frozen
  )
