"""Small networks for the analytic videos: an MLP over a clip, and one over a frame and its past."""

from typing import Any

import flax.linen as nn
import jax.numpy as jnp

from experiments.tables.videos import FRAMES, SHAPE
from vidstep.models.cond import Cond

WIDTH, DEPTH, WAVES = 64, 2, 4


class MLP(nn.Module):
  """Residual SiLU layers on rows, each scaled and shifted by the time.

  Attributes:
    outputs: numbers a row.
    width: of every layer.
    depth: number of residual layers.
    dtype: of the layers' arithmetic, None for that of the rows. Times are embedded in their own
      precision; weights and outputs are float32 or wider.
  """

  outputs: int
  width: int = WIDTH
  depth: int = DEPTH
  dtype: Any = None

  @nn.compact
  def __call__(self, rows, times):
    """rows [N, D] at times [N, k] -> [N, outputs], and the last hidden layer [N, width]."""
    dtype = rows.dtype if self.dtype is None else self.dtype
    dense = lambda n, name: nn.Dense(n, dtype=dtype, param_dtype=rows.dtype, name=name)
    time = nn.silu(dense(self.width, "time")(waves(times).astype(dtype)))
    h = dense(self.width, "in")(rows.astype(dtype))
    for i in range(self.depth):
      scale, shift = jnp.split(dense(2 * self.width, f"when{i}")(time), 2, axis=-1)
      h = h + dense(self.width, f"what{i}")(nn.silu((1 + scale) * h + shift))
    return dense(self.outputs, "out")(h).astype(rows.dtype), h.astype(rows.dtype)


def waves(times):
  """t, and sines and cosines of up to two periods in [0, 1]: smooth, for derivatives in time."""
  k = jnp.pi * jnp.arange(1, WAVES + 1, dtype=times.dtype)
  angles = times[:, :, None] * k[None, None]
  parts = [times, jnp.sin(angles), jnp.cos(angles)]
  return jnp.concatenate([p.reshape(len(times), -1) for p in parts], axis=1)


class ClipMLP(nn.Module):
  """Velocity of a whole clip x [B, F, H, W, C] at t [B], on the way to s [B] with `second_time`.

  Returns v and a tuple of features [B, width], which a critic may read.
  """

  second_time: bool = False
  dtype: Any = None

  @nn.compact
  def __call__(self, x, t, cond=None, s=None):
    del cond
    times = t[:, None]
    if self.second_time:  # s = t, the instantaneous velocity, is an input of 0
      times = jnp.stack([t, jnp.zeros_like(t) if s is None else t - s], axis=1)
    rows = x.reshape(x.shape[0], -1)
    v, features = MLP(rows.shape[1], dtype=self.dtype)(rows, times.astype(x.dtype))
    return v.reshape(x.shape), (features,)


class CausalMLP(nn.Module):
  """Velocity of each frame given the frames before it, one MLP for all frames; t is [B] or [B, F].

  With `cond.clean` the frames before are those, at time 0 (teacher forcing); without, the noisy
  frames at their own times (diffusion forcing). They enter in order of age, after a mask.
  """

  @nn.compact
  def __call__(self, x, t, cond=None, s=None):
    del s
    batch, frames = x.shape[:2]
    clean = None if cond is None else cond.clean
    t = jnp.broadcast_to(t if t.ndim == 2 else t[:, None], (batch, frames)).astype(x.dtype)
    flat = x.reshape(batch, frames, -1)
    past = flat if clean is None else clean.reshape(flat.shape).astype(x.dtype)
    past_t = t if clean is None else jnp.zeros_like(t)
    past = jnp.concatenate([past, past_t[:, :, None], jnp.ones_like(past_t)[:, :, None]], axis=2)
    seen = []
    for age in range(1, FRAMES):
      seen.append(jnp.pad(past, ((0, 0), (age, 0), (0, 0)))[:, :frames])
    rows = jnp.concatenate([flat, *seen], axis=2).reshape(batch * frames, -1)
    v, features = MLP(flat.shape[2])(rows, t.reshape(-1, 1))
    return v.reshape(x.shape), (features,)


class Critic(nn.Module):
  """A logit [B] for features [B, width]: real or not."""

  @nn.compact
  def __call__(self, features):
    h = nn.silu(nn.Dense(WIDTH, name="in")(features[0]))
    return nn.Dense(1, name="out")(h)[:, 0]


def init(model, key):
  """Fresh float32 weights."""
  return model.init(key, jnp.zeros((2, *SHAPE)), jnp.zeros(2), Cond())["params"]


def velocity_of(model):
  """`velocity(params, x, t, cond, s=None) -> v`."""

  def velocity(params, x, t, cond=None, *, s=None):
    return model.apply({"params": params}, x, t, cond, s)[0]

  return velocity


def features_of(model):
  """`features(params, x, t, cond)`, a tuple."""
  return lambda params, x, t, cond=None: model.apply({"params": params}, x, t, cond)[1]


def critic(params, features):
  """Logits [B] of a `Critic`."""
  return Critic().apply({"params": params}, features)


def init_critic(key):
  """Fresh weights of a `Critic`."""
  return Critic().init(key, (jnp.zeros((2, WIDTH)),))["params"]
