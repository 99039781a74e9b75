"""A video that goes on keeps what it was begun with: its prompt, and the picture it starts from."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from toy_world import ToyNetwork, toy_params

from vidstep.causal.extension import extension
from vidstep.losses import Batch
from vidstep.models.cond import Cond

pytestmark = pytest.mark.usefixtures("unoptimized")


def batch_of(seed):
  keys = jax.random.split(jax.random.key(seed), 5)
  shapes = (1, 3, 2, 2, 3), (1, 3, 2), (1, 4, 2), (1, 5, 6)
  x0, actions, text, tokens = (jax.random.normal(k, s) for k, s in zip(keys, shapes, strict=False))
  mask = jnp.ones((1, 4), bool)
  return Batch(x0, Cond(actions=actions, text=text, text_mask=mask, image_tokens=tokens))


def test_image_tokens_belong_to_the_video_as_its_text_does():
  blank, extend = extension(ToyNetwork(window=6), chunk=1)
  how, params = {"overlap": 1, "longest": 6}, toy_params(jax.random.key(0))
  stream, first = blank(params, batch_of(0), **how), batch_of(0).cond
  for i in range(2):  # the second batch says only what is done next
    clip, stream = extend(
      params, stream, batch_of(i), jax.random.key(i), times=(1.0,), depth=None, gradient=None, **how
    )
    for cond in (clip.cond, stream.cond):
      np.testing.assert_array_equal(cond.text, first.text)
      np.testing.assert_array_equal(cond.image_tokens, first.image_tokens)
  assert (clip.cond.actions[:, 1:] == batch_of(1).cond.actions[:, 1:]).all()
