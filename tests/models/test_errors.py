"""Every wrong input to the video DiT is answered by one sentence that says what to do."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from vidstep.models.cond import Cond
from vidstep.models.dit import VideoDiT
from vidstep.models.layout import plain

SMALL = {"dim": 24, "heads": 2, "depth": 2, "in_channels": 2, "out_channels": 2}


def zeros(*shape, dtype=np.float32):
  return jnp.zeros(shape, dtype)


INPUTS = {
  "must be divisible by patch": {"x": zeros(2, 3, 4, 5, 2)},
  "takes in_channels=2, but x has 3": {"x": zeros(2, 3, 4, 4, 3)},
  r"x must be \[B, F, H, W, C\]": {"x": zeros(2, 3, 4, 4)},
  "t must be float32, not bfloat16": {"t": zeros(2, dtype=jnp.bfloat16)},
  "t must be float32, not int32": {"t": zeros(2, dtype=jnp.int32)},
  r"t must be \[B\]": {"t": zeros(3)},
  r"or \[B, F\]=\(2, 3\)": {"t": zeros(2, 4)},
  "needs a network built with second_time": {"s": zeros(2)},
  "text needs a network built with text_dim": {"cond": Cond(text=zeros(2, 3, 5))},
  "actions need a network built with action_dim": {"cond": Cond(actions=zeros(2, 3, 4))},
  "text_mask is given without": {"cond": Cond(text_mask=zeros(2, 3, dtype=bool))},
  "pack cond.context": {"cond": Cond(context=zeros(2, 1, 4, 4, 2))},
  "layout describes 4 frames": {"layout": plain(4)},
  "must match x": {"cond": Cond(image=zeros(2, 2, 4, 4, 1)), "fields": {"in_channels": 3}},
  "one entry for each of 3 frames": {
    "cond": Cond(actions=zeros(2, 4, 2)),
    "fields": {"action_dim": 2},
  },
  r"actions must have shape \(2, 3, 4, 2\)": {
    "cond": Cond(actions=zeros(2, 3, 2)),
    "fields": {"action_dim": 2, "actions_per_frame": 4},
  },
  r"text must be \[B=2, L, text_dim=5\]": {
    "cond": Cond(text=zeros(2, 3, 4)),
    "fields": {"text_dim": 5},
  },
  "text_mask must have shape": {
    "cond": Cond(text=zeros(2, 3, 5), text_mask=zeros(2, 4, dtype=bool)),
    "fields": {"text_dim": 5},
  },
  "its velocity would have 3": {"fields": {"out_channels": 3}},
  "even head size": {"fields": {"dim": 26}},
  "prediction is 'v' or 'x0'": {"fields": {"prediction": "eps"}},
  "is no policy: take None or one of": {"fields": {"remat": "everything"}},
  "must number blocks 0 to 1": {"fields": {"features": (2,)}},
}


def call(x=None, t=None, fields=None, **inputs):
  x = zeros(2, 3, 4, 4, 2) if x is None else x
  t = zeros(2) if t is None else t
  model = VideoDiT(**SMALL | (fields or {}))
  return jax.eval_shape(lambda: model.init(jax.random.key(0), x, t, **inputs))


def test_the_right_input_is_taken():
  call()


@pytest.mark.parametrize("sentence", INPUTS)
def test_a_wrong_input_is_named(sentence):
  with pytest.raises(ValueError, match=sentence):
    call(**INPUTS[sentence])


def test_a_door_that_is_not_open_yet_says_so():
  with pytest.raises(NotImplementedError, match="not supported yet"):
    call(cond=Cond(shot=zeros(2, 3)))
