"""Frechet and kernel distances against closed forms and oracles that share no code with them."""

import numpy as np
import pytest
from scipy import linalg

from vidstep.metrics.distribution import (
  frechet_distance,
  frechet_gaussians,
  frechet_of_rows,
  kernel_distance,
  kernel_of_rows,
)


def with_moments(rng, n, mean, cov):
  """A sample whose sample mean and covariance are exactly the given ones (needs n > d)."""
  x = rng.normal(size=(n, len(mean)))
  x -= x.mean(axis=0)
  x = x @ np.linalg.inv(np.linalg.cholesky(np.atleast_2d(np.cov(x.T)))).T
  return mean + x @ np.linalg.cholesky(cov).T


def covariance(rng, d):
  a = rng.normal(size=(d, d))
  return a @ a.T + 0.1 * np.eye(d)


def oracle(mean_a, cov_a, mean_b, cov_b):
  root = linalg.sqrtm(cov_a @ cov_b)
  return float(np.sum((mean_a - mean_b) ** 2) + np.trace(cov_a + cov_b - 2 * root.real))


def assert_frechet_is_right(fn):
  rng = np.random.default_rng(1)
  for d, n, m in ((1, 12, 9), (3, 20, 31), (8, 40, 25)):
    gaussians = [(rng.normal(size=d), covariance(rng, d)) for _ in range(2)]
    expected = oracle(*gaussians[0], *gaussians[1])
    a, b = (with_moments(rng, k, *g) for k, g in zip((n, m), gaussians, strict=True))
    np.testing.assert_allclose(fn(a, b), expected, rtol=1e-9)


def test_frechet_equals_the_closed_form_between_gaussians():
  assert_frechet_is_right(frechet_distance)


def test_frechet_in_one_dimension_is_the_difference_of_means_and_deviations(rng):
  a = with_moments(rng, 10, np.array([1.0]), np.array([[4.0]]))
  b = with_moments(rng, 10, np.array([-2.0]), np.array([[9.0]]))
  np.testing.assert_allclose(frechet_distance(a, b), 3.0**2 + (2.0 - 3.0) ** 2, rtol=1e-12)


def _frechet_mutant(ddof=1, factor=2.0, mean=1.0, rooted=True):
  def fn(a, b):
    ca, cb = np.atleast_2d(np.cov(a.T, ddof=ddof)), np.atleast_2d(np.cov(b.T, ddof=ddof))
    cross = linalg.sqrtm(ca @ cb).real if rooted else ca @ cb
    shift = np.sum((a.mean(0) - b.mean(0)) ** 2)
    return mean * shift + np.trace(ca + cb - factor * cross)

  return fn


def test_frechet_proof_accepts_its_own_plain_form_and_fails_for_every_mutant():
  assert_frechet_is_right(_frechet_mutant())
  for mutant in ({"ddof": 0}, {"factor": 1.0}, {"mean": 0.0}, {"rooted": False}):
    with pytest.raises(AssertionError):
      assert_frechet_is_right(_frechet_mutant(**mutant))


@pytest.mark.parametrize(("n", "m", "d"), [(6, 9, 40), (6, 60, 40), (2, 2, 5)])
def test_frechet_of_samples_smaller_than_their_dimension_is_exact(rng, n, m, d):
  """In float64 the spectrum of A B, found here without symmetry, gives the same trace."""
  a, b = rng.normal(size=(n, d)), rng.normal(size=(m, d)) * 1.5 + 0.2
  spectrum = np.linalg.eigvals(np.cov(a.T) @ np.cov(b.T))
  cross = np.sqrt(np.maximum(spectrum.real, 0)).sum()
  shift = np.sum((a.mean(0) - b.mean(0)) ** 2)
  expected = shift + np.trace(np.cov(a.T)) + np.trace(np.cov(b.T)) - 2 * cross
  # the oracle takes the root of rounding errors of its zero eigenvalues: 1e-6, not 1e-12
  np.testing.assert_allclose(frechet_distance(a, b), expected, rtol=2e-6)


def test_frechet_is_zero_on_itself_symmetric_and_blind_to_rotation_and_order(rng):
  a, b = rng.normal(size=(20, 30)), rng.normal(size=(25, 30)) + 0.3
  rotation, _ = np.linalg.qr(rng.normal(size=(30, 30)))
  assert frechet_distance(a, a[::-1]) < 1e-10
  assert frechet_distance(np.ones((4, 3)), np.ones((5, 3))) == 0
  np.testing.assert_allclose(frechet_distance(a, b), frechet_distance(b, a), rtol=1e-10)
  np.testing.assert_allclose(
    frechet_distance(a, b), frechet_distance(a @ rotation, b @ rotation), rtol=1e-10
  )


def test_frechet_from_moments_agrees_with_the_oracle_and_takes_singular_covariances(rng):
  a, b = ((rng.normal(size=5), covariance(rng, 5)) for _ in range(2))
  np.testing.assert_allclose(frechet_gaussians(*a, *b), oracle(*a, *b), rtol=1e-9)
  flat = np.diag([4.0, 0.0])
  other = np.diag([1.0, 9.0])
  np.testing.assert_allclose(frechet_gaussians(np.zeros(2), flat, np.zeros(2), other), 1.0 + 9.0)


def mmd_by_loops(a, b):
  k = lambda x, y: (sum(p * q for p, q in zip(x, y, strict=True)) / len(x) + 1) ** 3
  within = lambda s: [k(s[i], s[j]) for i in range(len(s)) for j in range(len(s)) if i != j]
  across = [k(x, y) for x in a for y in b]
  return np.mean(within(a)) + np.mean(within(b)) - 2 * np.mean(across)


def assert_kernel_is_right(fn):
  rng = np.random.default_rng(2)
  a, b = rng.normal(size=(7, 4)), rng.normal(size=(5, 4)) + 0.5
  np.testing.assert_allclose(fn(a, b), mmd_by_loops(a, b), rtol=1e-12)


def _kernel_mutant(degree=3, gamma=None, diagonal=False):
  def fn(a, b):
    k = lambda x, y: (x @ y.T * (gamma or 1 / x.shape[1]) + 1) ** degree

    def within(x):
      s = k(x, x)
      return s.mean() if diagonal else (s.sum() - np.trace(s)) / (len(x) * (len(x) - 1))

    return within(a) + within(b) - 2 * k(a, b).mean()

  return fn


def test_kernel_distance_equals_a_double_loop_and_no_mutant_does():
  assert_kernel_is_right(kernel_distance)
  assert_kernel_is_right(_kernel_mutant())
  for mutant in ({"degree": 2}, {"gamma": 1.0}, {"diagonal": True}):
    with pytest.raises(AssertionError):
      assert_kernel_is_right(_kernel_mutant(**mutant))


def test_kernel_distance_is_unbiased_where_the_frechet_distance_is_not(rng):
  draws = [(rng.normal(size=(16, 6)), rng.normal(size=(16, 6))) for _ in range(400)]
  for fn, biased in ((kernel_distance, False), (frechet_distance, True)):
    values = [fn(a, b) for a, b in draws]
    sigmas = np.mean(values) / (np.std(values) / np.sqrt(len(values)))
    assert (abs(sigmas) > 20) if biased else (abs(sigmas) < 3.5)


@pytest.mark.parametrize("d", [3, 40])
@pytest.mark.parametrize(
  ("fn", "of_rows"), [(frechet_distance, frechet_of_rows), (kernel_distance, kernel_of_rows)]
)
def test_distances_by_row_numbers_equal_those_of_the_repeated_rows(rng, d, fn, of_rows):
  a, b = rng.normal(size=(20, d)), rng.normal(size=(30, d)) + 0.2
  i, j = rng.integers(20, size=20), rng.integers(30, size=12)
  np.testing.assert_allclose(of_rows(a, b)(i, j), fn(a[i], b[j]), rtol=1e-10)


@pytest.mark.parametrize("fn", [frechet_distance, kernel_distance])
def test_samples_that_mean_nothing_raise(fn, rng):
  good = rng.normal(size=(4, 3))
  with pytest.raises(ValueError, match="at least two"):
    fn(good[:1], good)
  with pytest.raises(ValueError, match="must be the same"):
    fn(good, good[:, :2])
  with pytest.raises(ValueError, match="NaN"):
    fn(good, good * np.nan)
