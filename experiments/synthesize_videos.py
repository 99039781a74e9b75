"""Latents of video files: resampled, cropped, encoded latent by latent, several files at once."""

import pathlib
from collections.abc import Iterator, Sequence
from itertools import islice

import jax
import jax.numpy as jnp
import numpy as np

from experiments.synthesize_text import Texts
from vidstep.data import latents
from vidstep.data.resample import cover, frames_at
from vidstep.data.shards import Item
from vidstep.models.vae import encode_chunk
from vidstep.models.vae.stream import factors
from vidstep.parallel.sharding import batch_sharding, replicated


class VideoItems:
  """Makes items by encoding files: item v * clips + k is the k-th clip of file v.

  A step encodes the frames of one latent (the first: one frame) of every file of the batch, so
  memory does not grow with the length of a clip.

  Args:
    vae: a `WanVAE`.
    params: its parameters.
    videos: files.
    folder: that names in the dataset are relative to.
    texts: captions of the items.
    frames: pixel frames of a clip, 1 + 4 n.
    size: (height, width) of a frame.
    rate: frames per second.
    clips: of a file at most, one after the other.
    batch: items at a time.
    mesh: devices that share a batch.
    refuse: raise for a damaged file instead of leaving it out.

  Attributes:
    shape: (F, h, w, C) of the latents of a clip.

  Raises:
    ValueError: for a clip that the autoencoder cannot encode.
  """

  def __init__(
    self, vae, params, videos, folder, texts: Texts, *, frames, size, rate, clips, batch, mesh,
    refuse=False,
  ):  # fmt: skip
    self._videos, self._folder, self._texts, self._refuse = videos, folder, texts, refuse
    self._frames, self._size, self._rate, self._clips = frames, size, rate, clips
    self._batch, (self._time, space) = batch, factors(vae)
    if (frames - 1) % self._time or any(side % space for side in size):
      raise ValueError(
        f"{frames} frames of {size[0]} x {size[1]} pixels do not fit: a clip has "
        f"1 + {self._time} n frames, whose sides are multiples of {space}."
      )
    self.shape = (1 + (frames - 1) // self._time, size[0] // space, size[1] // space, vae.channels)
    spread, everywhere = batch_sharding(mesh), replicated(mesh)
    self._params = jax.device_put(params, everywhere)

    def encode(params, pixels, state=None):
      return encode_chunk(vae, params, pixels.astype(jnp.float32) / 127.5 - 1, state)

    self._first = jax.jit(encode, in_shardings=(everywhere, spread), out_shardings=spread)
    self._next = jax.jit(
      encode, in_shardings=(everywhere, spread, spread), out_shardings=spread, donate_argnums=2
    )

  def __call__(self, items: Sequence[int]) -> list[Item]:
    sources = [self._pixels(item) for item in items]
    failed, parts, state = {}, [], None
    for count in (1, *[self._time] * ((self._frames - 1) // self._time)):
      pixels = np.zeros((self._batch, count, *self._size, 3), np.uint8)
      for row, source in enumerate(sources):
        if row in failed:
          continue
        try:
          for column in range(count):
            pixels[row, column] = next(source)
        except StopIteration:
          failed[row] = None
        except ValueError as error:
          failed[row] = str(error)
          if self._refuse:
            raise
      if len(failed) == len(items):
        break
      if state is None:
        part, state = self._first(self._params, pixels)
      else:
        part, state = self._next(self._params, pixels, state)
      parts.append(part)
    text = self._texts(items)
    encoded = np.concatenate([np.asarray(part) for part in parts], axis=1) if parts else None
    made = []
    for row, item in enumerate(items):
      if row in failed:
        made.append(self._left_out(item, failed[row]))
      else:
        made.append(self._item(item, encoded[row], text[row]))
    return made

  def _pixels(self, item: int) -> Iterator[np.ndarray]:
    video, clip = divmod(item, self._clips)
    start = clip * self._frames
    for frame in islice(frames_at(self._videos[video], self._rate), start, start + self._frames):
      yield cover(frame, *self._size)

  def _name(self, item: int) -> str:
    video, clip = divmod(item, self._clips)
    name = pathlib.Path(self._videos[video]).relative_to(self._folder).as_posix()
    return f"{name}#{clip}" if self._clips > 1 else name

  def _item(self, item, encoded, text) -> Item:
    caption, source = self._texts.prompt(item), self._name(item)
    return Item([latents.example(encoded, text, caption=caption, index=item, source=source)])

  def _left_out(self, item: int, reason: str | None) -> Item:
    if reason is None and item % self._clips:  # a file gives as many clips as it is long
      return Item([])
    seconds = self._frames / self._rate
    return Item([], reason or f"{self._name(item)} is shorter than {seconds:.3g} seconds")
