"""Videos that people and probes look at while a network trains, from its latents."""

import functools

import jax
import jax.numpy as jnp
import numpy as np

from vidstep.data.loader import data_info
from vidstep.io import load_wan
from vidstep.models.vae import VAECodec
from vidstep.releases import WAN

HEIGHT = 128  # pixels of a decoded preview at most
COLOURS = 3.0  # standard deviations of a latent channel from black to white


def make_show(setup):
  """What draws latents: the codec of a run; of data of latents the VAE that the data name.

  A VAE is read at the first call and stays on the host. It decodes latent by latent and keeps one
  frame of each, at most 128 pixels high, so that latent frames and shown ones correspond. If it
  cannot be opened, the first three channels of a latent are shown as colours.

  Args:
    setup: a `Setup`.

  Returns:
    (show, sentence): show(latents [B, F, h, w, C]) -> video [B, F, H, W, 3] in [-1, 1]; a sentence
    on what will be seen, or None.
  """
  if setup.codec is not None:
    return jax.jit(setup.codec.decode), None
  name = data_info(setup.config["data"]["path"]).get("codec")
  try:
    if name is None:
      raise FileNotFoundError("the dataset names no VAE")
    codec = VAECodec(*load_wan(WAN[name].repository if name in WAN else name, "vae"))
  except (FileNotFoundError, ImportError, OSError, ValueError) as error:
    reason = " ".join(str(error).split())
    return channels, f"pictures show the first three latent channels as colours: {reason}"
  return functools.partial(frames, jax.device_get(codec)), f"pictures are decoded by {name}"


def channels(latents):
  """The first three channels as red, green and blue; their ordinary range is all of [-1, 1]."""
  latents = np.asarray(latents, np.float32)[..., :3]
  missing = [(0, 0)] * (latents.ndim - 1) + [(0, 3 - latents.shape[-1])]
  return np.pad(np.clip(latents / COLOURS, -1, 1), missing)


def frames(codec, latents):
  """The last pixel frame of each latent frame, reduced to at most 128 pixels high; float32."""
  videos = []
  for clip in np.asarray(latents, np.float32):
    state, parts = None, []
    for latent in clip:
      part, state = _decode(codec, latent[None, None], state)
      parts.append(np.asarray(part))
    videos.append(np.stack(parts))
  return np.stack(videos)


@jax.jit
def _decode(codec, latent, state):
  video, state = codec.decode_next(latent, state)
  return reduced(video[0, -1]), state


def reduced(frame):
  """A frame [H, W, 3] averaged over squares of the least size that leaves 128 pixels of height."""
  height, width, colours = frame.shape
  fits = lambda n: height % n == width % n == 0 and height // n <= HEIGHT
  by = next((n for n in range(1, height + 1) if fits(n)), 1)
  squares = frame.reshape(height // by, by, width // by, by, colours)
  return jnp.mean(squares, axis=(1, 3))
