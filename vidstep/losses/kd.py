"""Output regression: the student learns in one jump where the teacher's ODE ends."""

import itertools
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from vidstep import paths, samplers
from vidstep.losses import parts
from vidstep.losses.base import Objective, Velocity, network
from vidstep.solvers import SOLVERS, STOCHASTIC, TWO_TIMES


def kd(
  velocity: Velocity,
  teacher: Velocity,
  *,
  times: Sequence[float] = (1.0, 15 / 16, 5 / 6, 5 / 8),
  source: str = "teacher",
  steps: int = 48,
  shift: float = 5.0,
  solver: str = "euler",
  guidance: float = 1.0,
  unconditional: Callable[[Any], Any] | None = None,
  scale: float = 1.0,
  chunk: int | None = None,
) -> Objective:
  """Knowledge distillation (Luhman and Luhman 2021); with several times ODE regression (CausVid).

      x_1 = eps,  x_t = the teacher's ODE at time t,  x_0 = its end,  k ~ U{1 .. K}
      L = E scale mean |f(x_tk, t_k) - x_0|^2,   f(x, t) = x - t v_theta(x, t)

  With times (1,) these are pairs of noise and video. Its optimum is the solver's own map from t_k
  to the end, where the loss is 0 for each sample: mode covering, since every noise has its answer.

  The states are those of the ODE and not noised data, so a student that sees the whole clip has
  nothing to average over, even where each chunk has a time of its own. A causal student has: the
  teacher's map is one-to-one for whole clips and not for frames given their past, so it learns
  E[x_0 | what it sees], which varies less than x_0 and looks blurred (Causal Forcing, 2026). Give
  it a causal teacher, or take the result as an initialisation.

  Args:
    velocity: the student, `velocity(params, x [B, F, H, W, C], t [B] or [B, F], cond) -> v`.
    teacher: the teacher, same signature; called with t [B] only, and not at all for "path".
    times: t_1 = 1 > t_2 > ... > t_K > 0, at which the student will be asked.
    source: "teacher" solves the ODE inside the loss from fresh noise (`batch.x0` gives the shape);
      "path" reads `batch.path` [B, K, ...], the states at `times`, and its end `batch.x0`.
    steps: solver steps from 1 to 0, see `ode_path`.
    shift: time shift of the solver's grid.
    solver: a deterministic one of `vidstep.samplers`.
    guidance: the teacher's, `v_u + w (v_c - v_u)`; 1 is none. It ends up in the student.
    unconditional: cond -> cond for the guidance (`vidstep.models.null_cond`).
    scale: factor on the loss.
    chunk: number of frames that share a k; None: all.

  Returns:
    Objective with the role "student", the frozen "teacher" (none for "path") and the metrics `loss`
    and `loss_t0` .. `loss_t3` (by quarter of t_k).

  Raises:
    ValueError: if times do not start at 1 and fall strictly, staying positive; on an unknown source
      or solver; if guidance comes without `unconditional`; when traced, if `batch.path` is missing
      or holds another number of times.
  """
  times = tuple(float(t) for t in times)
  falling = all(a > b for a, b in itertools.pairwise((*times, 0.0)))
  if not times or times[0] != 1 or not falling:
    raise ValueError(f"times must start at 1 and fall strictly, staying positive, got {times}.")
  parts.check_choice("source", source, ("teacher", "path"))
  parts.check_choice("solver", solver, sorted(set(SOLVERS) - set(STOCHASTIC) - set(TWO_TIMES)))
  time = parts.OneOf(times)
  teacher = parts.apply_guidance(teacher, guidance, unconditional)

  def trajectory(nets, batch, key):
    if source == "path":
      return _stored(batch, len(times))
    params, noise = network(nets, "teacher"), parts.noise_like(key, batch.x0)
    field = lambda x, t: teacher(params, x, t, batch.cond)
    return ode_path(field, noise, times, steps=steps, shift=shift, solver=solver)

  def loss(trainable, nets, aux, batch, key, step):
    del step
    time_key, noise_key = jax.random.split(key)
    path, x0 = jax.lax.stop_gradient(trajectory(nets, batch, noise_key))
    t = parts.draw_times(time, time_key, x0, chunk)
    grid = jnp.asarray(times, jnp.float32).reshape(-1, *(1,) * x0[0].ndim)[None]
    x = jnp.sum(jnp.where(paths.expand(t, x0)[:, None] == grid, path, 0), axis=1)
    guess = paths.x0_from_v(x, parts.wide(velocity(trainable, x, t, batch.cond)), t)
    error = parts.mean_like((guess - x0) ** 2, t)
    value = scale * jnp.mean(error)
    return value, ({"loss": value, **parts.by_time("loss", error, t, time)}, aux)

  frozen = ("teacher",) if source == "teacher" else ()
  return Objective(roles=("student",), loss={"student": loss}, frozen=frozen)


def ode_path(velocity, noise, times, *, steps, shift=1.0, solver="euler"):
  """Solves a teacher's ODE from noise and keeps the states at given times; makes `Batch.path`.

  Each stretch between two kept times is walked on its own, in its share of the steps (at least
  one), uniform in unshifted time. Where the times lie on the grid of `steps`, as multiples of 1/48
  shifted do, one-step solvers take exactly the steps that they would take without stopping;
  multistep ones lose their memory at each kept time.

  Args:
    velocity: `velocity(x, t [B]) -> v`.
    noise: [B, F, H, W, C], the state at times[0].
    times: falling times, the first being that of `noise`; 0 is added.
    steps: solver steps that all of [0, 1] would take.
    shift: time shift of the grid.
    solver: name of the solver (`vidstep.samplers`).

  Returns:
    path [B, K, F, H, W, C] at the K times, and x0 [B, F, H, W, C].
  """
  x, path = noise, []
  for above, below in itertools.pairwise((*times, 0.0)):
    path.append(x)
    ends = [paths.unshift_time(t, shift) for t in (above, below)]
    count = max(1, round(steps * (ends[0] - ends[1])))
    grid = paths.shift_time(np.linspace(*ends, count + 1), shift)
    grid[0], grid[-1] = above, below
    x = samplers.sample(velocity, x, grid, solver=solver)
  return jnp.stack(path, 1), x


def _stored(batch, count):
  if batch.path is None:
    raise ValueError(
      'source="path" reads batch.path, which is None: bring the states of the teacher\'s ODE with '
      'the data (vidstep.losses.kd.ode_path makes them), or use source="teacher".'
    )
  if batch.path.shape[1] != count:
    raise ValueError(
      f"batch.path holds {batch.path.shape[1]} states a video, but times names {count}: they must "
      "be the times at which the path was recorded."
    )
  return parts.wide(batch.path), parts.wide(batch.x0)
