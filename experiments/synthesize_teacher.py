"""Latents that a text-to-video network generates: item i from the noise of (seed, i)."""

from collections.abc import Callable, Sequence

import jax
import numpy as np

from experiments.synthesize_text import Texts
from vidstep.data import latents
from vidstep.data.shards import Item
from vidstep.models.cond import Cond
from vidstep.parallel.sharding import batch_sharding
from vidstep.teachers.text_to_video import Sampler, Setting
from vidstep.teachers.wan import Wan


def noise_fn(seed: int, shape: Sequence[int]) -> Callable:
  """noise(items [B]) -> float32 [B, *shape]; that of an item depends on (seed, item) alone."""

  def noise(items):
    keys = jax.vmap(lambda item: jax.random.fold_in(jax.random.key(seed), item))(items)
    return jax.vmap(lambda key: jax.random.normal(key, tuple(shape)))(keys)

  return noise


class TeacherItems:
  """Makes items by sampling a network.

  Args:
    wan: the network, its parameters on `mesh`.
    texts: prompts of the items.
    setting: how it is sampled; a solver that adds no noise.
    shape: (F, h, w, C) of latents.
    seed: of the noise.
    batch: items at a time; fewer are filled up, so that there is one program.
    mesh: devices that share a batch.
    source: name of the network, for the dataset.
    progress: called with the steps of a batch that are done, and their number.
  """

  def __init__(
    self, wan: Wan, texts: Texts, setting: Setting, *, shape, seed, batch, mesh, source,
    progress=lambda done, total: None,
  ):  # fmt: skip
    self._texts, self._batch, self._source, self._progress = texts, batch, source, progress
    self._spread = batch_sharding(mesh)
    self._noise = jax.jit(noise_fn(seed, shape), out_shardings=self._spread)
    self._sampler = Sampler(wan, setting)

  def __call__(self, items: Sequence[int]) -> list[Item]:
    rows = np.asarray([*items, *[items[-1]] * (self._batch - len(items))], np.uint32)
    text = self._texts(rows.tolist())
    null = np.broadcast_to(self._texts.null(), text.shape)
    told, untold = (Cond(text=jax.device_put(x, self._spread)) for x in (text, null))
    drawn = self._sampler(self._noise(rows), told, untold, jax.random.key(0), self._progress)
    return [self._item(*row) for row in zip(items, np.asarray(drawn), text, strict=False)]

  def _item(self, item, drawn, text):
    caption = self._texts.prompt(item)
    clip = latents.example(drawn, text, caption=caption, index=item, source=self._source)
    return Item([clip])
