"""A tiny Wan with random weights, in the layout that diffusers saves, made without PyTorch."""

import numpy as np

from vidstep.io.random_wan import write_random_wan
from vidstep.models.clip import CLIPVision
from vidstep.models.dit import VideoDiT
from vidstep.models.umt5 import UMT5Encoder
from vidstep.models.vae import WanVAE

CHANNELS, TEXT_DIM, TEXT_TOKENS, IMAGE_DIM = 4, 10, 16, 12


def make_release(folder, *, image=False, seed=0, dtype=np.float32, text_tokens=TEXT_TOKENS):
  """Writes it, with the factors of the real one: 4 pixel frames of 8 x 8 pixels to a latent.

  Args:
    folder: where to.
    image: of image to video, with CLIP's encoder and 4 + 4 + 4 channels.
    seed: of the numbers; a student of the same shape is `make_release(other, seed=1)`.
    dtype: of the files.
    text_tokens: length of a prompt.

  Returns:
    The folder; see `vidstep.teachers.wan.open_wan`.
  """
  states = {"image_dim": IMAGE_DIM, "image_tokens": 10} if image else {}
  transformer = VideoDiT(
    dim=24, heads=2, depth=2, ffn_dim=32, text_dim=TEXT_DIM, out_channels=CHANNELS,
    in_channels=(2 * CHANNELS + 4) if image else CHANNELS, **states,
  )  # fmt: skip
  vae = WanVAE(
    base=4, channels=CHANNELS, multipliers=(1, 1, 2, 2), depth=1,
    mean=(0.1, 0.2, -0.3, 0.0), std=(1.1, 2.0, 0.7, 1.0),
  )  # fmt: skip
  text = UMT5Encoder(vocabulary=100, dim=TEXT_DIM, heads=3, head_dim=4, ffn_dim=14, depth=2)
  clip = CLIPVision(dim=IMAGE_DIM, heads=2, ffn_dim=20, depth=2, patch=4, size=12)
  how = {"seed": seed, "dtype": dtype, "text_tokens": text_tokens}
  return write_random_wan(folder, transformer, vae, text, clip if image else None, **how)
