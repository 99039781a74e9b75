import jax
import jax.numpy as jnp
import numpy as np
import pytest

from vidstep.masks import CausalFrames
from vidstep.models.cond import Cond, null_cond
from vidstep.models.layout import plain

T = np.float32([0.3, 0.8])


@pytest.fixture
def x(normal):
  return normal(2, 3, 4, 4, 2)


def test_an_action_changes_its_own_frame_and_what_follows(net, normal):
  """Under a causal mask: not the frame before (an action leads INTO its frame)."""
  x = normal(2, 3, 4, 4, 2)
  model, params, _ = net(action_dim=3)
  run = jax.jit(
    lambda a: (
      model.apply(
        {"params": params}, x, T, cond=Cond(actions=a), layout=plain(3, mask=CausalFrames())
      ).v
    )
  )
  actions = -np.ones((2, 3, 3), np.float32)
  base = run(actions)
  for frame in range(3):
    pressed = actions.copy()
    pressed[:, frame, 1] = 1
    change = np.abs(run(pressed) - base).max((0, 2, 3, 4))
    assert (change[frame:] > 1e-3).all() and (change[:frame] < 1e-5).all()


def test_the_null_action_is_zero_and_not_all_buttons_up(net, x):
  _, params, apply = net(action_dim=3)
  up = Cond(actions=-np.ones((2, 3, 3), np.float32))
  none = apply(params, x, T).v
  np.testing.assert_array_equal(none, apply(params, x, T, cond=null_cond(up)).v)
  assert np.abs(none - apply(params, x, T, cond=up).v).max() > 1e-3


def test_every_pixel_frame_of_a_latent_counts(net, x, normal):
  _, params, apply = net(action_dim=2, actions_per_frame=4)
  actions = normal(2, 3, 4, 2)
  base = apply(params, x, T, cond=Cond(actions=actions)).v
  for s in range(4):
    other = actions.copy()
    other[:, 1, s, 0] += 1
    assert np.abs(apply(params, x, T, cond=Cond(actions=other)).v - base).max() > 1e-3


def test_patches_in_time_take_the_actions_of_all_their_frames(net, normal):
  _, params, apply = net(action_dim=2, patch=(2, 2, 2))
  x, actions = normal(2, 4, 4, 4, 2), normal(2, 4, 2)
  base = apply(params, x, T, cond=Cond(actions=actions)).v
  for f in range(4):
    other = actions.copy()
    other[:, f] += 1
    assert np.abs(apply(params, x, T, cond=Cond(actions=other)).v - base).max() > 1e-3


def test_null_cond_keeps_what_says_which_video():
  cond = Cond(
    text=jnp.ones((2, 3, 4)), actions=jnp.ones((2, 5, 1)), image=jnp.ones(1), context=jnp.ones(2)
  )
  null = null_cond(cond)
  assert not null.actions.any() and null.actions.shape == (2, 5, 1)
  assert null.text is cond.text and null.text_mask.shape == (2, 3) and not null.text_mask.any()
  assert null.image is cond.image and null.context is cond.context
  assert null_cond(Cond()) == Cond()
