"""The linear codec against what is known of PCA, computed independently in float64."""

import jax.numpy as jnp
import numpy as np
import pytest

from vidstep.models.codec import fit_codec, load_codec, pixel_codec


@pytest.fixture(scope="module")
def frames():
  rng = np.random.default_rng(0)
  smooth = rng.normal(size=(40, 4, 4, 3)).repeat(4, axis=1).repeat(4, axis=2)
  return np.clip(0.3 * smooth + 0.05 * rng.normal(size=(40, 16, 16, 3)), -1, 1).astype(np.float32)


def patches(frames, p):
  """[n, p*p*3] by explicit loops, float64."""
  _, h, w, _ = frames.shape
  cut = [
    frame[y : y + p, x : x + p].reshape(-1)
    for frame in frames.astype(np.float64)
    for y in range(0, h, p)
    for x in range(0, w, p)
  ]
  return np.stack(cut)


def test_all_channels_lose_nothing(frames):
  codec = fit_codec(frames, patch=4, channels=48, whiten=0.7)
  back = codec.decode(codec.encode(jnp.asarray(frames)))
  np.testing.assert_allclose(back, frames, atol=2e-5)


@pytest.mark.parametrize("channels", [1, 5, 20])
def test_what_is_lost_is_the_discarded_variance(frames, channels):
  codec = fit_codec(frames, patch=4, channels=channels)
  x = patches(frames, 4)
  back = patches(np.asarray(codec.decode(codec.encode(jnp.asarray(frames)))), 4)
  singular = np.linalg.svd(x - x.mean(0), compute_uv=False)
  expected = np.sum(singular[channels:] ** 2) / x.size
  # Decoding clips to [-1, 1], where the data is: that can only bring it closer.
  assert 0.9 * expected < np.mean((back - x) ** 2) <= expected * (1 + 1e-4)


def test_patches_keep_their_place(frames):
  codec = fit_codec(frames, patch=4, channels=8)
  z = codec.encode(jnp.asarray(frames))
  moved = frames.copy()
  moved[:, 4:8, 8:12] += 0.1
  changed = np.abs(np.asarray(codec.encode(jnp.asarray(moved)) - z)).max((0, 3)) > 1e-3
  assert z.shape == (40, 4, 4, 8)
  assert changed[1, 2] and changed.sum() == 1


@pytest.mark.parametrize("whiten", [0.0, 0.5, 1.0])
def test_whitening_shapes_the_variances(frames, whiten):
  codec = fit_codec(frames, patch=4, channels=6, whiten=whiten)
  z = np.asarray(codec.encode(jnp.asarray(frames)), np.float64).reshape(-1, 6)
  natural = np.linalg.svd(patches(frames, 4) - patches(frames, 4).mean(0), compute_uv=False)[:6]
  ratio = z.std(0) / natural ** (1 - whiten)
  np.testing.assert_allclose(z.mean(0), 0, atol=1e-4)
  np.testing.assert_allclose(z.var(0).mean(), 1, rtol=1e-2)
  np.testing.assert_allclose(ratio, ratio[0], rtol=1e-3)


def test_pixels_are_their_own_latents(frames):
  codec = pixel_codec()
  assert codec.channels == 3
  np.testing.assert_array_equal(codec.encode(jnp.asarray(frames)), frames)


def test_a_saved_codec_comes_back(tmp_path, frames):
  codec = fit_codec(frames, patch=4, channels=7)
  codec.save(tmp_path / "deep" / "codec.npz")
  again = load_codec(tmp_path / "deep" / "codec.npz")
  x = jnp.asarray(frames)
  np.testing.assert_array_equal(again.encode(x), codec.encode(x))
  assert [p.name for p in (tmp_path / "deep").iterdir()] == ["codec.npz"]


def test_bad_input_is_told(tmp_path, frames):
  with pytest.raises(FileNotFoundError, match=r"experiments\.codec"):
    load_codec(tmp_path / "none.npz")
  (tmp_path / "junk.npz").write_bytes(b"junk")
  with pytest.raises(ValueError, match="not a codec"):
    load_codec(tmp_path / "junk.npz")
  with pytest.raises(ValueError, match="cannot be cut"):
    fit_codec(frames, patch=5, channels=3)
  with pytest.raises(ValueError, match="1 to 48 channels"):
    fit_codec(frames, patch=4, channels=49)
