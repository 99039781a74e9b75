"""A small dataset of latents whose every number tells where it comes from."""

import numpy as np

from vidstep.data import latents, shards
from vidstep.data.shards import Item

SHAPE, TOKENS, WIDTH = (5, 2, 3, 4), 6, 8


def clip_of(index):
  """The example of an item: numbers drawn from its index, a text of 1 to TOKENS - 1 tokens."""
  rng = np.random.default_rng(index)
  text = np.zeros((TOKENS, WIDTH), np.float32)
  text[: 1 + index % (TOKENS - 1)] = rng.standard_normal((1 + index % (TOKENS - 1), WIDTH))
  values = rng.standard_normal(SHAPE).astype(np.float32)
  return latents.example(values, text, caption=f"été {index}", index=index, source="rng")


def make(items):
  return [Item([clip_of(i)]) for i in items]


def grow(path, make=make, *, write=shards.write_shards, **options):
  """13 items of train in shards of 4, 3 of test."""
  given = {
    "features": latents.features(SHAPE, WIDTH),
    "splits": {"train": 13, "test": 3},
    "request": {"seed": 0},
    "meta": {"kind": latents.KIND, "text_tokens": TOKENS, "frame_rate": 16.0},
    "batch": 2,
    "shard_items": 4,
  }
  return write(path, latents.KIND, make, **(given | options))
