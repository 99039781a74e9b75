"""Encoders of prompts and images that are read when they are needed, run, and let go again."""

import collections
from collections.abc import Callable, Sequence

import jax
import jax.numpy as jnp
import numpy as np

from vidstep.io.clip_names import clip_tensors
from vidstep.io.files import find
from vidstep.io.tensors import open_tensors
from vidstep.models.clip import clip_pixels
from vidstep.models.umt5 import Tokenizer

KEPT = 256  # prompts
SHORTEST = 32  # tokens; lengths are doubled from there, so that there are few programs


class TextEncoder:
  """Prompts to Wan's text embeddings by UMT5.

  UMT5-XXL is 11 GB in bfloat16, three times as large as Wan 1.3B: it is held only while prompts are
  embedded, and the last 256 embeddings are kept. Give all prompts at once. Short prompts are run at
  their own length, rounded up: what is masked out changes nothing.

  Args:
    place: folder or repository with the tokenizer; see `vidstep.io.files.find`.
    length: tokens of a prompt, padded with zeros.
    load: () -> (module, params).
  """

  def __init__(self, place, length: int, load: Callable):
    self._place, self.length, self._load = place, length, load
    self._kept = collections.OrderedDict()  # prompt -> [tokens of it, Dt]
    self._run = None

  def __call__(self, prompts: Sequence[str]) -> np.ndarray:
    """N prompts -> float32 [N, length, Dt], zero beyond the end of a prompt."""
    if not prompts:
      raise ValueError("there are no prompts to embed.")
    known = self.remember(prompts)
    width = known[prompts[0]].shape[-1]
    out = np.zeros((len(prompts), self.length, width), np.float32)
    for row, prompt in zip(out, prompts, strict=True):
      row[: len(known[prompt])] = known[prompt]
    return out

  def remember(self, prompts: Sequence[str]) -> dict[str, np.ndarray]:
    """Embeds those of the prompts that are not kept, and keeps them: prompt -> [tokens, Dt]."""
    known = {p: self._kept[p] for p in prompts if p in self._kept}
    new = [p for p in dict.fromkeys(prompts) if p not in known]
    if new:
      known |= dict(zip(new, self._embed(new), strict=True))
    self._kept |= {p: known[p] for p in prompts}
    while len(self._kept) > KEPT:
      self._kept.popitem(last=False)
    return known

  def _embed(self, prompts):
    tokens, mask = Tokenizer(find(self._place, "tokenizer"), self.length)(prompts)
    model, params = self._load()
    if self._run is None:
      self._run = jax.jit(lambda p, tokens, mask: model.apply({"params": p}, tokens, mask))
    out = []
    for row, real in zip(tokens, mask.sum(1).tolist(), strict=True):
      size = SHORTEST
      while size < real:
        size *= 2
      size = min(size, self.length)
      text = self._run(params, row[None, :size], np.arange(size)[None] < real)
      out.append(np.asarray(text[0, :real]))
    return out


class ImageEncoder:
  """A picture to the states of CLIP's vision transformer that Wan's image-to-video reads.

  Args:
    place: folder or repository with the encoder.
    load: () -> (module, params).

  Attributes:
    tokens: how many states.
  """

  def __init__(self, place, load: Callable):
    self._load = load
    tensors = clip_tensors(open_tensors(find(place, "image_encoder")))
    try:
      self.tokens = tensors["embeddings.position_embedding.weight"].shape[0]
    except KeyError as e:
      raise ValueError(f"the image encoder of {place} has no {e.args[0]}.") from e

  def __call__(self, image: jax.Array) -> np.ndarray:
    """[B, H, W, 3] in [-1, 1] -> float32 [B, tokens, Di]."""
    model, params = self._load()
    pixels = clip_pixels(jnp.asarray(image, jnp.float32), model.size)
    states = jax.jit(lambda p, x: model.apply({"params": p}, x))(params, pixels)
    return np.asarray(states, np.float32)
