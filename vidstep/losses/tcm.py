"""Truncated consistency: a second stage for late times only, anchored in the first stage."""

import dataclasses
import functools
import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.scipy.special import logit

from vidstep import paths
from vidstep.losses import parts
from vidstep.losses.base import Objective, Velocity, network
from vidstep.losses.dcm import DISTANCES, curriculum


def tcm(
  velocity: Velocity,
  stage_one: Velocity,
  teacher: Velocity,
  *,
  source: str = "data",
  start: float = 0.5,
  end: float = 1600 / 1601,
  mean: float = 0.0,
  std: float = 0.2,
  df: float = 0.01,
  boundary: float = 0.25,
  boundary_weight: float = 0.1,
  steps: int = 10,
  skip: int = 1,
  double: int | None = 50_000,
  max_steps: int = 1280,
  distance: str = "pseudo_huber",
  weighting: str = "gap",
  guidance: float = 1.0,
  unconditional: Callable[[Any], Any] | None = None,
  scale: float = 1.0,
  chunk: int | None = None,
) -> Objective:
  """Truncated consistency models, stage two (Lee et al. 2024, section 3).

  A consistency model spends most of itself on small t, where it denoises and nobody asks it to
  jump. So the first stage (`cm`, `dcm`) answers there and the student learns [t', 1] alone:

      g(x, t) = f_theta(x, t) for t > t',  f_one(x, t) for t = t',   f(x, t) = x - t v(x, t)
      L = scale (E w d(f_theta(x_t0, t0), sg g(x_t1, t1))
                 + w_b E w d(f_theta(x_t', t'), g(x_t', t')))

  with t0 > t1 >= t' as in `cm` neighbours on a grid that is uniform in the quantiles of
  `LogStudent` on [t', end], x_t1 on the line through the same x0 and eps, or one Euler step of the
  teacher's. The optimum is the walk of `dcm` (`cm`) down to t' and the first stage's jump from
  there.

  Traps. Without an anchor at t' any constant function is a solution. Pairs whose t1 is t' anchor
  too, but their share falls with the grid; the boundary's share is fixed. Released code hops across
  t' with the first stage at the lower end, here the hop stops at t' and both are asked about the
  same x: nothing is lost where hops are small, and no discretisation is left in the boundary term.
  Below t' the student is not trained: sample with times from `end` to t' only, or ask the first
  stage there. All that `cm` says about pseudo-Huber and data holds here.

  A step costs two forwards of the student and one of the first stage (and one of the teacher).

  Args:
    velocity: the student, `velocity(params, x [B, F, H, W, C], t [B] or [B, F], cond) -> v`; start
      it from the first stage's weights.
    stage_one: the first stage, same signature.
    teacher: same signature; called for source "teacher" only.
    source: of the neighbour x_t1, "data" or "teacher".
    start: t'; the paper's sigma = 1 is 1/2.
    end: the largest t0, below 1.
    mean, std, df: of the Student-t distribution of log(t / (1 - t)) from which t0 is drawn; df near
      0 has tails that fall like 1 / x, df = inf is a normal distribution.
    boundary: share of the times that are t0 = t'.
    boundary_weight: w_b.
    steps: grid intervals on [t', end] at the start.
    skip: intervals that one hop covers.
    double: training steps after which the grid is refined by 2; None: never.
    max_steps: the finest grid.
    distance: "pseudo_huber" or "mse", as in `cm`.
    weighting: w, "gap" (1 / (t0 - t1), and that of the whole interval next to t') or "none" (1).
    guidance: the teacher's, `v_u + w (v_c - v_u)`; 1 is none.
    unconditional: cond -> cond for the guidance.
    scale: factor on the loss.
    chunk: number of frames that share a time; None: all.

  Returns:
    Objective with the role "student", the frozen "stage_one" (and "teacher") and the metrics
    `loss`, `boundary` (the second term without w_b) and `loss_t0` .. `loss_t3` (unweighted distance
    of the first by quarter of t0).

  Raises:
    ValueError: on an unknown source, distance or weighting, times or shares outside (0, 1), a skip
      outside 1 .. steps, a curriculum that goes nowhere, or guidance without a teacher or
      `unconditional`.
  """
  parts.check_choice("source", source, ("data", "teacher"))
  parts.check_choice("distance", distance, tuple(DISTANCES))
  parts.check_choice("weighting", weighting, ("none", "gap"))
  if not 0 < boundary < 1:
    raise ValueError(f"boundary is a share of the times, between 0 and 1, got {boundary}.")
  if source == "data" and guidance != 1:
    raise ValueError(f'guidance={guidance} is of a teacher: use source="teacher" or guidance=1.')
  time = LogStudent(start, end, mean, std, df)
  intervals = curriculum(steps, skip, double, max_steps)
  teacher = parts.apply_guidance(teacher, guidance, unconditional)

  def neighbour(nets, x0, eps, x_t0, t0, t1, cond):
    if source == "data":
      return paths.interpolate(x0, eps, t1)
    v = parts.wide(teacher(network(nets, "teacher"), x_t0, t0, cond))
    return x_t0 - paths.expand(t0 - t1, x_t0) * v

  def jump(network, params, x, t, cond):
    return paths.x0_from_v(x, parts.wide(network(params, x, t, cond)), t)

  def loss(trainable, nets, aux, batch, key, step):
    gap = skip / intervals(step)
    time_key, noise_key, pin_key = jax.random.split(key, 3)
    x0 = parts.wide(batch.x0)
    eps = parts.noise_like(noise_key, x0)
    s = 1 - parts.draw_times(parts.UNIFORM, time_key, x0, chunk)
    pinned = parts.draw_times(parts.UNIFORM, pin_key, x0, chunk) < boundary
    lowest = pinned | (s <= gap)
    t0 = jnp.where(pinned, start, time.icdf(s))
    t1 = jnp.where(lowest, start, time.icdf(jnp.maximum(s - gap, 0)))
    x_t0 = paths.interpolate(x0, eps, t0)
    x_t1 = neighbour(nets, x0, eps, x_t0, t0, t1, batch.cond)
    first = jump(stage_one, network(nets, "stage_one"), x_t1, t1, batch.cond)
    own = jump(velocity, trainable, x_t1, t1, batch.cond)
    goal = jax.lax.stop_gradient(jnp.where(paths.expand(t1, x0) > start, own, first))
    error = jump(velocity, trainable, x_t0, t0, batch.cond) - goal
    error = DISTANCES[distance](parts.mean_like(error**2, t0))
    hop = jnp.where(lowest, time.icdf(jnp.float32(gap)) - start, t0 - t1)
    weighted = error / hop if weighting == "gap" else error
    at_boundary = jnp.mean(jnp.where(pinned, weighted, 0)) / boundary
    above = lambda error: jnp.where(pinned, 0, error) / (1 - boundary)
    value = scale * (jnp.mean(above(weighted)) + boundary_weight * at_boundary)
    metrics = {"loss": value, "boundary": at_boundary}
    return value, (metrics | parts.by_time("loss", above(error), t0, time), aux)

  frozen = ("stage_one", "teacher") if source == "teacher" else ("stage_one",)
  return Objective(roles=("student",), loss={"student": loss}, frozen=frozen)


@dataclasses.dataclass(frozen=True)
class LogStudent:
  """Times in [low, high] whose log(t / (1 - t)) = log sigma is Student-t, cut to that interval.

  With log sigma = mean + std sqrt(df) sinh(y) the density of y is cosh(y)^-df: flat where df is
  small, so a table over y is exact to float32 however heavy the tails are.
  """

  low: float
  high: float
  mean: float = 0.0
  std: float = 0.2
  df: float = 0.01

  def __post_init__(self):
    if not 0 < self.low < self.high < 1:
      raise ValueError(f"Times need 0 < start < end < 1, got {self.low} and {self.high}.")
    if not (self.std > 0 and 0 < self.df < math.inf):
      raise ValueError(f"std and df must be positive and finite, got {self.std} and {self.df}.")

  @property
  def _width(self):
    return self.std * math.sqrt(self.df)

  @functools.cached_property
  def _table(self):
    ends = (np.log(t / (1 - t)) for t in (self.low, self.high))
    y = np.linspace(*(np.arcsinh((x - self.mean) / self._width) for x in ends), 2049)
    density = np.cosh(y) ** -self.df
    mass = np.concatenate([[0.0], np.cumsum(density[1:] + density[:-1])])
    return np.float32(y), np.float32(mass / mass[-1])

  def sample(self, key, shape=()):
    """Draws float32 times of the given shape."""
    return self.icdf(jax.random.uniform(key, shape, jnp.float32))

  def cdf(self, t):
    """Probability of a time below t in [0, 1]."""
    x = (logit(jnp.clip(t, self.low, self.high)) - self.mean) / self._width
    return jnp.interp(jnp.arcsinh(x), *self._table)

  def icdf(self, u):
    """The time below which a share u in [0, 1] of all draws lies."""
    y, mass = self._table
    return jax.nn.sigmoid(self.mean + self._width * jnp.sinh(jnp.interp(u, mass, y)))
