"""Writes Wan 2.1 with random weights, so that all that it goes through can be tried without it.

  python -m experiments.wan_random --size=1.3b --out=runs/wan-1.3b
  python -m experiments.sample --model=runs/wan-1.3b --prompt="anything" --size=64x64 --frames=5

The transformer and the VAE have every name and shape of the release, in diffusers' layout and in
bfloat16: 3.4 GB in all for 1.3b, 29 GB for 14b. The text encoder keeps UMT5-XXL's width, which the
transformer reads, but has two layers and a tokenizer of single letters, unless --full_text: then it
is 11 GB. Its videos are noise; its cost is the real one. --size=tiny is for tests: everything is
small, but the factors of the VAE.
"""

import time

import ml_dtypes
import numpy as np
from absl import flags

from experiments import flags as shared
from vidstep.io.random_wan import write_random_wan
from vidstep.models.clip import CLIPVision
from vidstep.models.dit import VideoDiT
from vidstep.models.umt5 import UMT5Encoder
from vidstep.models.vae import WanVAE
from vidstep.releases import WAN

RELEASES = {"1.3b": "wan2.1-t2v-1.3b", "14b": "wan2.1-t2v-14b", "i2v-14b": "wan2.1-i2v-14b-480p"}
SIZE = flags.DEFINE_enum("size", "1.3b", [*RELEASES, "tiny"], "Which Wan.")
OUT = shared.define_out("Folder to write.")
FULL_TEXT = flags.DEFINE_bool("full_text", False, "UMT5-XXL in its own size.")
DTYPE = flags.DEFINE_enum("dtype", "bfloat16", ["bfloat16", "float32"], "Of the files.")
SEED = flags.DEFINE_integer("seed", 0, "Of the numbers; a student is another seed.")


def main(argv):
  del argv
  if not OUT.value:
    raise ValueError("Where to? Give --out=runs/wan-1.3b.")
  begin = time.perf_counter()
  dtype = np.float32 if DTYPE.value == "float32" else ml_dtypes.bfloat16
  folder = write(OUT.value, SIZE.value, full_text=FULL_TEXT.value, dtype=dtype, seed=SEED.value)
  total = sum(file.stat().st_size for file in folder.rglob("*") if file.is_file())
  print(f"{folder}: {total / 1e9:.1f} GB of random weights, {time.perf_counter() - begin:.0f} s")


def write(out, size, *, full_text=False, dtype=ml_dtypes.bfloat16, seed=0):
  """Writes one; arguments are the flags. Returns the folder."""
  how = {"seed": seed, "dtype": dtype, "shard_bytes": 4 * 10**9}
  if size == "tiny":
    fields = {"dim": 32, "heads": 2, "depth": 2, "in_channels": 16, "out_channels": 16}
    text = UMT5Encoder(vocabulary=100, dim=16, heads=2, head_dim=8, ffn_dim=32, depth=2)
    vae = WanVAE(base=8, multipliers=(1, 1, 2, 2), depth=1)
    return write_random_wan(out, VideoDiT(**fields, text_dim=16), vae, text, **how)
  release = WAN[RELEASES[size]]
  text = UMT5Encoder() if full_text else UMT5Encoder(vocabulary=256, ffn_dim=1024, depth=2)
  model, clip = VideoDiT(**release.fields), CLIPVision() if release.image else None
  return write_random_wan(out, model, WanVAE(), text, clip, shift=release.shift, **how)


if __name__ == "__main__":
  shared.run(main)
