"""Tiny networks with every parameter random."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from random_params import randomised

from vidstep.models.cond import Cond
from vidstep.models.dit import VideoDiT

TINY = {"dim": 24, "heads": 2, "depth": 2, "patch": (1, 2, 2), "in_channels": 2, "out_channels": 2}
TINY = TINY | {"ffn_dim": 32, "attention": "xla"}


@functools.cache
def _net(**fields):
  model = VideoDiT(**TINY | fields)
  c = model.in_channels
  pt, ph, pw = model.patch
  x = jax.ShapeDtypeStruct((1, pt, ph, pw, c), jnp.float32)
  cond = Cond()
  if c != model.out_channels:
    x = jax.ShapeDtypeStruct((*x.shape[:-1], model.out_channels), jnp.float32)
    cond = Cond(image=jax.ShapeDtypeStruct((*x.shape[:-1], c - model.out_channels), jnp.float32))
  t = jax.ShapeDtypeStruct((1,), jnp.float32)
  shapes = jax.eval_shape(lambda x, t, c: model.init(jax.random.key(0), x, t, cond=c), x, t, cond)
  params = randomised(shapes["params"])
  return model, params, jax.jit(lambda p, x, t, **kw: model.apply({"params": p}, x, t, **kw))


@pytest.fixture
def net():
  """net(**fields) -> (model, random params, jitted apply(params, x, t, **inputs))."""
  return _net


@pytest.fixture
def rng():
  return np.random.default_rng(0)


@pytest.fixture
def normal(rng):
  """normal(*shape) -> float32 array."""
  return lambda *shape: rng.standard_normal(shape).astype(np.float32)
