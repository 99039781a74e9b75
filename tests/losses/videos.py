"""Small videos whose velocity is known: NumPy float64 for the oracles, JAX for the networks.

A video has 3 frames of 1x1 pixels with 2 channels, so its distribution is one over R^6: a mixture
of Gaussians, of which one component is a linear dynamical system across frames. Networks are the
exact velocity plus a residual `sum_k t^k (A_k x + b_k)`: at zero parameters they are the fixed
point, and gradients in A and b probe every linear direction away from it.
"""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np

FRAMES, CHANNELS = 3, 2
DIM = FRAMES * CHANNELS
SHAPE = (FRAMES, 1, 1, CHANNELS)
POWERS = 3


@dataclasses.dataclass(frozen=True)
class Videos:
  """A mixture of Gaussians over flattened videos; NumPy float64 throughout."""

  weights: np.ndarray  # [M]
  means: np.ndarray  # [M, DIM]
  covs: np.ndarray  # [M, DIM, DIM]

  def draw(self, rng, n):
    which = rng.choice(len(self.weights), size=n, p=self.weights)
    factors = np.linalg.cholesky(self.covs)
    return self.means[which] + np.einsum("nij,nj->ni", factors[which], rng.normal(size=(n, DIM)))

  def mean(self):
    return self.weights @ self.means

  def second_moment(self):
    each = self.covs + self.means[:, :, None] * self.means[:, None, :]
    return np.einsum("m,mij->ij", self.weights, each)

  def posterior_mean(self, x, t):
    """E[x0 | x_t = x], by Bayes' rule on x_t = (1 - t) x0 + t eps; x [N, DIM], t scalar."""
    logs, guesses = [], []
    for w, m, s in zip(self.weights, self.means, self.covs, strict=True):
      total = (1 - t) ** 2 * s + t**2 * np.eye(DIM)
      rest = x - (1 - t) * m
      solved = np.linalg.solve(total, rest.T).T
      logs.append(np.log(w) - 0.5 * np.sum(rest * solved, 1) - 0.5 * np.linalg.slogdet(total)[1])
      guesses.append(m + (1 - t) * solved @ s)
    logs = np.array(logs)
    share = np.exp(logs - logs.max(0))
    return np.einsum("mn,mni->ni", share / share.sum(0), np.array(guesses))

  def velocity(self, x, t):
    if t == 0:  # x0 = x is known, the noise is not
      return -x
    return (x - self.posterior_mean(x, t)) / t

  def params(self):
    """The same, as float32 parameters of `velocity`."""
    values, vectors = np.linalg.eigh(self.covs)
    parts = {"log_w": np.log(self.weights), "mean": self.means, "var": values, "axes": vectors}
    return {name: jnp.asarray(value, jnp.float32) for name, value in parts.items()}


def dynamics():
  """One Gaussian: x_1 ~ N(m, 0.3 I), x_{f+1} = 0.9 R x_f + 0.2 noise, R a rotation by 0.6."""
  c, s = np.cos(0.6), np.sin(0.6)
  step = 0.9 * np.array([[c, -s], [s, c]])
  cov, mean = np.zeros((DIM, DIM)), np.zeros(DIM)
  block, centre = 0.3 * np.eye(2), np.array([0.8, -0.4])
  for f in range(FRAMES):
    here = slice(2 * f, 2 * f + 2)
    cov[here, here], mean[here] = block, centre
    for g in range(f):
      there = slice(2 * g, 2 * g + 2)
      across = np.linalg.matrix_power(step, f - g) @ cov[there, there]
      cov[here, there], cov[there, here] = across, across.T
    block, centre = step @ block @ step.T + 0.04 * np.eye(2), step @ centre
  return Videos(np.ones(1), mean[None], cov[None])


def mixture():
  """Two such systems that start apart, with unequal weights."""
  one = dynamics()
  other = -one.means + np.linspace(-0.5, 0.5, DIM)
  covs = np.concatenate([one.covs, 0.5 * one.covs + 0.05 * np.eye(DIM)])
  return Videos(np.array([0.7, 0.3]), np.concatenate([one.means, other]), covs)


def exact(params, x, t, cond):
  """Velocity of the mixture with parameters `Videos.params()`, in JAX; t is [B]."""
  del cond
  params = jax.tree.map(lambda a: a[None], params)
  flat, t = x.reshape(-1, 1, DIM), t.reshape(-1, 1, 1)
  rest = flat - (1 - t) * params["mean"]
  along = jnp.einsum("mij,nmi->nmj", params["axes"][0], rest)
  total = (1 - t) ** 2 * params["var"] + t**2
  logs = params["log_w"] - 0.5 * jnp.sum(along**2 / total + jnp.log(total), -1)
  pull = (t - (1 - t) * params["var"]) / total * along
  each = jnp.einsum("mij,nmj->nmi", params["axes"][0], pull) - params["mean"]
  return jnp.einsum("nm,nmi->ni", jax.nn.softmax(logs, -1), each).reshape(x.shape)


def frame_velocity(videos):
  """E[eps - x0 | x_t] of one Gaussian where every frame has its own time, solved per sample."""
  cov, mean = jnp.float32(videos.covs[0]), jnp.float32(videos.means)

  def velocity(x, t, cond):
    t = jnp.repeat(t, DIM // t.shape[1], axis=1)  # [B, DIM]
    keep = 1 - t
    total = keep[:, :, None] * cov[None] * keep[:, None, :] + jax.vmap(jnp.diag)(t**2)
    solved = jnp.linalg.solve(total, (x.reshape(-1, DIM) - keep * mean)[..., None])[..., 0]
    return (t * solved - (keep * solved) @ cov - mean).reshape(x.shape)

  return velocity


def residual(params, x, t):
  """`sum_k t^k (A_k x + b_k)`; t is [B] or [B, F]."""
  flat = x.reshape(-1, DIM)
  each = jnp.einsum("kij,nj->nki", params["A"], flat) + params["b"][None]
  t = jnp.broadcast_to(t.reshape(t.shape + (1,) * (2 - t.ndim)), (x.shape[0], FRAMES))
  # A stack, as XLA on CPUs miscompiles `t ** arange` where it fuses it with the product above.
  powers = jnp.stack([t**k for k in range(len(params["b"]))], 1)
  each = each.reshape(x.shape[0], -1, FRAMES, CHANNELS) * powers[..., None]
  return jnp.sum(each, 1).reshape(x.shape)


def near(base):
  """The student family `base(x, t) + residual`."""
  return lambda params, x, t, cond: base(x, t, cond) + residual(params, x, t)


def zeros(powers=POWERS):
  return {"A": jnp.zeros((powers, DIM, DIM)), "b": jnp.zeros((powers, DIM))}


def displaced(seed=0, size=0.3):
  """Parameters away from the fixed point."""
  rng = np.random.default_rng(seed)
  a, b = rng.normal(size=(POWERS, DIM, DIM)), rng.normal(size=(POWERS, DIM))
  return {"A": jnp.float32(size * a), "b": jnp.float32(size * b)}


def at_time(params, t):
  """A(t) and b(t) of a residual, float64."""
  powers = t ** np.arange(len(params["b"]))
  a, b = np.asarray(params["A"], np.float64), np.asarray(params["b"], np.float64)
  return np.tensordot(powers, a, 1), powers @ b


def shifted_quadrature(shift, points=200, low=0.0, high=1.0):
  """Nodes u in [low, high], their times `shift u / (1 + (shift - 1) u)` and weights, for du."""
  nodes, weights = np.polynomial.legendre.leggauss(points)
  u = low + (nodes + 1) / 2 * (high - low)
  return u, shift * u / (1 + (shift - 1) * u), weights / 2 * (high - low)


def velocity_gradient(videos, params, shift, weight=lambda t: 1.0):
  """`E_t w(t) t^k 2/D E[(A(t) x_t + b(t)) (x_t, 1)']`, the gradient of velocity regression.

  For a network `near` the exact velocity; everything but A and b cancels.
  """
  powers = len(params["b"])
  grad_a, grad_b = np.zeros((powers, DIM, DIM)), np.zeros((powers, DIM))
  for _, t, w in zip(*shifted_quadrature(shift), strict=True):
    a, b = at_time(params, t)
    mean = (1 - t) * videos.mean()
    square = (1 - t) ** 2 * videos.second_moment() + t**2 * np.eye(DIM)
    for k in range(powers):
      grad_a[k] += weight(t) * w * t**k * 2 / DIM * (a @ square + np.outer(b, mean))
      grad_b[k] += weight(t) * w * t**k * 2 / DIM * (a @ mean + b)
  return np.concatenate([grad_a.ravel(), grad_b.ravel()])


def batch_of(videos, n, seed=0):
  x0 = videos.draw(np.random.default_rng(seed), n)
  return jnp.asarray(x0.reshape(-1, *SHAPE), jnp.float32)


def flat(tree):
  return np.concatenate([np.asarray(leaf, np.float64).ravel() for leaf in jax.tree.leaves(tree)])


def wasserstein(mean_a, cov_a, mean_b, cov_b):
  """W2 between two Gaussians (Bures)."""
  values, vectors = np.linalg.eigh(cov_a)
  root = vectors * np.sqrt(np.maximum(values, 0)) @ vectors.T
  cross = np.sqrt(np.maximum(np.linalg.eigvalsh(root @ cov_b @ root), 0)).sum()
  gap = np.trace(cov_a) + np.trace(cov_b) - 2 * cross
  return np.sqrt(np.sum((mean_a - mean_b) ** 2) + max(gap, 0))


# ------------------------------------------------------------------------------------------------
# Flow maps of one Gaussian
# ------------------------------------------------------------------------------------------------


def numpy_average(videos, x, t, s):
  """`(x - X) / (t - s)` with X where the flow of one Gaussian takes x [N, DIM] from t to s < t."""
  values, vectors = np.linalg.eigh(videos.covs[0])
  width = lambda r: np.sqrt((1 - r) ** 2 * values + r**2)
  along = (x - (1 - t) * videos.means[0]) @ vectors
  return (x - (1 - s) * videos.means[0] - (along * width(s) / width(t)) @ vectors.T) / (t - s)


def average_velocity(videos):
  """The same as a network `(x, t, cond, s=0)`, also at s = t; no division cancels in float32."""
  values, vectors = np.linalg.eigh(videos.covs[0])
  var, axes = jnp.float32(values)[None], jnp.float32(vectors)
  mean = jnp.float32(videos.means)

  def velocity(x, t, cond, s=None):
    del cond
    t = t[:, None]
    s = jnp.zeros_like(t) if s is None else s[:, None]
    here, there = (jnp.sqrt((1 - r) ** 2 * var + r**2) for r in (t, s))
    pull = (var * (t + s - 2) + t + s) / (here * (here + there))
    return ((((x.reshape(-1, DIM) - (1 - t) * mean) @ axes) * pull) @ axes.T - mean).reshape(
      x.shape
    )

  return velocity
