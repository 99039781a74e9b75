"""Rectified flow and its twins: how times, states and predictions turn into each other.

The library's own path is rectified flow (RF), `x_t = (1 - t) x0 + t eps` with `v = eps - x0` and
t = 1 noise. TrigFlow and EDM are the same bridge from data to noise under another time and another
scale, so one is exactly the other: nothing here is approximate.

Everything is elementwise, works in whatever precision it is given (float32 time with bfloat16
states computes in float32 and returns bfloat16) and is safe to differentiate.

Ends of the interval. At t = 0 a state holds no noise, so v (from x0) and the score cannot be told
from it; at t = 1 it holds no data, so v cannot be told from eps. There the conversion returns 0
instead of infinity: a clean frame in a packed sequence stays where it is and its gradient is 0.
"""

import dataclasses

import jax
import jax.numpy as jnp
from jax.scipy.special import logit, ndtr, ndtri

# ------------------------------------------------------------------------------------------------
# Rectified flow
# ------------------------------------------------------------------------------------------------


def wider(a, b):
  """The smallest dtype that holds both dtypes, also where implicit promotion is forbidden."""
  with jax.numpy_dtype_promotion("standard"):
    return jnp.promote_types(a, b)


def expand(t, x):
  """Reshapes a time so that it broadcasts against a state; never lowers its precision.

  Args:
    t: time, scalar, `[B]` or `[B, F]`.
    x: state `[B, F, ...]`.

  Returns:
    t with trailing axes of size 1 up to the rank of x, in the wider dtype of the two.

  Raises:
    ValueError: if t is not a floating number or its axes are not the leading axes of x.
  """
  t, x = jnp.asarray(t), jnp.asarray(x)
  if not jnp.issubdtype(t.dtype, jnp.floating):
    raise ValueError(f"Time must be floating point in [0, 1], got dtype {t.dtype}.")
  fits = t.ndim <= x.ndim and all(a in (1, b) for a, b in zip(t.shape, x.shape, strict=False))
  if not fits:
    raise ValueError(f"Time of shape {t.shape} must match the leading axes of a state {x.shape}.")
  return t.astype(wider(t.dtype, x.dtype)).reshape(t.shape + (1,) * (x.ndim - t.ndim))


def _lift(t, *states):
  """Time and states in one dtype wide enough for both, and the cast back to the states' own."""
  t = expand(t, states[0])
  out = jnp.asarray(states[0]).dtype
  return t, *(jnp.asarray(x).astype(t.dtype) for x in states), lambda y: y.astype(out)


def _divide(a, b):
  """a / b, and 0 where b is 0; its gradients are 0 there too (never NaN)."""
  zero = b == 0
  return jnp.where(zero, 0, a / jnp.where(zero, 1, b))


def interpolate(x0, eps, t):
  """`x_t = (1 - t) x0 + t eps`: data x0 at t = 0, noise eps at t = 1 (Liu et al. 2022, eq. 1)."""
  t, x0, eps, cast = _lift(t, x0, eps)
  return cast((1 - t) * x0 + t * eps)


def velocity(x0, eps):
  """`v = eps - x0 = dx_t/dt`, the library's currency."""
  return eps - x0


def x0_from_v(x, v, t):
  """`x0 = x_t - t v`. Exact at both ends."""
  t, x, v, cast = _lift(t, x, v)
  return cast(x - t * v)


def eps_from_v(x, v, t):
  """`eps = x_t + (1 - t) v`. Exact at both ends."""
  t, x, v, cast = _lift(t, x, v)
  return cast(x + (1 - t) * v)


def v_from_x0(x, x0, t):
  """`v = (x_t - x0) / t`; 0 at t = 0, where x0 = x_t says nothing about v."""
  t, x, x0, cast = _lift(t, x, x0)
  return cast(_divide(x - x0, t))


def v_from_eps(x, eps, t):
  """`v = (eps - x_t) / (1 - t)`; 0 at t = 1, where eps = x_t says nothing about v."""
  t, x, eps, cast = _lift(t, x, eps)
  return cast(_divide(eps - x, 1 - t))


def score_from_v(x, v, t):
  """`grad log p_t(x) = -E[eps | x_t] / t = -(x_t + (1 - t) v) / t`; 0 at t = 0."""
  t, x, v, cast = _lift(t, x, v)
  return cast(_divide(-(x + (1 - t) * v), t))


def v_from_score(x, score, t):
  """`v = -(x_t + t score) / (1 - t)`, the inverse of `score_from_v`; 0 at t = 1."""
  t, x, score, cast = _lift(t, x, score)
  return cast(_divide(-(x + t * score), 1 - t))


def sigma_from_time(t):
  """Noise-to-data ratio `sigma = t / (1 - t)`; infinite at t = 1."""
  return t / (1 - jnp.asarray(t))


def time_from_sigma(sigma):
  """`t = sigma / (1 + sigma)`, the inverse of `sigma_from_time`; 1 at sigma = infinity."""
  return 1 / (1 + 1 / jnp.asarray(sigma))


# ------------------------------------------------------------------------------------------------
# Time shift
# ------------------------------------------------------------------------------------------------


def shift_time(t, shift):
  """`s t / (1 + (s - 1) t)`: multiplies sigma = t / (1 - t) by s; 0 and 1 stay where they are.

  Larger and longer videos want more of their steps at high noise (Esser et al. 2024, section
  5.3.2). Works on Python numbers, NumPy and JAX arrays.

  Raises:
    ValueError: if shift is not positive.
  """
  _check_positive("shift", shift)
  return shift * t / (1 + (shift - 1) * t)


def unshift_time(t, shift):
  """The inverse of `shift_time`: `t / (s + (1 - s) t)`."""
  _check_positive("shift", shift)
  return t / (shift + (1 - shift) * t)


def _check_positive(name, value):
  if isinstance(value, int | float) and not value > 0:
    raise ValueError(f"{name} must be positive, got {value}.")


# ------------------------------------------------------------------------------------------------
# Other paths, as wrappers around rectified flow
# ------------------------------------------------------------------------------------------------


@dataclasses.dataclass(frozen=True)
class TrigFlow:
  """TrigFlow with sigma_data = 1 (Lu and Song 2024, section 3; rCM's wrapper).

  `x_tau = cos(tau) x0 + sin(tau) eps` for tau in [0, pi/2], `F = cos(tau) eps - sin(tau) x0 =
  dx/dtau` and `x0 = cos(tau) x - sin(tau) F`. Variance preserving v-prediction is this with
  tau = arctan2(sigma, alpha). With t the RF time and Z = cos(tau) + sin(tau):

      t = sin(tau) / Z,   x_tau = Z x_t,   F = (cos(tau) - sin(tau)) x_t + v / Z.

  No conversion divides by sin(tau) or cos(tau), so all are exact at both ends.
  """

  def time_from_rf(self, t):
    """`tau = arctan(t / (1 - t))`."""
    t = jnp.asarray(t)
    return jnp.arctan2(t, 1 - t)

  def time_to_rf(self, tau):
    """`t = sin(tau) / (sin(tau) + cos(tau))`."""
    return jnp.sin(tau) / (jnp.sin(tau) + jnp.cos(tau))

  def interpolate(self, x0, eps, tau):
    """`x_tau = cos(tau) x0 + sin(tau) eps`."""
    tau, x0, eps, cast = _lift(tau, x0, eps)
    return cast(jnp.cos(tau) * x0 + jnp.sin(tau) * eps)

  def velocity(self, x0, eps, tau):
    """`F = cos(tau) eps - sin(tau) x0`."""
    tau, x0, eps, cast = _lift(tau, x0, eps)
    return cast(jnp.cos(tau) * eps - jnp.sin(tau) * x0)

  def x0_from_f(self, x, f, tau):
    """`x0 = cos(tau) x_tau - sin(tau) F`."""
    tau, x, f, cast = _lift(tau, x, f)
    return cast(jnp.cos(tau) * x - jnp.sin(tau) * f)

  def from_rf(self, x, v, t):
    """State and prediction at RF time t -> `(x_tau, F)` at `time_from_rf(t)`."""
    t, x, v, cast = _lift(t, x, v)
    b = jnp.sqrt(t**2 + (1 - t) ** 2)  # = 1 / Z, written in RF time
    return cast(x / b), cast((1 - 2 * t) / b * x + b * v)

  def to_rf(self, x, f, tau):
    """State and prediction at tau -> `(x_t, v)` at `time_to_rf(tau)`."""
    tau, x, f, cast = _lift(tau, x, f)
    c, s = jnp.cos(tau), jnp.sin(tau)
    x = x / (c + s)
    return cast(x), cast((c + s) * (f - (c - s) * x))

  def wrap(self, velocity):
    """Turns an RF network `velocity(x_t, t) -> v` into a TrigFlow one `(x_tau, tau) -> F`."""

    def trig(x, tau):
      state, _ = self.to_rf(x, jnp.zeros_like(x), tau)
      t = self.time_to_rf(tau)
      return self.from_rf(state, velocity(state, t), t)[1]

    return trig


@dataclasses.dataclass(frozen=True)
class EDM:
  """EDM (Karras et al. 2022): `x_sigma = x0 + sigma eps`, denoiser `D(x, sigma) = x0`.

  `sigma = t / (1 - t)`, `x_sigma = (1 + sigma) x_t` and `D = x_t - t v`. RF time 1 is sigma =
  infinity: give RF times below 1. `sigma_data` enters the preconditioning of a raw network only.
  """

  sigma_data: float = 0.5

  def __post_init__(self):
    _check_positive("sigma_data", self.sigma_data)

  def time_from_rf(self, t):
    """`sigma = t / (1 - t)`; infinite at t = 1."""
    return sigma_from_time(t)

  def time_to_rf(self, sigma):
    """`t = sigma / (1 + sigma)`."""
    return time_from_sigma(sigma)

  def interpolate(self, x0, eps, sigma):
    """`x_sigma = x0 + sigma eps`."""
    sigma, x0, eps, cast = _lift(sigma, x0, eps)
    return cast(x0 + sigma * eps)

  def from_rf(self, x, v, t):
    """State and velocity at RF time t < 1 -> `(x_sigma, D)` at `time_from_rf(t)`."""
    t, x, v, cast = _lift(t, x, v)
    return cast(x / (1 - t)), cast(x - t * v)

  def to_rf(self, x, denoised, sigma):
    """State and denoised data at sigma -> `(x_t, v)`; v is 0 at sigma = 0 (see the module)."""
    sigma, x, denoised, cast = _lift(sigma, x, denoised)
    state, t = x / (1 + sigma), time_from_sigma(sigma)
    return cast(state), cast(_divide(state - denoised, t))

  def wrap(self, velocity):
    """Turns an RF network `velocity(x_t, t) -> v` into a denoiser `(x_sigma, sigma) -> x0`."""

    def denoiser(x, sigma):
      wide, state, cast = _lift(sigma, x)
      state, t = cast(state / (1 + wide)), self.time_to_rf(sigma)
      return x0_from_v(state, velocity(state, t), t)

    return denoiser

  def coefficients(self, sigma):
    """`(c_skip, c_out, c_in, c_noise)` of `D = c_skip x + c_out net(c_in x, c_noise)` (table 1)."""
    sigma = jnp.asarray(sigma)
    total = jnp.sqrt(sigma**2 + self.sigma_data**2)
    c_skip, c_out = self.sigma_data**2 / total**2, sigma * self.sigma_data / total
    return c_skip, c_out, 1 / total, jnp.log(sigma) / 4


# ------------------------------------------------------------------------------------------------
# Time samplers
# ------------------------------------------------------------------------------------------------


@dataclasses.dataclass(frozen=True)
class Uniform:
  """`t = shift_time(u, shift)` with u uniform in [0, 1) (Causal-rCM, table 3)."""

  shift: float = 1.0

  def __post_init__(self):
    _check_positive("shift", self.shift)

  def sample(self, key, shape=()):
    """Draws float32 times of the given shape."""
    return self.icdf(jax.random.uniform(key, shape, jnp.float32))

  def cdf(self, t):
    """Probability of a time below t in [0, 1]."""
    return unshift_time(t, self.shift)

  def icdf(self, u):
    """The time below which a share u in [0, 1] of all draws lies."""
    return shift_time(u, self.shift)


@dataclasses.dataclass(frozen=True)
class LogitNormal:
  """`logit(t) ~ N(mean, std^2)` (Esser et al. 2024, section 3.1). A shift s adds log s to mean."""

  mean: float = 0.0
  std: float = 1.0

  def __post_init__(self):
    _check_positive("std", self.std)

  def sample(self, key, shape=()):
    """Draws float32 times of the given shape."""
    return jax.nn.sigmoid(self.mean + self.std * jax.random.normal(key, shape, jnp.float32))

  def cdf(self, t):
    """Probability of a time below t in [0, 1]."""
    return ndtr((logit(t) - self.mean) / self.std)

  def icdf(self, u):
    """The time below which a share u in [0, 1] of all draws lies."""
    return jax.nn.sigmoid(self.mean + self.std * ndtri(u))


@dataclasses.dataclass(frozen=True)
class LogNormal(LogitNormal):
  """`log sigma ~ N(mean, std^2)`, returned as RF time `sigma / (1 + sigma)` (Karras et al. 2022).

  As `log sigma = logit(t)` this is `LogitNormal` with the same numbers, under the name and with
  the defaults that consistency papers quote (rCM: -0.8, 1.6; video adds `log(F) / 2` to mean).
  """

  mean: float = -0.8
  std: float = 1.6
