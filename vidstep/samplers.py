"""From noise to data: every solver as a table of numbers, run by one scan.

All solvers here see the network through its data prediction `m = x - t v`, and each of their
stages is linear: the next state is a weighted sum of the current state x, a remembered state
(`base`), fresh noise, and the last few m. So a solver is a function `times -> Plan`, computed on
the host in float64, and `sample` runs any plan with exactly one network call a stage.

`lambda = log(alpha / sigma) = log((1 - t) / t)` is the half log-SNR in which DPM-Solver++ and UniPC
integrate exactly everything but m.
"""

import math
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from vidstep.paths import expand, shift_time, unshift_time, wider

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
# Solvers
# ------------------------------------------------------------------------------------------------

# Columns of a weight row; from M on, the data predictions: newest, the one before, ...
X, BASE, NOISE, M = 0, 1, 2, 3


class Plan(NamedTuple):
  """What a solver does, stage by stage (NumPy float64).

  Attributes:
    times: `[S]`, where stage s calls the network.
    state: `[S, 3 + K]`, weights of (x, base, noise, m_s, m_{s-1}, ..., m_{s-K+1}) in the next x.
    base: `[S, 3 + K]`, the same for the next base.
  """

  times: np.ndarray
  state: np.ndarray
  base: np.ndarray


def _blank(times, history):
  shape = (len(times), M + history)
  return Plan(np.asarray(times), np.zeros(shape), np.zeros(shape))


def euler(times):
  """`x' = x + (t' - t) v`; order 1. The same as DDIM and as first-order DPM-Solver++."""
  plan = _blank(times[:-1], history=1)
  ratio = times[1:] / times[:-1]
  plan.state[:, X], plan.state[:, M] = ratio, 1 - ratio
  return plan


def heun(times):
  """`x' = x + (t' - t) (v(x, t) + v(x_euler, t')) / 2`; order 2; Euler onto 0 (EDM, alg. 1)."""
  first = euler(times)
  rows = []  # (time, state weights, base weights), M and M + 1 being m(t') and m(t) in a corrector
  for t, t_next, row in zip(times, times[1:], first.state, strict=False):
    keep = np.zeros(M + 2)
    keep[X] = 1
    rows.append((t, np.append(row, 0.0), keep))
    if t_next > 0:
      half = (t_next - t) / 2
      correct = np.zeros(M + 2)
      correct[BASE], correct[M + 1] = 1 + half / t, -half / t  # v(x, t) = (base - m(t)) / t
      correct[X], correct[M] = half / t_next, -half / t_next
      rows.append((t_next, correct, np.zeros(M + 2)))
  return Plan(*(np.stack(column) for column in zip(*rows, strict=True)))


def _orders(steps, order, drop):
  """The order of each step: 1, 2, ... at the start (no history yet), `drop` = the last orders."""
  orders = [min(order, i + 1) for i in range(steps)]
  for i, most in enumerate(reversed(drop[-steps:]), start=1):
    orders[-i] = min(orders[-i], most)
  return orders


def _lambda(times):
  """Half log-SNR; alpha = 1e-6 stands for pure noise, as in the reference schedulers."""
  with np.errstate(divide="ignore"):
    return np.log(np.maximum(1 - times, 1e-6)) - np.log(times)


def _dpmpp(order, times):
  lam, plan = _lambda(times), _blank(times[:-1], history=order)
  # As in the reference implementation: first order onto t = 0; below 15 steps, where high orders
  # are not stable yet, the last steps go down one order at a time.
  short = len(times) - 1 < 15
  drop = [2, 1] if short else [1] if times[-1] == 0 else []
  for i, n in enumerate(_orders(len(times) - 1, order, drop)):
    t, t_next, row = times[i], times[i + 1], plan.state[i]
    h, alpha = lam[i + 1] - lam[i], 1 - t_next
    m = np.eye(order)  # rows: what m_i, m_{i-1}, m_{i-2} are in terms of the weights of a row
    slopes = [(m[j] - m[j + 1]) * h / (lam[i - j] - lam[i - j - 1]) for j in range(n - 1)]
    row[X] = t_next / t
    row[M:] = -alpha * np.expm1(-h) * m[0]
    if n == 2:
      row[M:] += -0.5 * alpha * np.expm1(-h) * slopes[0]
    elif n == 3:
      r0, r1 = (lam[i] - lam[i - 1]) / h, (lam[i - 1] - lam[i - 2]) / h
      curve = (slopes[0] - slopes[1]) / (r0 + r1)
      slope = slopes[0] + r0 * curve
      row[M:] += alpha * (np.expm1(-h) / h + 1) * slope
      row[M:] -= alpha * ((np.expm1(-h) + h) / h**2 - 0.5) * curve
  return plan


def dpmpp_2m(times):
  """DPM-Solver++(2M), data prediction, multistep order 2 (Lu et al. 2022, alg. 2)."""
  return _dpmpp(2, times)


def dpmpp_3m(times):
  """DPM-Solver++(3M), data prediction, multistep order 3 (Lu et al. 2022, appendix B)."""
  return _dpmpp(3, times)


def _unipc_weights(points, h):
  """Weights of `(m_j - m_0) / r_j` in units of `-alpha expm1(-h)`: solves the order conditions.

  points: the r_j = (lambda_j - lambda_0) / h of the other predictions used (1 is the new one).
  """
  n = len(points)
  if n == 0:
    return np.zeros(0)
  if n == 1:
    return np.full(1, 0.5)  # the authors' choice: the exact solution tends to it with h
  b, phi = [], np.expm1(-h) / -h - 1
  for k in range(1, n + 1):
    b.append(phi * math.factorial(k) / np.expm1(-h))
    phi = phi / -h - 1 / math.factorial(k + 1)
  return np.linalg.solve(np.vander(points, n, increasing=True).T, np.asarray(b))


def _unipc(order, times):
  lam, plan = _lambda(times), _blank(times[:-1], history=order + 1)
  orders = _orders(len(times) - 1, order, [2, 1] if times[-1] == 0 else [])
  m = np.eye(order + 1)

  def step(i, n, origin, corrector):
    """Weights of the m in x_{i+1} from x_i; `origin` is the column of m_i."""
    h, alpha = lam[i + 1] - lam[i], 1 - times[i + 1]
    others = [(origin + j, (lam[i - j] - lam[i]) / h) for j in range(1, n)]
    others += [(origin - 1, 1.0)] if corrector else []
    points = [r for _, r in others]
    weights = m[origin].copy()
    for (column, r), rho in zip(others, _unipc_weights(points, h), strict=True):
      weights += rho * (m[column] - m[origin]) / r
    return -alpha * np.expm1(-h) * weights

  for i, n in enumerate(orders):
    if i == 0:
      plan.base[i, X] = 1
    else:  # correct x_i, now that m_i is known, from the base x_{i-1}
      plan.base[i, BASE] = times[i] / times[i - 1]
      plan.base[i, M:] = step(i - 1, orders[i - 1], origin=1, corrector=True)
    ratio = times[i + 1] / times[i]
    plan.state[i] = ratio * plan.base[i]
    plan.state[i, M:] += step(i, n, origin=0, corrector=False)
  return plan


def unipc(times):
  """UniPC-2, B2(h), data prediction (Zhao et al. 2023): Wan's default. Corrected order 3."""
  return _unipc(2, times)


def unipc_3(times):
  """UniPC-3, B2(h), data prediction (Zhao et al. 2023). Corrected order 4."""
  return _unipc(3, times)


def consistency(times):
  """Multistep consistency sampling: `x' = (1 - t') m + t' eps` (Song et al. 2023, alg. 1).

  eps is fresh at every step. Exact when `x - t v` is the consistency function: each step then draws
  from the data itself.
  """
  plan = _blank(times[:-1], history=1)
  plan.state[:, M], plan.state[:, NOISE] = 1 - times[1:], times[1:]
  return plan


SOLVERS = {
  "euler": euler,
  "heun": heun,
  "dpmpp_2m": dpmpp_2m,
  "dpmpp_3m": dpmpp_3m,
  "unipc": unipc,
  "unipc_3": unipc_3,
  "consistency": consistency,
}

# ------------------------------------------------------------------------------------------------
# Sampling
# ------------------------------------------------------------------------------------------------


def _plan(solver, times):
  if solver not in SOLVERS:
    raise ValueError(f"Unknown solver {solver!r}; there are {', '.join(sorted(SOLVERS))}.")
  if isinstance(times, jax.core.Tracer):
    raise ValueError(
      "Sampling times must be known when tracing: close over them, as they are no "
      "argument of a jitted function."
    )
  times = np.asarray(times, np.float64)
  if times.ndim != 1:
    raise ValueError(f"Sampling times must be a list, got shape {times.shape}.")
  _check_steps(len(times) - 1)
  gaps = np.diff(times)
  if times[0] > 1 or times[-1] < 0 or (gaps > 0).any() or (times[:-1] == 0).any():
    raise ValueError(f"Sampling times must fall within [0, 1] (1 is noise), got {times.tolist()}.")
  if solver != "consistency" and (gaps == 0).any():
    raise ValueError(f"Only consistency sampling can repeat a time, got {times.tolist()}.")
  return SOLVERS[solver](times)


def sample(velocity, x, times, *, solver="euler", key=None):
  """Carries noise x at `times[0]` to `times[-1]` (normally 0: data).

  Args:
    velocity: `velocity(x, t) -> v` with t float32 `[B]` (float64 if x is), v of the shape of x.
    x: state at `times[0]`, `[B, ...]`; pure standard normal noise if that is 1.
    times: falling times `[steps + 1]`, known when tracing; see `timesteps`, `timestep_list`.
    solver: one of `SOLVERS`.
    key: random key; needed by, and only by, solvers that add noise.

  Returns:
    The state at `times[-1]`, shape and dtype of x. The arithmetic is float32 at least.

  Raises:
    ValueError: for an unknown solver, unusable times, or a key that is missing or unused.
  """
  plan = _plan(solver, times)
  noisy = bool(plan.state[:, NOISE].any() or solver == "consistency")
  if noisy != (key is not None):
    raise ValueError(
      f"Solver {solver!r} adds fresh noise: pass key=jax.random.key(...)."
      if noisy
      else f"Solver {solver!r} is deterministic and would ignore the key: leave it out."
    )
  dtype = x.dtype
  wide = wider(dtype, jnp.float32)

  def stage(carry, row):
    x, base, history = carry
    index, t, to_state, to_base = row
    v = velocity(x.astype(dtype), jnp.full(x.shape[:1], t)).astype(wide)
    noise = jax.random.normal(jax.random.fold_in(key, index), x.shape, wide) if noisy else None
    registers = (x, base, noise, x - t * v, *history)

    def combine(weights):
      return sum(w * r for w, r in zip(weights, registers, strict=True) if r is not None)

    return (combine(to_state), combine(to_base), registers[M:-1]), None

  start = x.astype(wide)
  history = (jnp.zeros_like(start),) * (plan.state.shape[1] - M - 1)
  rows = (np.arange(len(plan.times)), *(jnp.asarray(table, wide) for table in plan))
  (x, _, _), _ = jax.lax.scan(stage, (start, jnp.zeros_like(start), history), rows)
  return x.astype(dtype)


def guided(velocity_cond, velocity_uncond, w):
  """Classifier-free guidance, `v_uncond + w (v_cond - v_uncond)`: w = 1 is none.

  Args:
    velocity_cond: `(x, t) -> v` given the condition.
    velocity_uncond: `(x, t) -> v` without it.
    w: weight; a number, or an array `[B]`. The numbers 1 and 0 call one network only.

  Returns:
    `(x, t) -> v`.
  """
  if isinstance(w, int | float) and w in (0, 1):
    return velocity_cond if w == 1 else velocity_uncond

  def velocity(x, t):
    cond, uncond = velocity_cond(x, t), velocity_uncond(x, t)
    return (uncond + expand(jnp.asarray(w, t.dtype), uncond) * (cond - uncond)).astype(cond.dtype)

  return velocity


def nfe(solver, steps, guidance=1.0):
  """Network evaluations a sample costs: Heun `2 steps - 1`; guidance (not 0 or 1) doubles."""
  return len(_plan(solver, timesteps(steps)).times) * (1 if guidance in (0, 1) else 2)
