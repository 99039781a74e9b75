"""Score identity distillation: the student descends the Fisher divergence to its teacher."""

from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp

from vidstep import paths
from vidstep.losses import parts
from vidstep.losses.base import Objective, Velocity, network
from vidstep.losses.dmd2 import (
  TIME,
  Generate,
  backward_simulation,
  diffuse,
  fake_regression,
  student_last,
)


def sid(
  velocity: Velocity,
  teacher: Velocity,
  fake: Velocity,
  *,
  times: Sequence[float] = (1.0, 15 / 16, 5 / 6, 5 / 8),
  alpha: float = 1.0,
  normalize: bool = True,
  time=TIME,
  ratio: int = 5,
  guidance: float = 1.0,
  unconditional: Callable[[Any], Any] | None = None,
  scale: float = 1.0,
) -> Objective:
  """SiD of a few-step student (Zhou et al. 2024; several steps as in Self-Forcing's SiD).

  `identity_matching` of the samples of `backward_simulation`; times (1,) is the paper's one step.
  As in `dmd2`, what is matched with several times is the mixture of all depths.

  Args:
    velocity: the student, `velocity(params, x [B, F, H, W, C], t [B], cond) -> v`.
    teacher: frozen, same signature.
    fake: learns the score of the student's samples; start it from the teacher's weights.
    times: the student's times, from 1 downwards; n steps use the first n.
    alpha, normalize, time, ratio, guidance, unconditional, scale: see `identity_matching`.

  Returns:
    Objective with the roles "student" and "fake" and the frozen "teacher".

  Raises:
    ValueError: as `backward_simulation` and `identity_matching`.
  """
  return identity_matching(
    backward_simulation(velocity, times),
    teacher,
    fake,
    alpha=alpha,
    normalize=normalize,
    time=time,
    ratio=ratio,
    guidance=guidance,
    unconditional=unconditional,
    scale=scale,
  )


def identity_matching(
  generate: Generate,
  teacher: Velocity,
  fake: Velocity,
  *,
  alpha: float = 1.0,
  normalize: bool = True,
  time=TIME,
  ratio: int = 5,
  guidance: float = 1.0,
  unconditional: Callable[[Any], Any] | None = None,
  scale: float = 1.0,
) -> Objective:
  """Score identity distillation of any generator (Zhou et al. 2024, eq. 23 and algorithm 1).

      student   E scale mean (f_T - f_fake) ((f_T - x0) - alpha (f_T - f_fake)) / sg n
                n = max(mean |x0 - f_T|, 1e-5), a number for each sample; 1 without `normalize`
      fake      E mean |v_fake(x_t, t) - (eps - sg x0)|^2
      with      x0 = generate(theta),  x_t = (1 - t) x0 + t eps,  f(x, t) = x - t v(x, t)

  The gradient flows through everything but n and the networks' weights: into x0 where it stands,
  and through x_t *and both networks* into x0 again (so two backward passes more than `dmd2`).

  Why it is that: let f* = E[x0 | x_t] be the fake at its optimum. Then E (f_T - f*)(f_T - x0) =
  E |f_T - f*|^2, so at alpha = 1 the *value* is 0 for any student, and says nothing. And since
  2 (f_T - f)(f_T - x0) - |f_T - f|^2 is stationary in f at f*, nothing is lost by not following
  how f* depends on theta: with alpha = 1/2 (and no normaliser) the gradient is *exactly* that of
  the Fisher divergence E |f_T - f*|^2 / 2. A larger alpha subtracts a term that is of second order
  at the optimum and was found to train faster: 1 (Self-Forcing) to 1.2 (SiD on most data).

  Traps: with the gradient through x_t stopped (the habit from DMD, or a network evaluated without
  gradients) what remains is f_fake - f_T: DMD under another name. The normaliser is stopped, or the
  loss rewards samples far from the teacher's guess. Watch `gap`, not `loss`, whose sign is free.

  Args:
    generate: `generate(params, batch, key) -> x0`.
    teacher: frozen velocity; differentiated in x.
    fake: velocity that learns the generator's distribution; start it from the teacher's weights.
    alpha: see above.
    normalize: divide by n, as all implementations do.
    time, ratio, guidance, unconditional, scale: see `distribution_matching`.

  Returns:
    Objective with the roles "student" and "fake" and the frozen "teacher". Metrics of the student:
    `loss`, `gap` = mean |f_fake - f_T| / n, `gap_t0` .. `gap_t3`, `normalizer` = mean |x0 - f_T|.
    Of the fake: `loss`, `loss_t0` .. `loss_t3`.

  Raises:
    ValueError: if ratio < 2, or guidance comes without `unconditional`.
  """
  teacher = parts.apply_guidance(teacher, guidance, unconditional)

  def student_loss(trainable, nets, aux, batch, key, step):
    del step
    generate_key, diffuse_key = jax.random.split(key)
    x0 = parts.wide(generate(trainable, batch, generate_key))
    x_t, t, _ = diffuse(time, x0, diffuse_key)
    v_fake = parts.wide(fake(network(nets, "fake"), x_t, t, batch.cond))
    v_teacher = parts.wide(teacher(network(nets, "teacher"), x_t, t, batch.cond))
    x0_teacher = paths.x0_from_v(x_t, v_teacher, t)
    gap = x0_teacher - paths.x0_from_v(x_t, v_fake, t)
    size = parts.mean_like(jnp.abs(x0 - x0_teacher), t)
    n = jax.lax.stop_gradient(jnp.maximum(size, 1e-5)) if normalize else jnp.ones_like(size)
    error = parts.mean_like(gap * ((x0_teacher - x0) - alpha * gap), t) / n
    value = scale * jnp.mean(error)
    gap = parts.mean_like(jnp.abs(gap), t) / n
    metrics = {"loss": value, "gap": jnp.mean(gap), "normalizer": jnp.mean(size)}
    return value, ({**metrics, **parts.by_time("gap", gap, t, time)}, aux)

  return Objective(
    roles=("student", "fake"),
    loss={"student": student_loss, "fake": fake_regression(generate, fake, time)},
    due=student_last(ratio, ("fake",)),
    frozen=("teacher",),
  )
