"""The engine's compiled functions, of fixed shapes: each is compiled once, whatever sessions do."""

from functools import partial

import jax
import jax.numpy as jnp

from vidstep.causal.rollout import next_chunk
from vidstep.causal.rows import batch_axes, put, take
from vidstep.models.cond import Cond


class Programs:
  """What `Engine` runs on the device; every method is one compiled program.

  Args:
    network, codec, chunk, frame_shape, context_frames, solver, context: as for `Engine`.
    params: the network's parameters.
    sessions: rows of the batch.
    text: {"text" [1, L, Dt], "text_mask" [1, L]} of no text; {} for a network without any.

  Attributes:
    row: shapes of one session's cache.
    pixels: (H, W, 3) of a frame.
  """

  def __init__(
    self, network, codec, params, *, sessions, chunk, frame_shape, context_frames, text, solver,
    context,
  ):  # fmt: skip
    shape = (chunk, *frame_shape)
    empty = lambda batch: jax.ShapeDtypeStruct((batch, *shape), jnp.float32)

    def start(params, batch=sessions):
      repeated = {k: jnp.repeat(v, batch, axis=0) for k, v in text.items()}
      return network.start(params, empty(batch), Cond(**repeated))

    axes = batch_axes(partial(start, params))

    def generate(params, cache, told):
      """One chunk of every row, by its own settings: (x0 [B, c, h, w, C], cache)."""
      frame_key = lambda seed, frame: jax.random.fold_in(jax.random.key(seed), frame)
      keys = jax.vmap(frame_key)(told["seed"], told["frame"])
      keys, noise_keys = jax.vmap(jax.random.split, out_axes=1)(keys)
      noise = jax.vmap(lambda key: jax.random.normal(key, shape))(noise_keys)
      cond = Cond(actions=told.get("actions"))
      return next_chunk(
        network, params, noise, cond, cache.replace(window=told["window"]), keys,
        times=told["times"], steps=told["steps"], solver=solver, context=context,
      )  # fmt: skip

    def decode(latents):
      """Latents -> uint8 pixels, and for every row whether all is finite."""
      video = jnp.round((codec.decode(latents) + 1) * 127.5)
      finite = jnp.isfinite(latents).all(axis=tuple(range(1, latents.ndim)))
      return jnp.clip(video, 0, 255).astype(jnp.uint8), finite

    def begin(params, video, actions, text, window):
      """The row of a new session: its text, and its context read clean."""
      cache = network.start(params, empty(1), Cond(**text)).replace(window=window)
      if not context_frames:
        return cache
      latents = codec.encode(video.astype(jnp.float32) / 127.5 - 1)
      return network.append(params, latents, Cond(actions=actions), cache)

    def switch(params, cache, row, text):
      """Another text for one row."""
      one = network.switch(params, Cond(**text), take(cache, row, axes))
      return put(cache, row, one, axes)

    self.start = jax.jit(start)
    self.generate = jax.jit(generate, donate_argnums=1)
    self.decode = jax.jit(decode)
    self.begin = jax.jit(begin)
    self.switch = jax.jit(switch, donate_argnums=1)
    self.take = jax.jit(partial(take, axes=axes))
    self.put = jax.jit(partial(put, axes=axes), donate_argnums=0)
    self.row = jax.eval_shape(lambda: start(params, 1))
    latents = jax.ShapeDtypeStruct((1, *shape), jnp.float32)
    self.pixels = jax.eval_shape(decode, latents)[0].shape[2:]
