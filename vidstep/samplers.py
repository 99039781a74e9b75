"""From noise to data: time grids, and one scan that runs any solver.

A solver (`vidstep.solvers`) is a table of numbers, one row for each network call; `sample` is the
loop that reads it.
"""

import math
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from vidstep.paths import expand, shift_time, unshift_time, wider
from vidstep.solvers import SOLVERS, STOCHASTIC, TWO_TIMES, M

# ------------------------------------------------------------------------------------------------
# Time grids
# ------------------------------------------------------------------------------------------------

_trig = lambda *taus: tuple(math.sin(t) / (math.sin(t) + math.cos(t)) for t in taus)

# Intermediate times of the few-step lists in use; the first time is `t_max`, the last is 0.
PRESETS = {
  "causal": (15 / 16, 5 / 6, 5 / 8),  # shift 5 of .75, .5, .25: Self-Forcing, Causal-rCM
  "causal_shift3": (0.9, 0.75, 0.5),  # shift 3 of the same
  "rcm": _trig(1.5, 1.4, 1.0),  # rCM, released code
  "rcm_paper": _trig(1.3, 1.0, 0.6),  # rCM, paper
  "rcm_8": _trig(1.3, 1.0, 1.0, 0.6, 0.6, 0.3, 0.3),  # rCM, eight steps; repeats re-noise in place
}


def timesteps(steps, *, shift=1.0, t_max=1.0):
  """A shifted uniform grid: `t_i = shift_time(u_i, shift)`, u uniform, from t_max down to 0.

  Args:
    steps: number of steps, at least 1.
    shift: time shift; 5 is Wan's for video.
    t_max: first time, e.g. `1600 / 1601` for sigma_max = 1600.

  Returns:
    float32 NumPy array `[steps + 1]`.

  Raises:
    ValueError: if steps < 1, t_max is outside (0, 1] or shift is not positive.
  """
  _check_steps(steps)
  _check_t_max(t_max)
  grid = shift_time(np.linspace(unshift_time(t_max, shift), 0.0, steps + 1), shift)
  grid[0] = t_max
  return grid.astype(np.float32)


def timestep_list(times, steps=None, *, t_max=1.0):
  """An explicit few-step list: `[t_max, *times, 0]`.

  Args:
    times: intermediate times, or the name of one of `PRESETS`.
    steps: number of steps; the first `steps - 1` intermediate times are used (all, if None).
    t_max: first time; training rollouts use 1, inference often `1600 / 1601`.

  Returns:
    float32 NumPy array `[steps + 1]`.

  Raises:
    ValueError: for an unknown name, more steps than listed, or times that increase or leave (0, 1].
  """
  if isinstance(times, str):
    if times not in PRESETS:
      raise ValueError(f"Unknown time list {times!r}; there are {', '.join(sorted(PRESETS))}.")
    times = PRESETS[times]
  steps = len(times) + 1 if steps is None else steps
  _check_steps(steps)
  _check_t_max(t_max)
  if steps > len(times) + 1:
    raise ValueError(
      f"{steps} steps need {steps - 1} intermediate times, the list has {len(times)}."
    )
  grid = np.asarray([t_max, *times[: steps - 1], 0.0])
  if (np.diff(grid) > 0).any() or (grid[:-1] <= 0).any():
    raise ValueError(f"Times must not increase and lie in (0, {t_max}], got {list(times)}.")
  return grid.astype(np.float32)


def _check_steps(steps):
  if steps < 1:
    raise ValueError(f"Sampling needs at least 1 step, got {steps}.")


def _check_t_max(t_max):
  if not 0 < t_max <= 1:
    raise ValueError(f"t_max must lie in (0, 1] (1 is noise), got {t_max}.")


# ------------------------------------------------------------------------------------------------
# Sampling
# ------------------------------------------------------------------------------------------------


def _plan(solver, times):
  if solver not in SOLVERS:
    raise ValueError(f"Unknown solver {solver!r}; there are {', '.join(sorted(SOLVERS))}.")
  try:
    times = np.asarray(times, np.float64)
  except jax.errors.TracerArrayConversionError as error:
    raise ValueError(
      "Sampling times must be known when tracing: close over them instead of passing them to the "
      "jitted function."
    ) from error
  if times.ndim != 1:
    raise ValueError(f"Sampling times must be a list, got shape {times.shape}.")
  _check_steps(len(times) - 1)
  gaps = np.diff(times)
  if times[0] > 1 or times[-1] < 0 or (gaps > 0).any() or (times[:-1] == 0).any():
    raise ValueError(f"Sampling times must fall within [0, 1] (1 is noise), got {times.tolist()}.")
  if solver not in STOCHASTIC and (gaps == 0).any():
    raise ValueError(f"Solver {solver!r} cannot repeat a time, got {times.tolist()}.")
  return SOLVERS[solver](times)


def sample(velocity, x, times, *, solver="euler", key=None):
  """Carries noise x at `times[0]` to `times[-1]` (normally 0: data).

  Args:
    velocity: `velocity(x, t) -> v` with t float32 `[B]` (float64 if x is), v of the shape of x;
      for solvers in `TWO_TIMES` `velocity(x, t, s=s)`, the average velocity over [s, t].
    x: state at `times[0]`, `[B, ...]`; pure standard normal noise if that is 1.
    times: falling times `[steps + 1]`, known when tracing; see `timesteps`, `timestep_list`.
    solver: one of `SOLVERS`.
    key: random key; needed by solvers that add noise (`STOCHASTIC`), unused by the others.

  Returns:
    The state at `times[-1]`, shape and dtype of x. The arithmetic is float32 at least.

  Raises:
    ValueError: for an unknown solver, unusable times or a missing key.
  """
  run = stages(velocity, times, solver=solver, key=key, dtype=x.dtype)
  carry, _ = jax.lax.scan(lambda carry, row: (run.step(carry, row), None), run.start(x), run.rows)
  return run.end(carry)


class Stages(NamedTuple):
  """`sample` taken apart: `end(step(.. step(start(x), rows[0]) .., rows[-1]))`.

  Attributes:
    start: x -> carry.
    step: (carry, row) -> carry, one network call.
    end: carry -> x.
    rows: a pytree of arrays whose leading axis is that of the network calls.
  """

  start: Callable
  step: Callable
  end: Callable
  rows: Any

  def row(self, index):
    """What call number `index` is given."""
    return jax.tree.map(lambda a: a[index], self.rows)


def stages(velocity, times, *, solver="euler", key=None, dtype=jnp.float32):
  """The network calls of `sample` one by one, for whoever wants to look in between.

  Args:
    velocity: as in `sample`.
    times: as in `sample`.
    solver: as in `sample`.
    key: as in `sample`.
    dtype: of the state.

  Returns:
    `Stages`.

  Raises:
    ValueError: as `sample`.
  """
  plan = _plan(solver, times)
  noisy = solver in STOCHASTIC
  if noisy and key is None:
    raise ValueError(f"Solver {solver!r} adds fresh noise: pass key=jax.random.key(...).")
  wide = wider(dtype, jnp.float32)
  remembers = plan.base.any()

  def start(x):
    x = x.astype(wide)
    empty = jnp.zeros_like(x)
    return x, empty if remembers else None, (empty,) * (plan.state.shape[1] - M - 1)

  def step(carry, row):
    x, base, history = carry
    index, t, to_state, to_base, end = row
    shared = lambda t: jnp.full(x.shape[:1], t)
    v = velocity(x.astype(dtype), shared(t), **jax.tree.map(shared, end)).astype(wide)
    noise = jax.random.normal(jax.random.fold_in(key, index), x.shape, wide) if noisy else None
    registers = (x, base, noise, x - t * v, *history)

    def combine(weights, table):  # columns that are 0 in every row cost nothing
      return sum(weights[c] * registers[c] for c in np.flatnonzero(table.any(axis=0)))

    state = combine(to_state, plan.state)
    base = combine(to_base, plan.base) if remembers else None
    return state, base, registers[M:-1]

  ends = {"s": jnp.asarray(np.asarray(times)[1:], wide)} if solver in TWO_TIMES else {}
  rows = (np.arange(len(plan.times)), *(jnp.asarray(table, wide) for table in plan), ends)
  return Stages(start, step, lambda carry: carry[0].astype(dtype), rows)


def guided(velocity_cond, velocity_uncond, w):
  """Classifier-free guidance, `v_uncond + w (v_cond - v_uncond)`: w = 1 is none.

  Args:
    velocity_cond: `(x, t) -> v` given the condition, or `(x, t, *, s) -> u`.
    velocity_uncond: `(x, t) -> v` without it.
    w: weight; a number, or an array `[B]`. The numbers 1 and 0 call one network only.

  Returns:
    `(x, t) -> v`, or `(x, t, *, s) -> u`.
  """
  if isinstance(w, int | float) and w in (0, 1):
    return velocity_cond if w == 1 else velocity_uncond

  def velocity(x, t, **s):
    cond, uncond = velocity_cond(x, t, **s), velocity_uncond(x, t, **s)
    scale = expand(jnp.asarray(w, t.dtype), x)
    out = uncond.astype(scale.dtype)
    return (out + scale * (cond.astype(scale.dtype) - out)).astype(cond.dtype)

  return velocity


def nfe(solver, steps, guidance=1.0):
  """Network evaluations a sample costs: Heun `2 steps - 1`; guidance (not 0 or 1) doubles."""
  return len(_plan(solver, timesteps(steps)).times) * (1 if guidance in (0, 1) else 2)
