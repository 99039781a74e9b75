"""A world that costs nothing: its network is a formula over a ring of frames, actions and text."""

import dataclasses
import types

import flax.struct
import jax
import jax.numpy as jnp
import numpy as np


@flax.struct.dataclass
class ToyCache:
  frames: jax.Array  # [B, W, h, w, C], frame f in slot f % W
  count: jax.Array  # [B]
  window: jax.Array  # [B]
  text: jax.Array  # [B, Dt]


@dataclasses.dataclass(frozen=True)
class ToyNetwork:
  """The next clean frame is tanh(a mean past + b actions + text + c x): all that matters shows."""

  window: int = 4
  action_dim: int = 2
  text_dim: int = 0

  policy = property(lambda self: types.SimpleNamespace(window=self.window))
  model = property(lambda self: types.SimpleNamespace(action_dim=self.action_dim))

  def start(self, params, like, cond):
    batch, _, *shape = like.shape
    return ToyCache(
      jnp.zeros((batch, self.window, *shape)),
      jnp.zeros(batch, jnp.int32),
      jnp.full(batch, self.window, jnp.int32),
      self._text(cond, batch),
    )

  def switch(self, params, cond, cache):
    return cache.replace(text=self._text(cond, cache.count.shape[0]))

  def read(self, params, x, t, cond, cache, *, s=None):
    slots = jnp.arange(self.window)[None]
    age = (cache.count[:, None] - 1 - slots) % self.window  # 0: the newest
    used = (age < jnp.minimum(cache.count, cache.window)[:, None]).astype(x.dtype)
    past = jnp.einsum("bw,bwhyc->bhyc", used / (1 + age.astype(x.dtype)), cache.frames)
    told = past[:, None] * params["past"] + 0.3 * x  # the newest weighs most
    if cond.actions is not None:
      told = told + (cond.actions @ params["action"])[:, :, None, None]
    told = told + cache.text.sum(1).reshape(-1, 1, 1, 1, 1)
    t = jnp.broadcast_to(t.reshape(x.shape[0], -1, 1, 1, 1), (*x.shape[:2], 1, 1, 1))
    return (x - jnp.tanh(told)) / t

  def append(self, params, x, cond, cache, *, t=None):
    frames = cache.frames
    for i in range(x.shape[1]):
      here = jnp.arange(self.window)[None] == ((cache.count + i) % self.window)[:, None]
      frames = jnp.where(here[:, :, None, None, None], x[:, i, None], frames)
    return cache.replace(frames=frames, count=cache.count + x.shape[1])

  def read_append(self, params, x, t, cond, cache, *, s=None):
    """The noisy x itself is what later chunks see."""
    return self.read(params, x, t, cond, cache), self.append(params, x, cond, cache)

  def _text(self, cond, batch):
    if cond.text is None:
      return jnp.zeros((batch, 1))
    return (cond.text * cond.text_mask[..., None].astype(cond.text.dtype)).mean(1)


def toy_params(key, channels=3, action_dim=2):
  return {"past": jnp.float32(0.4), "action": jax.random.normal(key, (action_dim, channels))}


def toy_text(texts):
  """An encoder: letters as numbers, 4 tokens of 2 channels."""
  codes = [[ord(c) % 7 - 3 for c in text[:8].ljust(8)] for text in texts]
  return np.float32(codes).reshape(-1, 4, 2) / 10, np.ones((len(texts), 4), bool)
