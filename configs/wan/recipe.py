"""What the stages of Causal-rCM on Wan 2.1 share: networks, chunks, data and optimizer.

The hyperparameters are those of Causal-rCM (arXiv 2606.25473), Table 3, and, where it is silent, of
its released configs; every stage's docstring names its column. Its losses are sums where ours are
means: `elements` makes up for it, so that Adam's epsilon means the same.
"""

import math

from configs import common
from vidstep.releases import WAN

SIZES = {"1.3b": "wan2.1-t2v-1.3b", "14b": "wan2.1-t2v-14b"}
CHUNKS = {"c1": 1, "c3": 3}  # latent frames that are denoised together: frame-wise, chunk-wise
FRAMES, LATENT_SIZE = 21, (60, 104)  # 81 frames of 480 x 832 pixels
STUDENT = "1.3b"
TIMES = (1.0, 15 / 16, 5 / 6, 5 / 8)  # of four steps
# The tiny Wan of tests/wan_release.py.
TINY = {
  "dim": 24, "heads": 2, "depth": 2, "ffn_dim": 32, "patch": (1, 2, 2), "in_channels": 4,
  "out_channels": 4, "text_dim": 10,
}  # fmt: skip
TINY_FRAMES, TINY_SIZE, TINY_TOKENS = 6, (4, 4), 16


def parse(arg, *, default, options=()):
  """Splits "14b,c1,option" -> (size, chunk, options); size may be "tiny".

  Args:
    arg: words with commas between, or None.
    default: size where none is named.
    options: further words that exist.

  Raises:
    ValueError: for an unknown word.
  """
  words = [word for word in (arg or "").split(",") if word]
  known = (*SIZES, "tiny", *CHUNKS, *options)
  for word in words:
    if word not in known:
      raise ValueError(f"Unknown argument {word!r} of a Wan config: there are {', '.join(known)}.")
  size = next((word for word in words if word in (*SIZES, "tiny")), default)
  chunk = next((CHUNKS[word] for word in words if word in CHUNKS), CHUNKS["c3"])
  return size, chunk, [word for word in words if word in options]


def fields(size):
  """The fields of `VideoDiT` that make a size."""
  return dict(TINY if size == "tiny" else WAN[SIZES[size]].fields)


def release(size):
  """Where the bidirectional network of a size is: "wan:wan2.1-t2v-14b"."""
  return f"wan:{SIZES[size]}" if size in SIZES else "wan:runs/wan-tiny/release"


def runs(size):
  """Folder of the runs whose networks are of a size; see docs/distil_wan.md."""
  return "runs/wan-tiny" if size == "tiny" else "runs/wan"


def base(size, chunk):
  """The config that stages change: a causal network of a size, on latents with their text."""
  config = common.base()
  config.data.update(codec="none", frames=FRAMES, latent_size=LATENT_SIZE, text=True)
  config.data.text_tokens = WAN[SIZES[STUDENT]].text_tokens
  # Blocks are computed again for the gradient, but for what goes into them.
  config.model.update(fields(size) | {"dtype": "bfloat16", "scan": True, "remat": "nothing"})
  config.model.action_dim = 0
  config.causal.chunk = chunk
  # No clipping: with normalised tangents it would act on every step.
  config.optim.update(warmup=100, b1=0.9, b2=0.999, weight_decay=0.01, clip=0.0, ema="power:0.1")
  config.mesh.update(data=1, fsdp=-1)
  config.train.update(log_every=10, save_every=500, sample_every=0)
  config.eval.update(steps=50, shift=WAN[SIZES[STUDENT]].shift, videos=1)
  if size == "tiny":
    config.data.update(
      frames=TINY_FRAMES, latent_size=TINY_SIZE, text_tokens=TINY_TOKENS, batch_size=8
    )
  return config


def elements(config):
  """Numbers of a video: F h w C."""
  size = (config.data.frames, *config.data.latent_size, config.model.out_channels)
  return float(math.prod(size))


def short(config):
  """A run of four steps, for tests."""
  config.optim.warmup = 2
  config.train.update(steps=4, save_every=2)
