"""MeanFlow: learn the average velocity over every interval [s, t], from data alone."""

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from vidstep import paths
from vidstep.losses import parts, tangents
from vidstep.losses.base import Objective, Velocity

TIME = paths.LogitNormal(-0.4, 1.0)


def mean_flow(
  velocity: Velocity,
  *,
  role: str = "model",
  direction: str = "data",
  equal: float = 0.75,
  zero: float = 0.0,
  power: float = 1.0,
  c: float = 1e-3,
  tangent: str = "jvp",
  delta: float = 1e-3,
  time=TIME,
  guidance: float = 1.0,
  mix: float = 0.0,
  drop: float = 0.0,
  unconditional: Callable[[Any], Any] | None = None,
  chunk: int | None = None,
  scale: float = 1.0,
) -> Objective:
  """MeanFlow (Geng et al. 2025a) and improved MeanFlow (Geng et al. 2025b, arXiv 2512.02012).

  The network u = v_theta(x, t, s) takes x_t to s in one step, X(x, t, s) = x - (t - s) u, if u is
  the average velocity of the flow over [s, t]; and that is so if, for every t and s,

      u = v - (t - s) du/dt,      d/dt along (dx/dt, dt, ds) = (v, 1, 0)
      L = E scale w mean |u - sg[v - (t - s) du/dt]|^2,      w = sg (mean |..|^2 + c)^-power

  with v = eps - x0, a pair t > s of draws, s = t in a share `equal` of the samples (where this is
  flow matching) and s = 0 in a share `zero`. direction="network" takes the derivative along
  u(x, t, t), the network's own velocity, instead of along eps - x0: the improved MeanFlow, there
  written as a regression of V = u + (t - s) sg du/dt on eps - x0. It costs one forward. At the
  optimum the residual is eps - x0 - v(x_t), times dX/dx if along eps - x0: the network's direction
  is the quieter one where the flow expands (between modes) and the noisier one where it contracts.

  Guidance is inside, and sampling costs one forward a step: with w the `guidance` and k the `mix`,

      v = w (1 - k) (eps - x0) + k u(x, t, t, c) + (1 - k - w (1 - k)) u(x, t, t, none)

  replaces eps - x0; its fixed point is v_u + w (v_c - v_u). (The paper's omega is w (1 - k) and its
  kappa k.) u(x, t, t, none) is learned from samples whose condition is dropped.

  **With power > 0 the optimum is another one.** With power = 0 the residual enters linearly, and
  u(x, t, t) is E[eps - x0 | x_t]. The papers' power = 1 divides by the residual, and that has a
  spread: modes that are rare or far away count for less. The bias goes as c grows and where |..|^2
  hardly varies, as it does in many dimensions. AnyFlow's first stage (equal=0.5, zero=0.25,
  tangent="difference") rescales samples by their own error, which is power = 1 too.

  Args:
    velocity: the network, `velocity(params, x [B, F, H, W, C], t, cond, s=s) -> u`, t and s [B] or
      [B, F]; `VideoDiT(second_time=True)` is one (in a config: `model.second_time=True`).
    role: its name.
    direction: "data" or "network", along which du/dt is taken.
    equal: share of samples with s = t.
    zero: share of samples with s = 0.
    power: of the adaptive weight; 0: none.
    c: of the adaptive weight, in units of a mean square.
    tangent: "jvp", "semi" or "difference", see `tangents.derivative`.
    delta: step of the differences, a share of t - s.
    time: sampler of which t and s are the larger and the smaller of two draws.
    guidance: w; 1 is none.
    mix: k in [0, 1): share of the network's own guided velocity in v, which lowers the noise.
    drop: probability of replacing a sample's condition by `unconditional(cond)`.
    unconditional: cond -> cond of the same structure (`vidstep.models.null_cond`).
    chunk: number of frames that share t and s; None: all. Frames move together, each in proportion
      to its own t - s.
    scale: factor on the loss.

  Returns:
    Objective with one role and the metrics `loss`, `tangent_norm` (root mean square of
    (t - s) du/dt) and, by quarter of t, `loss_t0` .. (mean |..|^2, without w) and
    `tangent_norm_t0` ..

  Raises:
    ValueError: on shares that are none, an unknown direction or tangent, or guidance or drop
      without what they need.
  """
  parts.check_choice("direction", direction, ("data", "network"))
  if not 0 <= drop < 1 or not 0 <= mix < 1:
    raise ValueError(f"drop and mix are shares in [0, 1), got {drop} and {mix}.")
  if (guidance != 1 or drop) and unconditional is None:
    raise ValueError(
      "guidance and drop need unconditional=..., a function cond -> cond without the condition "
      "(vidstep.models.null_cond)."
    )
  if guidance != 1 and not drop:
    raise ValueError(
      f"guidance={guidance} inside MeanFlow needs drop > 0: the network learns its unconditional "
      "velocity from samples whose condition was dropped."
    )

  def field(own, nets, x, t, cond, x0, eps):
    del nets
    v = paths.velocity(x0, eps)
    if mix or guidance != 1:
      share = guidance * (1 - mix)
      v = share * v + (mix * own(cond) if mix else 0)
      v = v + ((1 - mix - share) * own(unconditional(cond)) if guidance != 1 else 0)
    return v, (own(cond) if direction == "network" else v)

  def prepare(cond, key, batch):
    return parts.drop_condition(cond, unconditional, drop, key, batch) if drop else cond

  loss = eulerian(
    velocity,
    field,
    prepare=prepare,
    pairs=Pairs(time, equal, zero),
    power=power,
    c=c,
    tangent=tangent,
    delta=delta,
    chunk=chunk,
    scale=scale,
  )
  return Objective(roles=(role,), loss={role: loss})


@dataclasses.dataclass(frozen=True)
class Pairs:
  """Two draws of `time`, t the later and s the earlier; s = t and s = 0 in given shares of samples.

  Raises:
    ValueError: if the shares are negative or sum to more than 1.
  """

  time: Any
  equal: float
  zero: float

  def __post_init__(self):
    if not (self.equal >= 0 and self.zero >= 0 and self.equal + self.zero <= 1):
      raise ValueError(
        f"equal and zero are shares of the samples, got {self.equal} and {self.zero}."
      )

  def sample(self, key, x0, chunk=None):
    """t and s, `[B]`, or `[B, F]` where chunk is given."""
    a_key, b_key, kind_key = jax.random.split(key, 3)
    a, b = (parts.draw_times(self.time, k, x0, chunk) for k in (a_key, b_key))
    t, s = jnp.maximum(a, b), jnp.minimum(a, b)
    kind = paths.expand(jax.random.uniform(kind_key, x0.shape[:1]), t)
    s = jnp.where(kind < self.equal, t, s)
    return t, jnp.where((kind >= self.equal) & (kind < self.equal + self.zero), 0, s)

  def cdf(self, t):
    """Probability of a t below t."""
    return self.time.cdf(t) ** 2


def eulerian(velocity, field, *, prepare=None, pairs, power, c, tangent, delta, chunk, scale):
  """`E scale w mean |u - sg[v - (t - s) du/dt]|^2`, with v from data or from a teacher.

  Args:
    velocity: `(params, x, t, cond, s=s) -> u`.
    field: `(own, nets, x, t, cond, x0, eps) -> (v, dx/dt)`; own(cond) is u(x, t, t, cond), stopped.
    prepare: None, or `(cond, key, batch size) -> cond`.
    pairs: `Pairs`.
    power, c, tangent, delta, chunk, scale: as in `mean_flow`.

  Returns:
    A loss with the signature of `Objective`.
  """
  check_regression(power, c, tangent, delta)

  def loss(trainable, nets, aux, batch, key, step):
    del step
    time_key, noise_key, drop_key = jax.random.split(key, 3)
    x0 = parts.wide(batch.x0)
    cond = prepare(batch.cond, drop_key, x0.shape[0]) if prepare else batch.cond
    t, s = pairs.sample(time_key, x0, chunk)
    eps = parts.noise_like(noise_key, x0)
    x = paths.interpolate(x0, eps, t)
    frozen = jax.lax.stop_gradient(trainable)
    own = lambda cond: parts.wide(velocity(frozen, x, t, cond, s=t))
    v, along = field(own, nets, x, t, cond, x0, eps)
    network = lambda params, x, t, s: velocity(params, x, t, cond, s=s)
    u, change = tangents.derivative(
      network, trainable, x, (t, s), paths.expand(t - s, x) * along, (t - s, None),
      tangent=tangent, delta=delta,
    )  # fmt: skip
    return regression(u, v - change, change, t, aux, time=pairs, power=power, c=c, scale=scale)

  return loss


def regression(u, target, change, t, aux, *, time, power, c, scale):
  """`scale E w mean |u - sg target|^2` with its adaptive weight, and what is logged about it."""
  error = parts.mean_like((u - jax.lax.stop_gradient(target)) ** 2, t)
  weight = jax.lax.stop_gradient((error + c) ** -power) if power else 1.0
  value = scale * jnp.mean(weight * error)
  size = jnp.sqrt(parts.mean_like(jax.lax.stop_gradient(change) ** 2, t))
  metrics = {"loss": value, "tangent_norm": jnp.mean(size)}
  metrics |= parts.by_time("loss", error, t, time)
  return value, (metrics | parts.by_time("tangent_norm", size, t, time), aux)


def check_regression(power, c, tangent, delta):
  """Raises a ValueError for an adaptive weight or a tangent that cannot be meant."""
  tangents.check(tangent, delta)
  if power < 0 or not c > 0:
    raise ValueError(f"power must not be negative and c must be positive, got {power} and {c}.")
