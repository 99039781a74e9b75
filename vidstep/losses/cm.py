"""Consistency training: jumps to x0 agree at neighbours on a grid, from data alone."""

from vidstep import paths
from vidstep.losses.base import Objective, Velocity
from vidstep.losses.dcm import consistency, curriculum

TIME = paths.LogNormal(-1.1, 2.0)


def cm(
  velocity: Velocity,
  *,
  role: str = "model",
  time=TIME,
  steps: int = 10,
  skip: int = 1,
  double: int | None = 50_000,
  max_steps: int = 1280,
  target: str = "self",
  distance: str = "pseudo_huber",
  weighting: str = "gap",
  scale: float = 1.0,
  chunk: int | None = None,
) -> Objective:
  """Consistency training with a curriculum (iCT, Song and Dhariwal 2024; Song et al. 2023, alg. 3).

      s ~ U(0, 1],  t0 = icdf(s),  t1 = icdf(max(s - skip / N(step), 0))
      x_t0 = (1 - t0) x0 + t0 eps,   x_t1 = (1 - t1) x0 + t1 eps      the same x0 and the same eps
      L = E scale w d(f(x_t0, t0), sg f'(x_t1, t1)),   f(x, t) = x - t v_theta(x, t)

  This is `dcm` with the straight line through (x0, eps) for the teacher's step: given x_t0 the line
  leads to the teacher's x_t1 on average. With squared error, its optimum is f_n(x) =
  E[f_{n-1}(x_t1) | x_t0 = x]; on Gaussian data exactly the walk of `dcm`, elsewhere within O(1 / N)
  of it, and the true consistency function as N grows.

  Three traps. (1) The last holds for squared error only. Pseudo-Huber averages no longer but takes
  a kind of median of the conditional velocity; each hop is off by a share of itself, however small
  the hops are, so on data with several modes the optimum of iCT and ECT is another function (two
  modes in the tests: at the true one, 11% of the gradient of a wrong one, on any grid; squared
  error 5% with 16 intervals and 2% with 64; trained, the larger mode's share grows from 0.67 to
  0.73 and stays 0.67 with squared error). Distillation (`dcm`) averages nothing: no such bias.
  (2) Fresh noise at t1 would leave nothing of the trajectory: x_t1 shares eps. (3) A grid that ends
  above 0 leaves the anchor to the parameterisation: here the last hop goes to t1 = 0, where f(x, 0)
  = x.

  iCT and ECT hop by steps and shares of sigma = t / (1 - t) and weigh by the gap in sigma; here the
  grid is uniform in the quantiles of `time`, up to t = 1, and the gap is one of t.

  Args:
    velocity: `velocity(params, x [B, F, H, W, C], t [B] or [B, F], cond) -> v`.
    role: name of the network that learns.
    time: distribution of t0 (`vidstep.paths`), whose quantiles make the grid.
    steps: N at the start.
    skip: grid intervals that one hop covers.
    double: training steps after which N doubles; iCT: an eighth of all. None: never.
    max_steps: the largest N.
    target: whose f' is the target: "self" (as iCT does) or "ema" (`nets["model.ema"]`).
    distance: "pseudo_huber", `sqrt(mse + c^2) - c` with iCT's c = 0.00054 in a form that does not
      depend on the size of the video, or "mse".
    weighting: w, "gap" (1 / (t0 - t1)) or "none" (1).
    scale: factor on the loss.
    chunk: number of frames that share a time; None: all.

  Returns:
    Objective with that role and the metrics `loss` and `loss_t0` .. `loss_t3` (unweighted distance
    by quarter of t0).

  Raises:
    ValueError: on an unknown target, distance or weighting, a skip outside 1 .. steps, or a
      curriculum that goes nowhere.
  """

  def below(nets, x0, eps, x_t0, t0, t1, cond):
    del nets, x_t0, t0, cond
    return paths.interpolate(x0, eps, t1)

  return consistency(
    velocity,
    below,
    role=role,
    frozen=(),
    time=time,
    intervals=curriculum(steps, skip, double, max_steps),
    skip=skip,
    target=target,
    distance=distance,
    weighting=weighting,
    scale=scale,
    chunk=chunk,
  )
