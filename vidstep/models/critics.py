"""A critic: a small head that judges a video by the features of a diffusion network."""

from collections.abc import Callable, Sequence

import flax.linen as nn
import jax
import jax.numpy as jnp

from vidstep.masks import Rule
from vidstep.models.blocks import layer_norm
from vidstep.models.linear import Linear
from vidstep.models.precision import stat_dtype
from vidstep.models.velocity import apply_fn


class Critic(nn.Module):
  """Logits over a list of features; large says real. A fresh critic answers 0, a ratio of 1.

  For each features [B, F, h, w, C]: norm over channels, linear, SiLU. Then either

  - pooled: a learnt softmax over positions gathers a vector for each features (the query token
    of APT, as rCM's DMD2 has it), and an MLP over all of them gives one logit a video. One logit a
    video is what a density ratio needs (`f_distill`);
  - or, per position, an MLP gives one logit a token (LADD; PatchGAN): more verdicts, each local.

  No spectral norm: the networks below are diffusion transformers, trained or frozen, whose scale
  the norm takes away; where the head grows too steep the objectives' approximate R1 holds it.
  Text, actions and time are not given again: the features know them.

  Attributes:
    dim: width.
    pooled: one logit a video, or one a position.
    dtype: compute dtype; norms, softmax and the logits are float32.
  """

  dim: int = 128
  pooled: bool = True
  dtype: jnp.dtype = jnp.float32

  @nn.compact
  def __call__(self, features: Sequence[jax.Array]) -> jax.Array:
    """Features, each [B, F, h, w, C] -> logits [B], or [B, P] with P positions in all, float32.

    Raises:
      ValueError: if there are no features.
    """
    if not features:
      raise ValueError("A critic needs features: name at least one block of the network.")
    stat = stat_dtype(self.dtype)
    linear = lambda width, name: Linear(width, self.dtype, name=name)
    verdict = lambda name: Linear(1, stat, nn.initializers.zeros, name=name)
    gathered = []
    for i, feature in enumerate(features):
      h = layer_norm(feature.reshape(feature.shape[0], -1, feature.shape[-1]), stat)
      h = nn.silu(linear(self.dim, f"embed_{i}")(h))
      if self.pooled:
        share = jax.nn.softmax(verdict(f"query_{i}")(h), axis=1)
        gathered.append(jnp.sum(share * h.astype(stat), axis=1))
      else:
        h = nn.silu(linear(self.dim, f"hidden_{i}")(h))
        gathered.append(verdict(f"logit_{i}")(h)[..., 0])
    if not self.pooled:
      return jnp.concatenate(gathered, axis=1)
    h = nn.silu(linear(self.dim, "hidden")(jnp.concatenate(gathered, axis=1)))
    return verdict("logit")(h)[:, 0]


def critic_fn(critic: Critic) -> Callable:
  """`critic(params, features) -> logits`."""
  return lambda params, features: critic.apply({"params": params}, features)


def features_fn(
  model: nn.Module,
  blocks: Sequence[int] = (),
  *,
  chunk: int | tuple[int, int] | None = None,
  mask: Rule | None = None,
) -> Callable:
  """What blocks of a network make of a noisy video; the counterpart of `velocity_fn`.

  Args:
    model: a `VideoDiT`; its parameters serve both functions.
    blocks: numbers of the blocks whose outputs are wanted, () for all.
    chunk: see `velocity_fn`.
    mask: see `velocity_fn`.

  Returns:
    features(params, x, t, cond=Cond()) -> list of [B, F/pt, H/ph, W/pw, dim] for the frames of x,
    the context in front of them cut off.

  Raises:
    ValueError: if there is no such block.
  """
  blocks = tuple(blocks) or tuple(range(model.depth))
  wrong = [i for i in blocks if not 0 <= i < model.depth]
  if wrong:
    raise ValueError(f"Features of blocks {wrong}: the network has blocks 0 to {model.depth - 1}.")
  run = apply_fn(model.clone(features=blocks), chunk=chunk, mask=mask)

  def features(params, x, t, cond=None):
    out, _ = run(params, x, t, cond)
    return [a[:, -(x.shape[1] // model.patch[0]) :] for a in out.features]

  return features
