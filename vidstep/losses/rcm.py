"""Score-regularised consistency (rCM): a consistency loss plus distribution matching."""

from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp

from vidstep.losses.base import Objective, Velocity
from vidstep.losses.dmd2 import TIME as REVERSE_TIME
from vidstep.losses.dmd2 import dmd2
from vidstep.losses.scm import TIME, scm


def rcm(
  velocity: Velocity,
  teacher: Velocity,
  fake: Velocity,
  *,
  reverse: float = 1.0,
  path: str = "rf",
  norm: str = "rms",
  power: int = 1,
  c: float = 0.1,
  warmup: int = 1000,
  tangent: str = "jvp",
  delta: float = 1e-3,
  time=TIME,
  times: Sequence[float] = (1.0, 15 / 16, 5 / 6, 5 / 8),
  reverse_time=REVERSE_TIME,
  ratio: int = 5,
  guidance: float = 1.0,
  unconditional: Callable[[Any], Any] | None = None,
  scale: float = 1.0,
) -> Objective:
  """rCM (Zheng et al. 2025, arXiv 2510.08431): `L_sCM + lambda L_DMD`, by `scm` and `dmd2`.

  sCM covers the teacher's modes (a forward divergence, on data) but its error adds up towards t = 1
  and blurs; distribution matching sharpens (a reverse divergence, on samples) but drops modes. With
  an exact teacher they share their optimum, the consistency function.

  For the first `warmup` steps the student learns alone, from sCM, its derivative fading in; then it
  is updated at every ratio-th step and the fake score at all others.

  **lambda depends on how losses are reduced.** Here both are means over elements and tangents are
  divided by their root mean square, so `reverse` is lambda for a video of any size. The paper sums,
  100 times sCM with tangents of unit length to once DMD: its lambda = 0.01 weighs distribution
  matching by 0.01 sqrt(D) in these units, D elements a sample: 14 for a 480p clip of 2.1M latents,
  0.6 for a CIFAR image. `reverse=0` is `scm`, to the bit.

  Args:
    velocity: the student, `velocity(params, x [B, F, H, W, C], t [B], cond) -> v`.
    teacher: frozen, same signature.
    fake: learns the score of the student's samples; start it from the teacher's weights.
    reverse: lambda, the weight of distribution matching.
    path, norm, power, c, tangent, delta, time: see `scm`.
    warmup: steps of sCM alone, over which its derivative is faded in; 0: none.
    times: the student's times in distribution matching, see `dmd2`.
    reverse_time: `dmd2`'s `time`.
    ratio: after the warm-up the student is updated at every ratio-th step.
    guidance: the teacher's, in both; 1 is none.
    unconditional: cond -> cond for the guidance (`vidstep.models.null_cond`).
    scale: factor on the student's loss.

  Returns:
    Objective with the roles "student" and "fake" and the frozen "teacher"; metrics of the student:
    those of `scm` and `dmd2`, `loss_forward` and `loss_reverse` (before lambda).

  Raises:
    ValueError: as `scm` and `dmd2`, and if lambda is negative.
  """
  if reverse < 0:
    raise ValueError(f"reverse is the weight of distribution matching, >= 0, got {reverse}.")
  guide = {"guidance": guidance, "unconditional": unconditional, "scale": scale}
  options = {"path": path, "norm": norm, "power": power, "c": c, "warmup": warmup}
  options |= {"tangent": tangent, "delta": delta, "time": time}
  forward = scm(velocity, teacher, **options, **guide)
  match = dmd2(velocity, teacher, fake, times=times, time=reverse_time, ratio=ratio, **guide)
  return regularised(forward, match, reverse=reverse, warmup=warmup)


def regularised(forward: Objective, match: Objective, *, reverse: float, warmup: int) -> Objective:
  """`forward + reverse * match` for the student, after `warmup` steps of `forward` alone.

  Args:
    forward: objective of the role "student" alone, without aux, such as `scm` or `dcm`.
    match: objective of the roles "student" and "fake", such as `dmd2` or any
      `distribution_matching`; its schedule begins after the warm-up.
    reverse: weight of `match`.
    warmup: steps; in them the student is due alone.

  Returns:
    Objective with the roles and the aux of `match`.
  """

  def student(trainable, nets, aux, batch, key, step):
    value, (metrics, _) = forward.loss["student"](trainable, nets, {}, batch, key, step)

    def matched(trainable):
      own = jax.random.fold_in(key, 1)  # `forward` keeps the key that it has alone
      return match.loss["student"](trainable, nets, aux, batch, own, step)

    def nothing(trainable):
      zero = lambda a: jnp.zeros(a.shape, a.dtype)
      extra, (seen, _) = jax.tree.map(zero, jax.eval_shape(matched, trainable))
      return extra, (seen, aux)

    if not reverse:
      return value, (metrics, aux)
    extra, (seen, aux) = jax.lax.cond(step >= warmup, matched, nothing, trainable)
    total = value + reverse * extra
    metrics = seen | metrics | {"loss": total, "loss_forward": value, "loss_reverse": extra}
    return total, (metrics, aux)

  return Objective(
    roles=match.roles,
    loss=dict(match.loss) | {"student": student},
    due=lambda step: ("student",) if step < warmup else match.due(step - warmup),
    init_aux=match.init_aux,
    frozen=tuple(dict.fromkeys((*forward.frozen, *match.frozen))),
  )
