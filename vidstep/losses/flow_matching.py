"""Flow matching: regress the velocity of the straight path from data to noise."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from vidstep import paths
from vidstep.losses import parts
from vidstep.losses.base import Objective, Velocity


def flow_matching(
  velocity: Velocity,
  *,
  role: str = "model",
  time=parts.UNIFORM,
  weight: Callable[[jax.Array], jax.Array] | None = None,
  chunk: int | None = None,
  drop: float = 0.0,
  unconditional: Callable[[Any], Any] | None = None,
) -> Objective:
  """`E w(t) mean |v_theta(x_t, t, c) - (eps - x0)|^2` (Lipman et al. 2023; Liu et al. 2022).

  Its optimum is the conditional mean `v*(x, t) = E[eps - x0 | x_t = x]`, for any weight > 0.

  One time a video is the whole-clip objective, and with the clean video in `batch.cond` teacher
  forcing; a time a chunk is diffusion forcing. The network alone knows which mask it applies.

  Args:
    velocity: `velocity(params, x [B, F, H, W, C], t, cond) -> v`; t is [B], or [B, F] with chunk.
    role: name of the network that learns.
    time: sampler of t (`vidstep.paths`).
    weight: w(t), elementwise; None is 1. `bell` is that of Causal-rCM.
    chunk: number of frames that share a time; None: all.
    drop: probability of replacing a sample's condition by `unconditional(cond)`, so that the
      network can be guided later.
    unconditional: cond -> cond of the same structure (`vidstep.models.null_cond`).

  Returns:
    Objective with metrics `loss` and `loss_t0` .. `loss_t3` (unweighted, by quarter of time).

  Raises:
    ValueError: if drop is no probability below 1, or is positive without `unconditional`.
  """
  if not 0 <= drop < 1:
    raise ValueError(f"drop is a probability in [0, 1), got {drop}.")
  if drop and unconditional is None:
    raise ValueError(
      f"drop={drop} needs unconditional=..., a function cond -> cond without the condition "
      "(vidstep.models.null_cond), or drop=0."
    )

  def loss(trainable, nets, aux, batch, key, step):
    del nets, step
    time_key, noise_key, drop_key = jax.random.split(key, 3)
    x0, cond = parts.wide(batch.x0), batch.cond
    if drop:
      cond = parts.drop_condition(cond, unconditional, drop, drop_key, x0.shape[0])
    t = parts.draw_times(time, time_key, x0, chunk)
    eps = parts.noise_like(noise_key, x0)
    v = parts.wide(velocity(trainable, paths.interpolate(x0, eps, t), t, cond))
    error = parts.mean_like((v - paths.velocity(x0, eps)) ** 2, t)
    value = jnp.mean(error if weight is None else weight(t) * error)
    return value, ({"loss": value, **parts.by_time("loss", error, t, time)}, aux)

  return Objective(roles=(role,), loss={role: loss})


def bell(t):
  """`exp(-2 (t - 1/2)^2) - exp(-1/2)`: 0 at both ends of time (Causal-rCM, table 3)."""
  return jnp.exp(-2 * (t - 0.5) ** 2) - jnp.exp(-0.5)
