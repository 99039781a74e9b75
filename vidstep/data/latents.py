"""Latent datasets: what an example holds, and how a training batch reads it.

A latent of Wan's VAE depends on all frames before it, and the first one stands for a single frame:
a clip is read from its beginning, never from its middle.
"""

import json
from pathlib import Path

import numpy as np
import tensorflow_datasets as tfds

from vidstep.data.shards import whole

KIND = "latents"
NULL_TEXT = "null_text.npy"


def features(shape: tuple[int, int, int, int], text_dim: int) -> tfds.features.FeaturesDict:
  """Features of an example of latents `shape` = (F, h, w, C) and text of `text_dim` channels.

  latents float16 [F, h, w, C]; text float16 [n, Dt], without padding; caption and source text;
  index int64, the number of the item that it was made from.
  """
  whole = tfds.features.Encoding.BYTES
  return tfds.features.FeaturesDict(
    {
      "latents": tfds.features.Tensor(shape=tuple(shape), dtype=np.float16, encoding=whole),
      "text": tfds.features.Tensor(shape=(None, text_dim), dtype=np.float16, encoding=whole),
      "caption": tfds.features.Text(),
      "source": tfds.features.Text(),
      "index": tfds.features.Scalar(np.int64),
    }
  )


def example(latents, text, *, caption: str, index: int, source: str) -> dict:
  """An example of one clip.

  Normalised latents and text embeddings are of order 1: float16 rounds them to 11 bits (bfloat16 to
  8) and reaches 65504.

  Args:
    latents: [F, h, w, C].
    text: [L, Dt] embeddings; rows of zeros at the end are padding, and not stored.
    caption: what they are embeddings of.
    index: number of the item.
    source: what it comes from: name of the network or of the file.

  Raises:
    ValueError: for numbers that are not finite in float16.
  """
  return {
    "latents": _half(latents, f"Latents of item {index}"),
    "text": _half(without_padding(text), f"Text of item {index}"),
    "caption": caption,
    "source": source,
    "index": index,
  }


def is_dataset(path: str | None) -> bool:
  """Whether a finished dataset of latents lies at `path`."""
  file = Path(path or "") / "metadata.json"
  return file.is_file() and json.loads(file.read_text()).get("kind") == KIND


def without_padding(text) -> np.ndarray:
  """Embeddings [L, Dt] up to their last row that is not all zeros; at least one row."""
  text = np.asarray(text)
  used = np.flatnonzero((text != 0).any(axis=-1))
  return text[: used[-1] + 1 if len(used) else 1]


def with_padding(text: np.ndarray, tokens: int) -> np.ndarray:
  """Embeddings [n, Dt] with rows of zeros up to [tokens, Dt], float32.

  Raises:
    ValueError: if there are more rows already.
  """
  if len(text) > tokens:
    raise ValueError(
      f"An embedding of {len(text)} tokens does not fit into {tokens}: raise data.text_tokens."
    )
  padded = np.zeros((tokens, text.shape[-1]), np.float32)
  padded[: len(text)] = text
  return padded


def read(clip: dict, frames: int, text_tokens: int) -> dict:
  """An item of a training batch: the first `frames` latents float32, text float32, caption."""
  caption = clip["caption"]
  return {
    "latents": clip["latents"][:frames].astype(np.float32),
    "text": with_padding(clip["text"], text_tokens),
    "caption": caption.decode() if isinstance(caption, bytes) else str(caption),
  }


def save_null_text(path: str | Path, text) -> None:
  """Keeps, beside the clips, the embedding [L, Dt] that guidance takes for "no text".

  Wan has no empty condition: its unconditional branch reads an embedded negative prompt.
  """
  half = _half(without_padding(text), "The negative prompt")
  with whole(Path(path) / NULL_TEXT) as partial, partial.open("wb") as file:
    np.save(file, half)


def null_text(path: str | Path, tokens: int) -> np.ndarray | None:
  """What `save_null_text` kept, float32 [tokens, Dt]; None if there is nothing."""
  file = Path(path) / NULL_TEXT
  return with_padding(np.load(file), tokens) if file.exists() else None


def _half(values, what: str) -> np.ndarray:
  values = np.asarray(values, np.float32)
  with np.errstate(over="ignore"):
    half = values.astype(np.float16)
  if not np.isfinite(half).all():
    raise ValueError(f"{what} holds numbers that are not finite in float16: it is not stored.")
  return half
