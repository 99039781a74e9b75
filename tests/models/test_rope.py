import jax.numpy as jnp
import numpy as np
import pytest

from vidstep.models.rope import apply_rope, rope_table


def oracle(x, frames, height, width):
  """Rotates complex numbers in float64: x [N, D], Wan's split of D."""
  d = x.shape[-1]
  side = 2 * (d // 6)
  out = []
  for n, (f, r, c) in enumerate(
    (f, r, c) for f in frames for r in range(height) for c in range(width)
  ):
    angles = []
    for position, size in ((f, d - 2 * side), (r, side), (c, side)):
      angles += [position / 10000 ** (2 * i / size) for i in range(size // 2)]
    z = (x[n, 0::2] + 1j * x[n, 1::2]) * np.exp(1j * np.array(angles))
    out.append(z)
  return np.array(out)


@pytest.mark.parametrize("dim", [8, 16, 20])
def test_rotation_is_the_complex_one(normal, dim):
  frames = np.array([0, 1, 7, 3], np.int32)
  x = normal(1, 24, 1, dim)
  want = oracle(x[0, :, 0].astype(np.float64), frames, 3, 2)
  got = np.asarray(apply_rope(jnp.asarray(x), rope_table(frames, 3, 2, dim)))[0, :, 0]
  np.testing.assert_allclose(got, np.concatenate([want.real, want.imag], -1), atol=1e-6)


def test_products_depend_on_distance_only(normal):
  q, k = normal(1, 4, 2, 16), normal(1, 4, 2, 16)
  product = lambda a, b: np.einsum(
    "nd,nd->n",
    apply_rope(jnp.asarray(q), rope_table(np.arange(4) + a, 1, 1, 16))[0, :, 0],
    apply_rope(jnp.asarray(k), rope_table(np.arange(4) + b, 1, 1, 16))[0, :, 0],
  )
  np.testing.assert_allclose(product(2, 5), product(12, 15), atol=1e-5)
  assert np.abs(product(2, 5) - product(2, 6)).max() > 1e-2


def test_traced_frames_give_the_table_of_static_ones():
  frames = np.array([[0, 4, 2], [5, 6, 300]], np.int32)
  static = rope_table(frames, 2, 2, 16)
  traced = rope_table(jnp.asarray(frames), 2, 2, 16)
  for a, b in zip(static, traced, strict=True):
    assert isinstance(a, np.ndarray) and a.shape == (2, 12, 1, 8)
    np.testing.assert_allclose(a, b, atol=3e-5)  # float32 angles up to 300


def test_low_precision_is_rotated_in_float32(normal):
  x = jnp.asarray(normal(1, 8, 1, 16))
  table = rope_table(np.arange(8) * 100, 1, 1, 16)
  low = apply_rope(x.astype(jnp.bfloat16), table)
  assert low.dtype == jnp.bfloat16
  np.testing.assert_allclose(low.astype(jnp.float32), apply_rope(x, table), atol=0.03)
