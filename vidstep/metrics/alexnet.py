"""The AlexNet of LPIPS in plain jnp: five convolutions and the activations after each."""

import jax
import jax.numpy as jnp
from jax import lax

# torchvision's ImageNet statistics carried over to inputs in [-1, 1] (Zhang et al. 2018).
_SHIFT = (-0.030, -0.088, -0.188)
_SCALE = (0.458, 0.448, 0.450)
_STRIDE_PAD = ((4, 2), (1, 2), (1, 1), (1, 1), (1, 1))
_POOLED = (0, 1)  # layers followed by a 3x3 max pool of stride 2
MIN_SIZE = 31  # below, the last activations have no pixel


def _convolve(x, layer, stride, pad):
  # HIGHEST: a GPU would round to TF32, and a metric must not depend on the device.
  y = lax.conv_general_dilated(
    x,
    layer["kernel"],
    (stride, stride),
    [(pad, pad), (pad, pad)],
    dimension_numbers=("NHWC", "HWIO", "NHWC"),
    precision=lax.Precision.HIGHEST,
  )
  return jax.nn.relu(y + layer["bias"].reshape(1, 1, 1, -1))


def _max_pool(x):
  return lax.reduce_window(x, -jnp.inf, lax.max, (1, 3, 3, 1), (1, 2, 2, 1), "VALID")


def activations(params, images):
  """The five post-ReLU activations.

  Args:
    params: `load_weights("alexnet")["AlexNet_0"]`: {Conv_0..Conv_4: {kernel [h,w,i,o], bias [o]}}.
    images: float [N, H, W, 3] in [-1, 1], H and W at least `MIN_SIZE`.

  Returns:
    List of [N, h, w, C] with C = 64, 192, 384, 256, 256.
  """
  shift = jnp.asarray(_SHIFT, images.dtype).reshape(1, 1, 1, 3)
  scale = jnp.asarray(_SCALE, images.dtype).reshape(1, 1, 1, 3)
  x, out = (images - shift) / scale, []
  for i, (stride, pad) in enumerate(_STRIDE_PAD):
    x = _convolve(x, params[f"Conv_{i}"], stride, pad)
    out.append(x)
    x = _max_pool(x) if i in _POOLED else x
  return out
