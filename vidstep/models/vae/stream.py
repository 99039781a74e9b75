"""Encoding and decoding latent by latent: whole clips and chunks run the same step.

Memory is that of one latent (4 pixel frames) however long the clip is, and a clip decoded in any
chunking is the clip decoded at once.
"""

import jax
import jax.numpy as jnp

from vidstep.models.vae.layers import STREAM


def encode(vae, params, video: jax.Array) -> jax.Array:
  """Encodes a clip.

  Args:
    vae: a `WanVAE`.
    params: its parameters.
    video: [B, 1 + 4 n, H, W, 3] in [-1, 1].

  Returns:
    [B, 1 + n, H/8, W/8, C] normalised latents, float32.

  Raises:
    ValueError: if the frames or their sides do not divide.
  """
  return encode_chunk(vae, params, video)[0]


def decode(vae, params, latents: jax.Array) -> jax.Array:
  """Decodes a clip: the inverse shapes of `encode`."""
  return decode_chunk(vae, params, latents)[0]


def encode_chunk(vae, params, video: jax.Array, state=None):
  """Encodes the next frames of a clip.

  Args:
    vae: a `WanVAE`.
    params: its parameters.
    video: [B, 1 + 4 n, H, W, 3] in [-1, 1] at the start of a clip, then [B, 4 n, H, W, 3].
    state: what the previous call returned; None starts a clip.

  Returns:
    ([B, 1 + n or n, H/8, W/8, C] normalised latents float32, state).

  Raises:
    ValueError: if the frames or their sides do not divide.
  """
  time, space = factors(vae)
  start = 1 if state is None else 0
  frames, *sides = video.shape[1:4]
  if frames % time != start % time or frames < 1 or any(side % space for side in sides):
    raise ValueError(
      f"cannot encode {frames} frames of {sides[0]} x {sides[1]} pixels: a clip starts with "
      f"1 + {time} n frames and goes on with {time} n, whose sides are multiples of {space}."
    )
  return _run(vae, params, "encode", video, state, time)


def decode_chunk(vae, params, latents: jax.Array, state=None, *, at_once: int = 1):
  """Decodes the next latents of a clip. Two calls compile twice: the first one, and all others.

  Args:
    vae: a `WanVAE`.
    params: its parameters.
    latents: [B, n, h, w, C] normalised.
    state: what the previous call returned; None starts a clip.
    at_once: latents of one pass, after the first of a clip, which is alone. The result is the same
      to rounding. More of them take as much more memory; on an accelerator they read and write the
      past of every convolution once for all.

  Returns:
    ([B, 1 + 4 (n-1) or 4 n, 8 h, 8 w, 3] in [-1, 1] float32, state).
  """
  return _run(vae, params, "decode", latents, state, at_once)


def slice_to_read(vae, start: int, stop: int) -> tuple[slice, int]:
  """Which pixel frames give latents start .. stop - 1 of a clip exactly, without the rest of it.

  A causal encoder takes the first frame that it sees for the start of the clip; its latents are
  those of the whole clip once all convolutions have left that frame behind:

      frames, drop = slice_to_read(vae, start, stop)
      encode(vae, params, video[:, frames])[:, drop:]  ==  encode(vae, params, video)[:, start:stop]

  So that the devices of a sequence-parallel group each encode their own part of a long video.

  Args:
    vae: a `WanVAE`.
    start: first latent that is wanted.
    stop: one after the last.

  Returns:
    (pixel frames to read, latents to drop in front).

  Raises:
    ValueError: if the range is empty.
  """
  if not 0 <= start < stop:
    raise ValueError(f"latents {start} .. {stop - 1} are an empty range.")
  time = factors(vae)[0]
  first = max(0, start - _halo(vae))
  return slice(time * first, time * (stop - 1) + 1), start - first


def _halo(vae) -> int:
  """Latents before a latent on which its encoding depends; 28 for Wan 2.1.

  Frames looked back upon, from the output to the input: a convolution over three frames adds two,
  a residual block four; a halving of time doubles what has come together and adds two.
  """
  block = 4
  past = 2 + 2 * block
  for level in reversed(range(len(vae.multipliers))):
    past += vae.depth * block
    if level and vae.temporal[level - 1]:
      past = 2 * past + 2
  past += 2
  return -(-past // factors(vae)[0])


def factors(vae) -> tuple[int, int]:
  """(Pixel frames that a latent frame stands for, side of a latent in pixels)."""
  return 2 ** sum(vae.temporal), 2 ** len(vae.temporal)


def _run(vae, params, method, x, state, stride):
  """Steps of `stride` frames of x; the first of a clip takes one frame, the last what is left."""

  def step(state, x):
    variables = {"params": params} if state is None else {"params": params, STREAM: state}
    y, updates = vae.apply(variables, x, method=method, mutable=[STREAM])
    return updates[STREAM], y

  parts = []
  if state is None:
    state, y = step(None, x[:, :1])
    parts, x = [y], x[:, 1:]
  whole = x.shape[1] // stride * stride
  if whole:
    steps = x[:, :whole].reshape(x.shape[0], -1, stride, *x.shape[2:])
    state, y = jax.lax.scan(step, state, jnp.moveaxis(steps, 1, 0))
    y = jnp.moveaxis(y, 0, 1)
    parts.append(y.reshape(y.shape[0], -1, *y.shape[3:]))
  if whole < x.shape[1]:
    state, y = step(state, x[:, whole:])
    parts.append(y)
  return (parts[0] if len(parts) == 1 else jnp.concatenate(parts, axis=1)), state
