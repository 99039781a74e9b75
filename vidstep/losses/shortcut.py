"""Shortcut models: a jump of any dyadic length agrees with its two halves."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from vidstep import paths
from vidstep.losses import parts
from vidstep.losses.base import Objective, Velocity, network
from vidstep.losses.progressive import two_steps


def shortcut(
  velocity: Velocity,
  teacher: Velocity,
  *,
  source: str = "data",
  steps: int = 128,
  every: int = 4,
  time=parts.UNIFORM,
  shift: float = 1.0,
  target: str = "self",
  guidance: float = 1.0,
  unconditional: Callable[[Any], Any] | None = None,
  scale: float = 1.0,
  chunk: int | None = None,
) -> Objective:
  """Shortcut models (Frans et al. 2024, section 3): every step count from one network, one run.

  With u(x, t, s) the average velocity over [s, t], so that x - (t - s) u is the jump from t to s:

      flow       mean |u(x_t, t, t) - v|^2,   v = eps - x0  (or the teacher's v_T(x_t, t))
      bootstrap  mean |u(x_t, t, s) - sg[(x_t - x_s) / (t - s)]|^2
                 x_m = x_t - (t - m) u'(x_t, t, m),   x_s = x_m - (m - s) u'(x_m, m, s)
      n ~ U{1, 2, 4 .. M/2},  i ~ U{1 .. n},  (t, m, s) = shift((i, i - 1/2, i - 1) / n)

  One sample in `every` is bootstrapped, all others learn the flow. Halves of the smallest length,
  1 / M, are asked as u(., t, t): the flow's own step. So the optimum of the jumps is the Euler walk
  on the grid of M steps, all at once what `progressive` reaches in log2(M) runs: the walk's bias
  included, which falls as 1 / M.

  Traps. Released code learns the flow under the label of a step of 1 / M and not of 0, which is the
  same network under another name: here s = t is the flow, as for all two-time networks. The target
  moves with the student, so only the flow is anchored: at a high learning rate long jumps chase
  short ones that are not there yet (`target="ema"`). Jumps are learned between neighbours of
  dyadic grids only: sample on `timesteps(n, shift)` with n a power of two.

  Args:
    velocity: `velocity(params, x [B, F, H, W, C], t [B] or [B, F], cond, s=s) -> u`, s like t;
      `VideoDiT(second_time=True)` is one (in a config: `model.second_time=True`).
    teacher: `velocity(params, x, t, cond) -> v`; called for source "teacher" only.
    source: of the flow's velocity, "data" (eps - x0) or "teacher" (nothing is left to average).
    steps: M, a power of two.
    every: one sample in this many is bootstrapped.
    time: sampler of the flow's t.
    shift: time shift of the dyadic grids.
    target: whose u' is the target: "self" or "ema" (as Frans et al.).
    guidance: the teacher's, `v_u + w (v_c - v_u)`; 1 is none. It ends up in the student.
    unconditional: cond -> cond for the guidance.
    scale: factor on the loss.
    chunk: number of frames that share t and s; None: all.

  Returns:
    Objective with the role "model", or for source "teacher" the role "student" and the frozen
    "teacher". Metrics: `loss`, `flow` and `bootstrap` (means of the two), `loss_t0` .. `loss_t3`
    (the flow by quarter of t).

  Raises:
    ValueError: on an unknown source or target, steps that are no power of two above 1, every < 2,
      or guidance without a teacher or `unconditional`; when traced, if `every` does not divide the
      batch.
  """
  parts.check_choice("source", source, ("data", "teacher"))
  parts.check_choice("target", target, ("self", "ema"))
  if steps < 2 or steps & (steps - 1):
    raise ValueError(f"steps must be a power of two, at least 2, got {steps}.")
  if every < 2:
    raise ValueError(f"every must be at least 2 (half of the batch bootstrapped), got {every}.")
  if source == "data" and guidance != 1:
    raise ValueError(f'guidance={guidance} is of a teacher: use source="teacher" or guidance=1.')
  role = "model" if source == "data" else "student"
  teacher = parts.apply_guidance(teacher, guidance, unconditional)

  def flow_error(trainable, nets, x0, eps, cond, key):
    t = parts.draw_times(time, key, x0, chunk)
    x = paths.interpolate(x0, eps, t)
    if source == "data":
      v = paths.velocity(x0, eps)
    else:
      v = jax.lax.stop_gradient(parts.wide(teacher(network(nets, "teacher"), x, t, cond)))
    u = parts.wide(velocity(trainable, x, t, cond, s=t))
    return parts.mean_like((u - v) ** 2, t), t

  def bootstrap_error(trainable, nets, x0, eps, cond, key):
    level_key, place_key = jax.random.split(key)
    unit = lambda key: 1 - parts.draw_times(parts.UNIFORM, key, x0, chunk)
    levels = steps.bit_length() - 1
    n = 2 ** (jnp.ceil(levels * unit(level_key)) - 1).astype(jnp.int32)
    n, smallest = n.astype(jnp.float32), n == steps // 2
    i = jnp.ceil(n * unit(place_key))
    t, m, s = (paths.shift_time((i - back) / n, shift) for back in (0, 0.5, 1))
    x = paths.interpolate(x0, eps, t)
    other = trainable if target == "self" else network(nets, f"{role}.ema")
    ask = lambda x, t, s: parts.wide(velocity(other, x, t, cond, s=jnp.where(smallest, t, s)))
    goal = jax.lax.stop_gradient(two_steps(ask, x, t, m, s))
    u = parts.wide(velocity(trainable, x, t, cond, s=s))
    return parts.mean_like((u - goal) ** 2, t)

  def loss(trainable, nets, aux, batch, key, step):
    del step
    noise_key, flow_key, bootstrap_key = jax.random.split(key, 3)
    x0 = parts.wide(batch.x0)
    few, most = _split((x0, parts.noise_like(noise_key, x0), batch.cond), every)
    flow, t = flow_error(trainable, nets, *most, flow_key)
    bootstrap = jnp.mean(bootstrap_error(trainable, nets, *few, bootstrap_key))
    value = scale * ((every - 1) * jnp.mean(flow) + bootstrap) / every
    metrics = {"loss": value, "flow": jnp.mean(flow), "bootstrap": bootstrap}
    return value, (metrics | parts.by_time("loss", flow, t, time), aux)

  frozen = ("teacher",) if source == "teacher" else ()
  return Objective(roles=(role,), loss={role: loss}, frozen=frozen)


def _split(tree, every):
  """Each `every`-th sample, and the others; strided, so that a sharded batch stays where it is."""
  size = jax.tree.leaves(tree)[0].shape[0]
  if size % every:
    raise ValueError(
      f"A batch of {size} cannot give one sample in every={every} to the bootstrap: make it a "
      "multiple, or change every."
    )
  groups = jax.tree.map(lambda a: a.reshape((size // every, every, *a.shape[1:])), tree)
  rest = lambda a: a[:, 1:].reshape((-1, *a.shape[2:]))
  return jax.tree.map(lambda a: a[:, 0], groups), jax.tree.map(rest, groups)
