"""Distances between two samples of feature vectors, float64, at ease with few or flat samples."""

import numpy as np


def _samples(a, b):
  a, b = np.asarray(a, np.float64), np.asarray(b, np.float64)
  for name, x in (("a", a), ("b", b)):
    if x.ndim != 2 or len(x) < 2:
      raise ValueError(f"{name} has shape {x.shape}; give at least two feature vectors as [n, d].")
    if not np.isfinite(x).all():
      raise ValueError(f"{name} holds NaN or infinity: a distance of it would mean nothing.")
  if a.shape[1] != b.shape[1]:
    raise ValueError(f"a has {a.shape[1]} features and b has {b.shape[1]}: they must be the same.")
  return a, b


def _root(x):
  """A matrix R with R'R = cov(x): centred rows, or their triangular factor if that is smaller."""
  x = (x - x.mean(axis=0)) / np.sqrt(len(x) - 1)
  return np.linalg.qr(x, mode="r") if len(x) > x.shape[1] else x


def frechet_distance(a, b):
  r"""Squared Frechet (2-Wasserstein) distance between Gaussians fitted to two samples.

      |mu_a - mu_b|^2 + tr A + tr B - 2 tr (A B)^(1/2)

  With A = X'X and B = Y'Y, X and Y the centred samples over sqrt(n-1), the eigenvalues of A B are
  the squared singular values of X Y', so `tr (A B)^(1/2) = |X Y'|_*`, the nuclear norm. No d x d
  matrix is formed, no square root of a matrix taken, nothing complex discarded, and a sample
  smaller than its dimension is no special case. Sources: Heusel et al. 2017 (FID), Unterthiner et
  al. 2018 (FVD); Dowson and Landau 1982 for the closed form.

  The estimate is biased upwards, by more the smaller the sample: print n and `real_floor` beside.

  Args:
    a: [n, d].
    b: [m, d].

  Returns:
    float >= 0, in squared units of the features.

  Raises:
    ValueError: on fewer than two rows, different d, NaN.
  """
  a, b = _samples(a, b)
  shift = a.mean(axis=0) - b.mean(axis=0)
  x, y = _root(a), _root(b)
  cross = np.linalg.svd(x @ y.T, compute_uv=False).sum()
  return max(float(shift @ shift + np.sum(x * x) + np.sum(y * y) - 2 * cross), 0.0)


def frechet_gaussians(mean_a, cov_a, mean_b, cov_b):
  """The same distance from means [d] and covariances [d, d], for laws known in closed form.

  `tr (A B)^(1/2) = tr (A^(1/2) B A^(1/2))^(1/2)`: two symmetric eigenproblems, negative rounding
  clipped, so that singular covariances are fine.

  Returns:
    float >= 0.
  """
  mean_a, cov_a, mean_b, cov_b = (np.asarray(x, np.float64) for x in (mean_a, cov_a, mean_b, cov_b))
  values, vectors = np.linalg.eigh(cov_a)
  root = (vectors * np.sqrt(np.maximum(values, 0))) @ vectors.T
  cross = np.sqrt(np.maximum(np.linalg.eigvalsh(root @ cov_b @ root), 0)).sum()
  shift = mean_a - mean_b
  return max(float(shift @ shift + np.trace(cov_a) + np.trace(cov_b) - 2 * cross), 0.0)


def kernel_distance(a, b):
  """Unbiased squared maximum mean discrepancy under the kernel `k(x, y) = (x.y / d + 1)^3`.

      mean_{i != j} k(a_i, a_j) + mean_{i != j} k(b_i, b_j) - 2 mean_{i, j} k(a_i, b_j)

  Zero in expectation when both samples have one law, at every n: it may be negative. KID (Binkowski
  et al. 2018) on image features, KVD on I3D's; here one U-statistic over all rows, no subsets.

  Args:
    a: [n, d].
    b: [m, d].

  Returns:
    float.

  Raises:
    ValueError: on fewer than two rows, different d, NaN.
  """
  a, b = _samples(a, b)

  def kernel(x, y):
    s = x @ y.T / x.shape[1] + 1
    return s * s * s

  def within(x):
    k = kernel(x, x)
    return (k.sum() - np.trace(k)) / (len(x) * (len(x) - 1))

  return float(within(a) + within(b) - 2 * kernel(a, b).mean())
