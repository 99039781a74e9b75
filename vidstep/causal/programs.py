"""The engine's compiled functions, of fixed shapes: each is compiled once, whatever sessions do."""

from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from vidstep.causal.rollout import next_chunk
from vidstep.causal.rows import batch_axes, put, take
from vidstep.models.cond import Cond


class State(NamedTuple):
  """What streams remember: a row each, all of a batch or a single one.

  Attributes:
    cache: of the network, at the end of the latents that were generated.
    codec: what the codec needs to decode the latents after those; it may have no leaves.
  """

  cache: Any
  codec: Any


class Programs:
  """What `Engine` runs on the device; every method is one compiled program.

  The parameters of the network and of the codec are arguments of all of them. Shapes will do in
  their place: `programs.generate.lower(..)` then compiles ahead, without weights.

  Args:
    network, codec, frame_shape, context_frames, solver, context: as for `Engine`.
    params: the network's parameters.
    sessions: rows of the batch.
    first: latent frames of a stream's first chunk.
    chunk: of every other.
    text: {"text" [1, L, Dt], "text_mask" [1, L]} of no text; {} for a network without any.

  Attributes:
    row: shapes of one session's `State`.
    pixels: (H, W, 3) of a frame.
    context_latents: latent frames of the context.
    alone: whether the first chunk of a stream is another program than the later ones.
  """

  def __init__(
    self, network, codec, params, *, sessions, first, chunk, frame_shape, context_frames, text,
    solver, context,
  ):  # fmt: skip
    empty = lambda batch, c=chunk: jax.ShapeDtypeStruct((batch, c, *frame_shape), jnp.float32)

    def start(params, codec, text, batch=sessions):
      """Rows of which nothing is used before a session's is put in their place."""
      repeated = {k: jnp.repeat(v, batch, axis=0) for k, v in text.items()}
      cache = network.start(params, empty(batch), Cond(**repeated))
      state = jax.eval_shape(lambda codec, x: codec.decode_next(x)[1], codec, empty(batch, 1))
      return State(cache, jax.tree.map(lambda a: jnp.zeros(a.shape, a.dtype), state))

    axes = batch_axes(start, params, codec, text)

    def generate(params, cache, told, length=chunk):
      """One chunk of every row, by its own settings: (x0 [B, c, h, w, C], cache)."""
      frame_key = lambda seed, frame: jax.random.fold_in(jax.random.key(seed), frame)
      keys = jax.vmap(frame_key)(told["seed"], told["frame"])
      keys, noise_keys = jax.vmap(jax.random.split, out_axes=1)(keys)
      noise = jax.vmap(lambda key: jax.random.normal(key, (length, *frame_shape)))(noise_keys)
      cond = Cond(actions=told.get("actions"))
      return next_chunk(
        network, params, noise, cond, cache.replace(window=told["window"]), keys,
        times=told["times"], steps=told["steps"], solver=solver, context=context,
      )  # fmt: skip

    def decode(codec, latents, state):
      """Latents -> uint8 pixels, for every row whether all is finite, and the codec's state."""
      video, state = codec.decode_next(latents, state)
      finite = lambda a: jnp.isfinite(a).all(axis=tuple(range(1, a.ndim)))
      pixels = jnp.clip(jnp.round((video + 1) * 127.5), 0, 255).astype(jnp.uint8)
      return pixels, finite(latents) & finite(video), state

    def decode_first(codec, latents, at, row, states):
      """`decode` of a row's first chunk, latents[at]: of a clip's start, or behind the context."""
      one = take(latents, at, 0)
      state = take(states, row, axes.codec) if context_frames else None
      return decode(codec, one, state)

    def begin(params, codec, video, actions, text, window):
      """The row of a new session: its text, and its context read clean."""
      cache = network.start(params, empty(1), Cond(**text)).replace(window=window)
      if not context_frames:
        return State(cache, jax.tree.map(lambda a: jnp.zeros(a.shape, a.dtype), self.row.codec))
      latents = codec.encode(video.astype(jnp.float32) / 127.5 - 1)
      cache = network.append(params, latents, Cond(actions=actions), cache)
      return State(cache, codec.decode_next(latents)[1])

    def switch(params, cache, row, text):
      """Another text for one row."""
      one = network.switch(params, Cond(**text), take(cache, row, axes.cache))
      return put(cache, row, one, axes.cache)

    # Caches and states of the codec are taken and put apart: one need not wait for the other.
    each = lambda fn, **options: [jax.jit(partial(fn, axes=a), **options) for a in axes]
    taken, placed = each(take), each(put, donate_argnums=0)

    self.start = jax.jit(start)
    self.generate = jax.jit(generate, donate_argnums=1)
    self.generate_first = jax.jit(partial(generate, length=first), donate_argnums=1)
    self.decode = jax.jit(decode, donate_argnums=2)
    self.decode_first = jax.jit(decode_first)
    self.begin = jax.jit(begin)
    self.switch = jax.jit(switch, donate_argnums=1)
    self.take_cache, self.take_codec = taken
    self.put_cache, self.put_codec = placed
    self.row = jax.eval_shape(partial(start, batch=1), params, codec, text)
    remembers = bool(jax.tree.leaves(self.row.codec))
    self.alone = first != chunk or (remembers and not context_frames)
    video = jax.eval_shape(lambda codec, x: codec.decode_next(x)[0], codec, empty(1, 1))
    self.pixels = video.shape[2:]
    clip = jax.ShapeDtypeStruct((1, context_frames, *self.pixels), jnp.float32)
    encode = lambda: jax.eval_shape(lambda codec, x: codec.encode(x), codec, clip).shape[1]
    self.context_latents = encode() if context_frames else 0
