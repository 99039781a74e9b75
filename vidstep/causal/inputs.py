"""What a session of an engine is opened with: its prompt embedded, its context checked."""

import numpy as np


def embed(encoder, text: str) -> dict:
  """{"text" [1, L, Dt], "text_mask" [1, L]}, masked out for no text; {} for no encoder.

  Where the encoder gives no mask there is none: the network attends to all tokens, also of "".

  Raises:
    ValueError: for text without an encoder.
  """
  if encoder is None:
    if text:
      raise ValueError("This engine knows no text: build it with text=encoder.")
    return {}
  tokens, mask = encoder([text])
  embedded = {"text": np.asarray(tokens, np.float32)}
  if mask is None:
    return embedded
  return embedded | {"text_mask": np.asarray(mask).astype(bool) & bool(text)}


def check_context(context, actions, engine) -> tuple:
  """(uint8 [1, n, H, W, 3], float32 [1, n latent frames, A] or None), checked.

  Raises:
    ValueError: for what `engine` does not begin with.
  """
  shape = (engine.context_frames, *engine.pixels)
  video = np.zeros((0, *engine.pixels), np.uint8) if context is None else np.asarray(context)
  if video.shape != shape or video.dtype != np.uint8:
    raise ValueError(
      f"context must be uint8 {shape}, the frames that precede the stream; got {video.dtype} "
      f"{video.shape}."
    )
  if engine.action_shape is None:
    return video[None], None
  shape = (engine.context_latents, engine.action_shape[1])
  given = np.zeros(shape, np.float32) if actions is None else np.float32(actions)
  if given.shape != shape:
    raise ValueError(f"context_actions must have shape {shape}, got {given.shape}.")
  return video[None], given[None]
