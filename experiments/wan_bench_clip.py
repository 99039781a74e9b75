"""Makes a clip by a row of the table, and times it: as a stream, chunk by chunk, stage by stage."""

import collections
import itertools
import time

import jax
import numpy as np

from experiments.wan_bench_programs import Programs, draw, start, vae_shapes
from experiments.wan_bench_rows import Row


class Clip:
  """A prompt, a network and a decoder of random weights on the device.

  Args:
    programs: compiled for a chunk size.
    params: of the network.
    vae: parameters of the decoder; None draws them.
  """

  def __init__(self, programs: Programs, params, vae=None):
    self.programs, self.params = programs, params
    size = programs.size
    self.vae = draw(vae_shapes(size), 1) if vae is None and size.vae is not None else vae
    self._start = jax.jit(lambda p: start(size, programs.attention, p))
    shape = (1, programs.chunk, *size.latent, size.fields["in_channels"])
    keys = jax.random.split(jax.random.key(2), size.frames // programs.chunk)
    self.noises = [jax.random.normal(key, shape) for key in keys]
    self._extra = jax.random.normal(jax.random.key(3), shape)  # noise of steps between

  def play(self, row: Row, *, by: str = "clip") -> dict:
    """Makes a clip once.

    Args:
      row: what to make.
      by: what is waited for: "clip" (nothing before the end), "chunk" (pixels of each chunk on the
        host), "stage" (every call).

    Returns:
      {"seconds", "latents"} and, by "chunk", "chunks": seconds from one chunk's pixels to the
      next's; by "stage", "stages": {name: [(frames in the cache, seconds)]}.
    """
    stages, chunks, hosts = collections.defaultdict(list), [], []
    frames = self.programs.size.frames
    cache, state = jax.block_until_ready(self._start(self.params)), None
    count, begin = row.chunks(frames), time.perf_counter()
    last = begin

    def call(name, held, *args):
      run = np.asarray if name == "to host" else self.programs.stages[name].run
      if by != "stage":
        return run(*args)
      at = time.perf_counter()
      out = jax.block_until_ready(run(*args))
      stages[name].append((held, time.perf_counter() - at))
      return out

    latents = []
    for i, x in enumerate(self.noises):
      held = i * row.chunk
      times = row.steps(i)
      fused = row.noisy and 0 < i < count - 1
      for t, below in itertools.pairwise((*times, 0.0)):
        if fused and below == 0.0:
          x, cache = call("denoise + write", held, self.params, cache, x, _time(t))
        else:
          step = self.params, cache, x, _time(t), _time(below), self._extra
          x = call("denoise", held, *step)
      latents.append(x)
      if self.vae is not None:
        if state is None:
          pixels, state = call("decode, first", held, self.vae, x)
        else:
          pixels, state = call("decode", held, self.vae, x, state)
        pixels.copy_to_host_async()
      if row.writes(i, count):  # after the pixels: nobody waits for it but the next chunk
        cache = call("write", held, self.params, cache, x)
      if self.vae is None:
        continue
      if by == "clip":
        hosts.append(pixels)
      else:
        hosts.append(call("to host", held, pixels))
        now = time.perf_counter()
        chunks.append(now - last)
        last = now
    jax.block_until_ready((latents, cache, hosts))
    hosts = [np.asarray(a) for a in hosts]
    seconds = time.perf_counter() - begin
    return {
      "seconds": seconds,
      "chunks": chunks,
      "stages": dict(stages),
      "latents": latents,
      "frames": sum(a.shape[1] for a in hosts),
    }


def _time(t):
  return np.full(1, t, np.float32)
