"""A network and its directional derivative in one pass, and what such tangents are divided by."""

import jax
import jax.numpy as jnp

from vidstep import paths
from vidstep.losses import parts

METHODS = ("jvp", "semi", "difference")
NORMS = ("rms", "l2", "none")


def derivative(fn, params, x, times, dx, dtimes, *, tangent="jvp", delta=1e-3):
  """`F = fn(params, x, *times)` and `dF`, its derivative along `(dx, *dtimes)`.

      jvp          (F, dF) = jax.jvp: one pass, and the F that comes with dF is the one that the
                   loss differentiates; no forward is spent on dF alone
      semi         exact in x, a difference in time (rCM's fd_type=1): jvp along (dx, 0) plus
                   (F(x, t) - F(x, t - delta dt)) / delta; one more forward
      difference   (F(x, t) - F(x - delta dx, t - delta dt)) / delta; one more forward, no jvp: for
                   attention kernels that have none

  Differences are off by O(delta), and by O(precision / delta) from rounding: 1e-4 of F in float32
  at the default, more than F itself in bfloat16. They look back along a direction which objectives
  scale by the length of their interval, `(t - s) (dx/dt, 1)`: times then stay between s and t.

  Stop the gradient of whatever is made of dF: attention kernels have no second derivatives.

  Args:
    fn: `fn(params, x, *times) -> F`, shaped like x.
    params: of the network.
    x: state.
    times: tuple of times, `[B]` or `[B, F]`.
    dx: direction of x; None if it stays.
    dtimes: directions of the times; None for a time that stays.
    tangent: one of `METHODS`.
    delta: step of the differences, a share of the direction.

  Returns:
    F and dF, both float32 or wider.
  """
  here = (parts.wide(x), *times)
  there = (dx, *dtimes)
  moving = [i for i, d in enumerate(there) if d is not None]
  along = {i: there[i].astype(here[i].dtype) for i in moving}

  def call(params, changed):
    return parts.wide(fn(params, *(changed.get(i, a) for i, a in enumerate(here))))

  def exact(some):
    live = lambda *values: call(params, dict(zip(some, values, strict=True)))
    return jax.jvp(live, [here[i] for i in some], [along[i] for i in some])

  def difference(value, some):
    before = {i: here[i] - delta * along[i] for i in some}
    return (value - call(jax.lax.stop_gradient(params), before)) / delta

  if tangent == "jvp":
    return exact(moving)
  if tangent == "semi" and dx is not None:
    value, change = exact([0])
    return value, change + difference(value, moving[1:])
  value = call(params, {})
  return value, difference(value, moving)


def normalize(g, t, *, norm="rms", power=1, c=0.1):
  """`g / (|g|^power + c)` for each sample, or each frame where t is `[B, F]`.

  "rms" measures |g| as the root of the *mean* square: c then means the same for a toy and for a
  video. "l2" is the papers' root of the *sum* of squares, as far as c goes: it is "rms" with c
  divided by D^(power / 2), D = elements in a sample. Their c = 0.1 is 7e-5 in units of the root
  mean square for the 2.1M latents of a 480p clip, which is to say nothing. (Their factor
  D^(power / 2) on the result is left out; learning rates and `scale` are the place for it.)

  Args:
    g: tangent `[B, F, ...]`.
    t: times, for their shape.
    norm: one of `NORMS`; "none" returns g.
    power: 1 for sCM's form, 2 for that of rCM's printed equation and of MeanFlow's weight.
    c: what keeps small tangents small.

  Returns:
    The normalised tangent and |g| (root mean square) in the shape of t.
  """
  size = jnp.sqrt(parts.mean_like(g**2, t))
  if norm == "none":
    return g, size
  c = c / (g.size / t.size) ** (power / 2) if norm == "l2" else c
  return g / paths.expand(size**power + c, g), size


def warmed_up(step, warmup):
  """`min(1, step / warmup)`: how much of the derivative counts by now; 1 without warm-up."""
  if not warmup:
    return jnp.float32(1)
  return jnp.minimum(jnp.asarray(step, jnp.float32) / warmup, 1)


def check(tangent, delta):
  """Raises a ValueError for an unknown `tangent` or a delta that is no share."""
  parts.check_choice("tangent", tangent, METHODS)
  if not 0 < delta < 1:
    raise ValueError(f"delta is a share of the way to the earlier time, in (0, 1), got {delta}.")


def check_norm(norm, power, c):
  """Raises a ValueError for what `normalize` cannot mean."""
  parts.check_choice("norm", norm, NORMS)
  if power not in (1, 2):
    raise ValueError(f"power must be 1 (|g| + c) or 2 (|g|^2 + c), got {power!r}.")
  if not c > 0:
    raise ValueError(f"c keeps small tangents small and must be positive, got {c}.")
