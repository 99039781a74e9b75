"""What a video network is given beside the noisy frames, and what it gives back."""

from typing import Any

import flax.struct
import jax
import jax.numpy as jnp


@flax.struct.dataclass
class Cond:
  """Conditioning of a video network; every field may be None (not given).

  "Every frame" below means the frames of the video in order: first the n context frames, if there
  are any, then the F frames that are denoised.

  Attributes:
    text: [B, L, Dt] prompt embeddings. None is the same as a prompt that is masked out.
    text_mask: [B, L] bool, True where `text` is a real token. None means all of them.
    shot: reserved for shot indices; not supported yet.
    actions: [B, n+F, A], or [B, n+F, S, A] with S pixel frames per latent frame, float32.
      `actions[:, f]` leads INTO frame f; the zero vector is the null action.
    image: [B, n+F, H, W, Ci], concatenated to the channels of the frames.
    context: [B, n, H, W, C] clean first frames, which precede the noisy ones.
    clean: [B, F, H, W, C] the frames that are denoised, without noise: teacher forcing. A causal
      network reads the chunks before the one that it denoises; any other never sees them.
    image_tokens: [B, M, Di] what an image encoder says of the picture that the video starts from
      (Wan's image-to-video: the 257 states of `vidstep.models.clip`).
  """

  text: jax.Array | None = None
  text_mask: jax.Array | None = None
  shot: jax.Array | None = None
  actions: jax.Array | None = None
  image: jax.Array | None = None
  context: jax.Array | None = None
  clean: jax.Array | None = None
  image_tokens: jax.Array | None = None


@flax.struct.dataclass
class Out:
  """Output of a video network.

  Attributes:
    v: [B, F, H, W, C] velocity, float32: v = eps - x0 (t = 1 is noise).
    cache: the updated key-value cache; None without one.
    features: tuple of [B, F/pt, H/ph, W/pw, dim], the outputs of the blocks that were asked for.
  """

  v: jax.Array
  cache: Any = None
  features: tuple = ()


def null_cond(cond: Cond) -> Cond:
  """The unconditional counterpart of `cond`, for guidance and for condition dropout.

  Actions become the null action (zeros, which no recorded action is: an untouched button is -1)
  and the text is masked out. Context, clean frames and image stay: they say which video, not what
  happens in it.

  Args:
    cond: the condition.

  Returns:
    A `Cond` of the same structure and shapes, but with a `text_mask` wherever there is text.
  """
  actions = None if cond.actions is None else jnp.zeros_like(cond.actions)
  mask = None if cond.text is None else jnp.zeros(cond.text.shape[:2], bool)
  return cond.replace(actions=actions, text_mask=mask)
