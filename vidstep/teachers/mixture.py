"""Mixtures of Gaussian videos: several modes, velocity and score in closed form, flows by an ODE.

Component k is a `GaussianVideo`, chosen once per clip. All that is seen of a clip, clean context
and noisy frames, tells which component it may be, so past frames matter here beyond the last one:
a causal model of a mixture needs its whole context. Signatures are those of `gaussian`.
"""

from typing import NamedTuple

import flax.struct
import jax
import jax.numpy as jnp
import numpy as np

from vidstep.models.cond import Cond
from vidstep.teachers import gaussian
from vidstep.teachers.gaussian import GaussianVideo, Posterior


@flax.struct.dataclass
class MixtureVideo:
  """Parameters of the mixture.

  Attributes:
    log_weight: `[K]`, logarithms of the prior weights (which sum to 1).
    components: a `GaussianVideo` whose arrays have a leading axis K.
  """

  log_weight: jax.Array
  components: GaussianVideo


def random_mixture(seed=0, *, modes=3, spread=3.0, **kwargs):
  """Draws a mixture of `gaussian.random_gaussian` chains with weights 1 : 2 : ... : K.

  Args:
    seed: integer; the same mixture on every platform.
    modes: number of components.
    spread: factor on the means of the first frames; larger separates the modes.
    **kwargs: of `gaussian.random_gaussian`.
  """
  parts = [gaussian.random_gaussian(1000 * seed + k, **kwargs) for k in range(modes)]
  parts = jax.tree.map(lambda *leaves: np.stack(leaves), *parts)
  parts = parts.replace(start_mean=spread * parts.start_mean)
  weight = np.arange(1.0, modes + 1.0)
  return jax.tree.map(jnp.asarray, MixtureVideo(np.log(weight / weight.sum()), parts))


def draw(params, key, shape, cond=None):
  """Draws clips as `gaussian.draw` does, each from a component that its context allows."""
  pick, rest = jax.random.split(key)
  log_weight = context_log_weight(params, cond)
  which = jax.random.categorical(pick, log_weight, shape=shape[:1])
  clips = jax.vmap(lambda part: gaussian.draw(part, rest, shape, cond))(params.components)
  return clips[which, jnp.arange(shape[0])]


@gaussian.full_precision
def moments(params, batch, frames, actions=None):
  """Mean `[batch, F D]` and covariance `[batch, F D, F D]` of clips, over components as well."""
  means, covs = jax.vmap(lambda part: gaussian.moments(part, batch, frames, actions))(
    params.components
  )
  weight = jnp.exp(params.log_weight)
  mean = jnp.einsum("k,kbi->bi", weight, means)
  off = means - mean[None]
  between = jnp.einsum("k,kbi,kbj->bij", weight, off, off)
  return mean, between + jnp.einsum("k,kij->ij", weight, covs)[None]


# ------------------------------------------------------------------------------------------------
# Which component
# ------------------------------------------------------------------------------------------------


class Law(NamedTuple):
  """A clip as a mixture: log weights `[K]` or `[B, K]`, and `gaussian.Law` with leading axis K."""

  log_weight: jax.Array
  parts: gaussian.Law


def context_log_weight(params, cond):
  """Log weight of each component given the clean context: `[B, K]`, or `[K]` if there is none."""
  if cond is None or cond.context is None:
    return params.log_weight
  seen = cond.context.astype(params.log_weight.dtype)
  actions = None if cond.actions is None else cond.actions[:, : seen.shape[1]]
  return log_responsibilities(params, seen, jnp.zeros(seen.shape[:1]), Cond(actions=actions))


def law(params, x, cond=None):
  """The `Law` of a clip of the shape of x given context and actions, in the precision of x."""
  parts = jax.vmap(lambda part: gaussian.law(part, x, cond))(params.components)
  return Law(context_log_weight(params, cond).astype(x.dtype), parts)


def _joint(law, x, t):
  """Posteriors under each component (leading axis K) and `log p(k, x_t | context)`, `[B, K]`."""
  parts = jax.vmap(lambda part: gaussian.posterior_of(part, x, t))(law.parts)
  log_density = parts.log_density.T
  return parts, jnp.broadcast_to(law.log_weight, log_density.shape) + log_density


def log_responsibilities(params, x, t, cond=None):
  """`log p(k | x_t, context)`, `[B, K]`: which mode a clip, clean or noisy, belongs to."""
  return jax.nn.log_softmax(_joint(law(params, x, cond), x, t)[1], axis=1)


def mode_shares(params, x, cond=None):
  """Share of the clips x that is closest to each mode (most responsible at t = 0), `[K]`."""
  nearest = jnp.argmax(log_responsibilities(params, x, jnp.zeros(x.shape[:1]), cond), axis=1)
  return jnp.mean(jax.nn.one_hot(nearest, len(params.log_weight), dtype=x.dtype), axis=0)


def mode_coverage(params, x, cond=None):
  """`sum_k min(share_k, weight_k)` in [0, 1]: 1 if every mode has its due, 0.5 if half is missing.

  It is one minus the total variation distance between the shares of modes in the clips x and the
  weights of the mixture given their context.
  """
  weight = jnp.exp(context_log_weight(params, cond)).reshape(-1, len(params.log_weight))
  return jnp.minimum(mode_shares(params, x, cond), weight.mean(0).astype(x.dtype)).sum()


# ------------------------------------------------------------------------------------------------
# Diffusion
# ------------------------------------------------------------------------------------------------


@gaussian.full_precision
def posterior_of(law, x, t):
  """`gaussian.Posterior` of a mixture: that of each component, averaged by responsibility."""
  parts, joint = _joint(law, x, t)
  gamma = jax.nn.softmax(joint, axis=1)
  average = lambda y: jnp.einsum("bk,kb...->b...", gamma, y)
  return Posterior(
    x0=average(parts.x0),
    eps=average(parts.eps),
    score=average(parts.score),
    log_density=jax.nn.logsumexp(joint, axis=1),
  )


def posterior(params, x, t, cond=None):
  """`gaussian.Posterior` of a clip given actions and clean context; t is `[B]` or `[B, F]`."""
  return posterior_of(law(params, x, cond), x, t)


def velocity(params, x, t, cond=None):
  """`v = E[eps - x0 | x_t]`: the exact teacher."""
  p = posterior(params, x, t, cond)
  return p.eps - p.x0


def flow_map(params, x, t, cond=None, *, s, steps=64):
  """Carries x from time t to time s along `dx/dt = v` by classical Runge-Kutta (order 4).

  Args:
    params: `MixtureVideo`.
    x: `[B, F, H, W, C]` at time t; float64 for an oracle.
    t: `[B]`, one time per clip.
    cond: `Cond` or None.
    s: `[B]`.
    steps: Runge-Kutta steps, of four velocities each.
  """
  t, s = gaussian.clip_time(t, x), gaussian.clip_time(s, x)
  h = (s - t) / steps
  wide = h.reshape(-1, *(1,) * (x.ndim - 1))
  given = law(params, x, cond)

  def field(y, r):
    p = posterior_of(given, y, r)
    return p.eps - p.x0

  def step(y, i):
    r = t + i * h
    a = field(y, r)
    b = field(y + wide / 2 * a, r + h / 2)
    c = field(y + wide / 2 * b, r + h / 2)
    d = field(y + wide * c, r + h)
    return y + wide / 6 * (a + 2 * b + 2 * c + d), None

  return jax.lax.scan(step, x, jnp.arange(steps, dtype=x.dtype))[0]


def consistency(params, x, t, cond=None, *, steps=64):
  """The consistency function: `flow_map` to s = 0."""
  return flow_map(params, x, t, cond, s=jnp.zeros_like(t), steps=steps)
