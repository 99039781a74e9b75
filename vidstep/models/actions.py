"""Embedding of actions, added to the time embedding of their frame."""

import flax.linen as nn
import jax
import jax.numpy as jnp

from vidstep.models.embed import MLP


class ActionEmbed(nn.Module):
  """MLP over the actions of a frame: they reach every block through its modulation.

  This is the injection of Oasis and Diffusion Forcing: no tokens, no cost in sequence length.
  Buttons are -1 (up) or +1 (down); the zero vector is the null action, which is therefore another
  input than "nothing pressed".

  Attributes:
    dim: width of the network.
    dtype: compute dtype, float32 or better, as for the time embedding it is added to.
  """

  dim: int
  dtype: jnp.dtype = jnp.float32

  @nn.compact
  def __call__(self, actions: jax.Array, patch_frames: int = 1) -> jax.Array:
    """Embeds actions.

    Args:
      actions: [B, F, A], or [B, F, S, A] with S pixel frames per latent frame.
      patch_frames: latent frames per token; their actions are flattened together.

    Returns:
      [B, F / patch_frames, dim].
    """
    b, f = actions.shape[:2]
    actions = actions.reshape(b, f // patch_frames, -1)
    # From three numbers, weights of 0.02 make an embedding that is lost beside that of the time:
    # networks went on ignoring the keys for thousands of steps.
    init = nn.initializers.lecun_normal()
    return MLP(self.dim, self.dtype, init=init, name="mlp")(actions)
