"""The device's side of an engine: the rows of all sessions, and one tick of them."""

from typing import NamedTuple

import jax
import numpy as np

from vidstep.causal.programs import State


class Made(NamedTuple):
  """What a tick made of one or of all rows; each array has a row axis.

  Attributes:
    latents: [n, c, h, w, C].
    frames: uint8 [n, T, H, W, 3].
    finite: bool [n].
  """

  latents: jax.Array
  frames: jax.Array
  finite: jax.Array


class Batch:
  """Rows of caches and of the codec's states, advanced together; dispatches and waits for nothing.

  Args:
    programs: `vidstep.causal.programs.Programs`.
    params: parameters of the network.
    codec: a `VideoCodec`.
    text: as for `Programs`.
  """

  def __init__(self, programs, params, codec, text):
    self.programs, self._params, self._codec = programs, params, codec
    self.state = programs.start(params, codec, text)

  def begin(self, video, actions, text, window) -> State:
    """The row of a new session; see `Programs.begin`."""
    return self.programs.begin(self._params, self._codec, video, actions, text, window)

  def take(self, row) -> State:
    """A copy of one row."""
    run, row = self.programs, np.int32(row)
    return State(run.take_cache(self.state.cache, row), run.take_codec(self.state.codec, row))

  def put(self, row, one: State):
    """Puts another state in the place of one row."""
    self._put_cache(row, one.cache)
    self._put_codec(row, one.codec)

  def switch(self, row, text):
    """Gives one row another text."""
    cache = self.programs.switch(self._params, self.state.cache, np.int32(row), text)
    self.state = self.state._replace(cache=cache)

  def tick(self, told, firsts, later) -> dict[int | None, Made]:
    """One chunk of every row.

    Latents come from one program, pixels from a second. A stream's first chunk, if it is another
    than the later ones, passes through programs of its own, row by row: then the batched ones do
    not count for that row, and do not run if there is no other.

    Args:
      told: what `Programs.generate` is told of all rows.
      firsts: row -> what it is told of that row alone, for those that make such a first chunk; None
        instead for a first chunk that only decodes differently.
      later: whether there are other rows that run.

    Returns:
      row -> `Made` of this row alone for those in `firsts`; None -> `Made` of all rows, for the
      others.
    """
    run, alone, states, made = self.programs, {}, {}, {}
    for row, own in firsts.items():
      if own is not None:
        one = run.take_cache(self.state.cache, np.int32(row))
        alone[row] = run.generate_first(self._params, one, own)
    if later or len(alone) < len(firsts):
      latents, cache = run.generate(self._params, self.state.cache, told)
      self.state = self.state._replace(cache=cache)
    for row in firsts:
      x, at = (alone[row][0], 0) if row in alone else (latents, row)
      frames, finite, states[row] = run.decode_first(
        self._codec, x, np.int32(at), np.int32(row), self.state.codec
      )
      made[row] = Made(x, frames, finite)
    if later:
      frames, finite, codec = run.decode(self._codec, latents, self.state.codec)
      self.state = self.state._replace(codec=codec)
      made[None] = Made(latents, frames, finite)
    for row, (_, cache) in alone.items():
      self._put_cache(row, cache)
    for row, one in states.items():
      self._put_codec(row, one)
    for each in made.values():
      each.frames.copy_to_host_async()
      each.finite.copy_to_host_async()
    return made

  def _put_cache(self, row, one):
    cache = self.programs.put_cache(self.state.cache, np.int32(row), one)
    self.state = self.state._replace(cache=cache)

  def _put_codec(self, row, one):
    codec = self.programs.put_codec(self.state.codec, np.int32(row), one)
    self.state = self.state._replace(codec=codec)
