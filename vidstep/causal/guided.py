"""Guidance behind a cache: the batch twice, with and without its condition, each its own rows."""

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from vidstep.models.cond import null_cond


@dataclasses.dataclass(frozen=True)
class Guided:
  """A `CausalNetwork` with classifier-free guidance, `v_u + w (v_c - v_u)`: w = 1 is none.

  Its cache holds 2B rows: B that know the condition, then B that do not.

  Attributes:
    network: the `CausalNetwork` that is guided.
    weight: w.
    unconditional: cond -> cond.
  """

  network: Any
  weight: float
  unconditional: Callable[[Any], Any] = null_cond

  def start(self, params, like, cond):
    """An empty cache of 2B rows; `like` has B."""
    like = jax.ShapeDtypeStruct((2 * like.shape[0], *like.shape[1:]), like.dtype)
    return self.network.start(params, like, self._both(cond))

  def read(self, params, x, t, cond, cache, *, s=None):
    """The guided velocity of the next chunk."""
    s = None if s is None else _twice(s)
    return self._mix(self.network.read(params, _twice(x), _twice(t), self._both(cond), cache, s=s))

  def append(self, params, x, cond, cache, *, t=None):
    """The same frames behind both halves."""
    t = None if t is None else _twice(t)
    return self.network.append(params, _twice(x), self._both(cond), cache, t=t)

  def read_append(self, params, x, t, cond, cache, *, s=None):
    """Both in one forward."""
    s = None if s is None else _twice(s)
    both = self._both(cond)
    v, cache = self.network.read_append(params, _twice(x), _twice(t), both, cache, s=s)
    return self._mix(v), cache

  def switch(self, params, cond, cache):
    """A new prompt; the rows without condition have none."""
    return self.network.switch(params, self._both(cond), cache)

  def _mix(self, v):
    known, unknown = jnp.split(v, 2)
    return unknown + self.weight * (known - unknown)

  def _both(self, cond):
    """cond, and below it the same without condition."""
    if cond.text is not None and cond.text_mask is None:
      cond = cond.replace(text_mask=jnp.ones(cond.text.shape[:2], bool))
    return jax.tree.map(lambda a, b: jnp.concatenate([a, b]), cond, self.unconditional(cond))


def _twice(a):
  return jnp.concatenate([a, a])
