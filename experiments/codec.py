"""Fits the linear patch codec to a dataset: seconds, in closed form.

  python -m experiments.codec --data=datasets/doom --patch=8 --channels=16 --out=runs/codec.npz

The codec turns every p x p patch of a frame into a few latent channels (PCA); networks then train
on latents by `--config.data.codec=runs/codec.npz`. Prints how well the test split survives the
way there and back: that is the ceiling of every model that uses it.
"""

import os

import jax
import numpy as np
from absl import flags

from experiments import flags as shared
from vidstep.data.loader import open_source
from vidstep.data.video_io import to_float
from vidstep.metrics.frames import psnr
from vidstep.models.codec import fit_codec, load_codec

DATA = flags.DEFINE_string("data", None, "Dataset folder made by experiments.record.")
OUT = shared.define_out("Where to write the codec, a .npz file.")
PATCH = flags.DEFINE_integer("patch", 8, "Side of a patch in pixels.")
CHANNELS = flags.DEFINE_integer("channels", 16, "Latent channels of a patch.")
WHITEN = flags.DEFINE_float("whiten", 0.5, "0 keeps natural variances, 1 makes channels alike.")
FRAMES = flags.DEFINE_integer("frames", 4096, "Frames to fit to.")


def main(argv):
  del argv
  if not DATA.value or not OUT.value:
    raise ValueError("Give --data=datasets/... and --out=runs/.../codec.npz.")
  fit(DATA.value, OUT.value, PATCH.value, CHANNELS.value, WHITEN.value, FRAMES.value)


def fit(data, out, patch, channels, whiten=0.5, frames=4096):
  """Fits and saves a codec, unless `out` is there already; returns it."""
  if os.path.exists(out):
    print(f"{out} is there already: reusing it")
    return load_codec(out)
  codec = fit_codec(
    to_float(_frames(data, "train", frames)), patch=patch, channels=channels, whiten=whiten
  )
  codec.save(out)
  test = to_float(_frames(data, "test", 512))
  back = np.asarray(jax.jit(lambda x: codec.decode(codec.encode(x)))(test[None]))
  ratio = 3 * patch**2 / channels
  print(
    f"{out}: {patch} x {patch} pixels -> {channels} channels ({ratio:.1f}x smaller), "
    f"PSNR {float(np.mean(psnr(back, test[None]))):.1f} dB on the test split"
  )
  return codec


def _frames(data, split, count):
  """About `count` frames [N, H, W, 3] of clips spread evenly over a split, uint8."""
  clips = open_source(data, split)
  wanted = -(-count // len(clips[0]["video"]))
  chosen = range(0, len(clips), max(1, len(clips) // wanted))
  return np.concatenate([clips[i]["video"] for i in chosen])[:count]


if __name__ == "__main__":
  shared.run(main)
