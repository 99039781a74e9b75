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


def _factor(x, rows):
  """Mean of x[rows], and a matrix R with R'R = cov(x[rows]).

  R holds the centred rows, each distinct one once and weighed by how often it was drawn, or their
  triangular factor where that is smaller.
  """
  rows, counts = np.unique(rows, return_counts=True)
  total = counts.sum()
  mean = counts @ x[rows] / total
  root = np.sqrt(counts / (total - 1))[:, None] * (x[rows] - mean)
  return mean, np.linalg.qr(root, mode="r") if len(root) > root.shape[1] else root


def frechet_of_rows(a, b):
  """`frechet_distance(a[i], b[j])` as a function of row numbers: for resampling, without copies.

  Rows drawn twice are weighed instead of repeated, which makes a bootstrap sample a third smaller.

  Args:
    a: [n, d].
    b: [m, d].

  Returns:
    Function (i, j), arrays of row numbers -> float.

  Raises:
    ValueError: on fewer than two rows, different d, NaN.
  """
  a, b = _samples(a, b)

  def at(i, j):
    (mean_a, x), (mean_b, y) = _factor(a, i), _factor(b, j)
    shift = mean_a - mean_b
    cross = np.linalg.svd(x @ y.T, compute_uv=False).sum()
    return max(float(shift @ shift + np.sum(x * x) + np.sum(y * y) - 2 * cross), 0.0)

  return at


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
  return frechet_of_rows(a, b)(np.arange(len(a)), np.arange(len(b)))


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


def kernel_of_rows(a, b):
  """`kernel_distance(a[i], b[j])` as a function of row numbers: three Gram matrices, made once.

  Args:
    a: [n, d].
    b: [m, d].

  Returns:
    Function (i, j), arrays of row numbers -> float.

  Raises:
    ValueError: on fewer than two rows, different d, NaN.
  """
  a, b = _samples(a, b)

  def kernel(x, y):
    s = x @ y.T / x.shape[1] + 1
    return s * s * s

  aa, bb, ab = kernel(a, a), kernel(b, b), kernel(a, b)

  def within(k, w):
    n = w.sum()
    return (w @ k @ w - w @ np.diagonal(k)) / (n * (n - 1))

  def at(i, j):
    p, q = (np.bincount(r, minlength=len(x)).astype(float) for r, x in ((i, a), (j, b)))
    return float(within(aa, p) + within(bb, q) - 2 * (p @ ab @ q) / (p.sum() * q.sum()))

  return at


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
  return kernel_of_rows(a, b)(np.arange(len(a)), np.arange(len(b)))
