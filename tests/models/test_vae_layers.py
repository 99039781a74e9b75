"""Layers of video autoencoders against plain NumPy: sums over the weights of a kernel, float64."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests.mutation import assert_caught, mutant
from vidstep.models.vae import layers


def convolved(x, params, padding):
  """[B, T, H, W, C] behind zeros (before, after) of the three axes, weight by weight."""
  kernel, bias = (np.asarray(params[name], np.float64) for name in ("kernel", "bias"))
  x = np.pad(x.astype(np.float64), ((0, 0), *padding, (0, 0)))
  sizes = [1 + n - k for n, k in zip(x.shape[1:4], kernel.shape[:3], strict=True)]
  cut = lambda at: x[:, *(slice(i, i + n) for i, n in zip(at, sizes, strict=True))]
  return sum(cut(at) @ kernel[at] for at in itertools.product(*map(range, kernel.shape[:3]))) + bias


def draw(kernel, *frames):
  """Parameters of a convolution, as a release has them in float32, and what it is applied to."""
  normal = np.random.default_rng(0).standard_normal
  params = {"kernel": np.float32(normal(kernel)), "bias": np.float32(normal(kernel[-1]))}
  return params, *(normal(shape) for shape in frames)


def enlarged(x, params):
  """What `DoubleSpace` stands for: every pixel four times, then the convolution."""
  flat = params | {"kernel": params["kernel"][None]}
  return convolved(x.repeat(2, axis=2).repeat(2, axis=3), flat, ((0, 0), (1, 1), (1, 1)))


def check_double_space(module):
  params, *frames = draw((3, 3, 2, 3), (2, 2, 3, 4, 2), (1, 1, 1, 1, 2))
  for x in frames:
    with jax.enable_x64(True):
      got = module.DoubleSpace(3, jnp.float64).apply({"params": params}, x)
    np.testing.assert_allclose(got, enlarged(x, params), atol=1e-13)


def test_doubling_is_a_convolution_of_the_enlarged_frame_edges_included():
  check_double_space(layers)


@pytest.mark.parametrize(
  "old, new",
  [
    ("j : j + w, i, j]", "j : j + w, j, i]"),  # phases swapped
    ("j : j + w, i, j]", ": w, i, j]"),  # all columns from the pixel before
    ("[before, here + after]", "[before, here]"),
    ("transpose(3, 1, 4, 2, 0, 5)", "transpose(1, 3, 4, 2, 0, 5)"),  # rows for columns
  ],
)
def test_other_doublings_are_noticed(old, new):
  assert_caught(check_double_space, mutant(layers, old, new))


def bfloat16_error(module):
  """Of a doubling and of what it stands for, both in bfloat16: root mean squares."""
  params, x = draw((3, 3, 16, 16), (1, 2, 8, 8, 16))
  x = jnp.asarray(x, jnp.bfloat16)
  want = enlarged(np.float64(x), params)
  plain = layers.Conv2d(16, jnp.bfloat16).apply({"params": params}, x.repeat(2, 2).repeat(2, 3))
  got = module.DoubleSpace(16, jnp.bfloat16).apply({"params": params}, x)
  return tuple(np.sqrt(np.square(np.float64(y) - want).mean()) for y in (got, plain))


def test_in_bfloat16_it_errs_no_more_than_what_it_stands_for():
  got, plain = bfloat16_error(layers)
  assert got < 1.1 * plain
  rough = mutant(layers, ".astype(stat_dtype(self.dtype))", ".astype(self.dtype)")
  assert bfloat16_error(rough)[0] > got  # sums of rounded weights, rounded


def check_causal(module, pieces):
  """A clip in pieces is the whole clip behind two frames of zeros."""
  params, x = draw((3, 3, 3, 2, 3), (2, sum(pieces), 2, 3, 2))
  layer, state, got = module.CausalConv3d(3, jnp.float64), {}, []
  with jax.enable_x64(True):
    for piece in np.split(x, np.cumsum(pieces)[:-1], axis=1):
      y, state = layer.apply({"params": params} | state, piece, mutable=["stream"])
      got.append(y)
  want = convolved(x, params, ((2, 0), (1, 1), (1, 1)))
  np.testing.assert_allclose(np.concatenate(got, axis=1), want, atol=1e-13)


@pytest.mark.parametrize("pieces", [(1, 1, 4), (2, 3), (3, 1), (0, 2)])
def test_a_convolution_over_a_clip_in_pieces_is_that_of_the_clip(pieces):
  check_causal(layers, pieces)


@pytest.mark.parametrize(
  "old, new",
  [
    ("[zeros:]\n", "[: t - zeros]\n"),  # the oldest weights for the first frame
    ("max(1, min(frames, t))", "1"),  # what the second frame looks back upon is left out
    ("past.value = x[:, x.shape[1] - (t - 1) :]", "past.value = x[:, : t - 1]"),
  ],
)
def test_other_starts_and_pasts_are_noticed(old, new):
  assert_caught(check_causal, mutant(layers, old, new), (2, 3))
