"""Image tokens beside the text: Wan's image-to-video. Their numbers are held against diffusers'."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from vidstep.causal.cached import CachedNetwork
from vidstep.causal.kv_cache import CachePolicy
from vidstep.io.wan import init_dit
from vidstep.models.cond import Cond
from vidstep.models.dit import VideoDiT
from vidstep.models.past import Past

MODEL = VideoDiT(
  dim=12, heads=1, depth=1, ffn_dim=8, in_channels=2, out_channels=2, text_dim=3, image_dim=4,
  image_tokens=2,
)  # fmt: skip


@pytest.fixture(scope="module")
def case():
  """(params, x, t, cond), everything random."""
  rng = np.random.default_rng(0)
  draw = lambda *shape: jnp.asarray(0.5 * rng.standard_normal(shape), jnp.float32)
  like = jax.eval_shape(lambda: init_dit(MODEL))["params"]
  params = jax.tree.map(lambda a: draw(*a.shape), like)
  cond = Cond(
    text=draw(2, 3, 3),
    text_mask=jnp.array([[True, True, False], [True, False, False]]),
    image_tokens=draw(2, 2, 4),
  )
  return params, draw(2, 2, 2, 2, 2), jnp.array([0.3, 0.7]), cond


@jax.jit
def run(params, x, t, cond, cache=Past()):  # noqa: B008
  return MODEL.apply({"params": params}, x, t, cond=cond, cache=cache)


def test_what_is_masked_of_the_text_does_not_mask_the_image(case):
  params, x, t, cond = case
  other = cond.replace(text=cond.text.at[0, 2].set(9))
  np.testing.assert_array_equal(run(params, x, t, cond).v, run(params, x, t, other).v)
  for token in range(2):
    other = cond.replace(image_tokens=cond.image_tokens.at[:, token].multiply(-1))
    moved = np.abs(run(params, x, t, cond).v - run(params, x, t, other).v)
    assert (moved.max((1, 2, 3, 4)) > 1e-3).all()


def test_a_cache_of_the_text_holds_the_image_as_well(case):
  """A stream embeds text and image once; the mask may have columns for the image tokens."""
  params, x, t, cond = case
  want = run(params, x, t, cond)
  assert want.cache.text[0].shape == (1, 2, 5, 1, 12)
  wide = jnp.pad(cond.text_mask, ((0, 0), (0, 2)), constant_values=True)
  for mask in (cond.text_mask, wide):
    cache = Past(text=want.cache.text, text_mask=mask)
    np.testing.assert_allclose(run(params, x, t, Cond(), cache).v, want.v, atol=1e-6)


def test_image_tokens_must_fit(case):
  params, x, t, cond = case
  for wrong in (None, jnp.zeros((2, 3, 4)), jnp.zeros((2, 2, 5))):
    with pytest.raises(ValueError, match=r"cond\.image_tokens must be .* \(2, 2, 4\), not"):
      run(params, x, t, cond.replace(image_tokens=wrong))
  plain = MODEL.clone(image_dim=None)
  with pytest.raises(ValueError, match="image_tokens need a network built with image_dim"):
    plain.apply({"params": params}, x, t, cond=cond)
  with pytest.raises(ValueError, match="image_dim needs text_dim"):
    MODEL.clone(text_dim=None).apply({"params": params}, x, t, cond=cond)


def test_a_stream_looks_at_the_image_once(case):
  params, x, t, cond = case
  network = CachedNetwork(MODEL, CachePolicy(window=2))
  cache = network.start(params, x, cond)
  got = network.read(params, x, t, Cond(), cache)
  np.testing.assert_allclose(got, run(params, x, t, cond).v, atol=1e-5, rtol=1e-5)
