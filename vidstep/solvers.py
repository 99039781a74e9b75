"""Solvers as tables: each turns a list of times into the numbers that `samplers.sample` runs.

Every solver here sees the network through its data prediction `m = x - t v`, and each of its stages
is linear: the next state is a weighted sum of the current state x, a remembered state (`base`),
fresh noise, and the last few m. So a solver is a function `times -> Plan`, computed on the host in
float64, and any plan can be run with exactly one network call a stage.

`lambda = log(alpha / sigma) = log((1 - t) / t)` is the half log-SNR in which DPM-Solver++ and UniPC
integrate exactly everything but m.
"""

import math
from typing import NamedTuple

import numpy as np

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
  """DPM-Solver++(3M), data prediction, as its authors and everyone since implement it.

  The curvature term enters with half of the weight that the third order asks for (the authors' own
  single-step solver has the missing 2), so the order is 2, with a smaller error than 2M. Kept as
  published, since this is what the name means in every other package; UniPC has the order.
  """
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


def flow_map(times):
  """`x' = x - (t - t') u(x, t, t')`: Euler's numbers, but u is told where the step ends.

  Exact for any number of steps when u is the average velocity over the step (MeanFlow, AnyFlow).
  """
  return euler(times)


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
  "flow_map": flow_map,
}

STOCHASTIC = ("consistency",)  # these need a random key, and may repeat a time
TWO_TIMES = ("flow_map",)  # these call the network as (x, t, s=s), s being where the step ends
