"""A long video encoded by the devices that share its frames: each its own part, behind a halo."""

import functools

import jax
import jax.numpy as jnp
from jax import lax
from jax.sharding import Mesh
from jax.sharding import PartitionSpec as P

from vidstep.models.vae import encode, slice_to_read
from vidstep.parallel.mesh import BATCH


def encode_shards(vae, params, video: jax.Array, mesh: Mesh, *, batch=BATCH, axis="sequence"):
  """The latents of whole videos, of which every device encodes a part (LongLive 2.0, 2605.18739).

  A causal encoder takes the first frame that it sees for the start of the clip; behind `halo`
  latents this is forgotten (`vidstep.models.vae.slice_to_read`). So device p of P, whose are
  L = F / P latents, gets the frames of the h = min(halo, (P-1) L) latents before them from its
  neighbours, encodes h + L and keeps its own. The work of a device is (L + h) / F of the whole:
  it pays for videos much longer than the halo, which is 28 latents for Wan 2.1.

  Args:
    vae: a `WanVAE`.
    params: its parameters, whole on every device.
    video: [B, 4 F, H, W, 3], uint8 or in [-1, 1]: three frames that are not looked at, so that the
      frames divide, then the 1 + 4 (F - 1) of the clip.
    mesh: the devices.
    batch: mesh axes that split the batch.
    axis: mesh axis that splits the frames.

  Returns:
    [B, F, H/8, W/8, C] normalised latents, float32, cut as the video is: what `encode` gives for
    video[:, 3:], to the rounding of another program.

  Raises:
    ValueError: if the frames do not divide among the devices.
  """
  time, devices = 2 ** sum(vae.temporal), mesh.shape[axis]
  if video.shape[1] % (time * devices):
    raise ValueError(
      f"{video.shape[1]} frames do not divide among {devices} devices in groups of {time}: give "
      f"{time - 1} frames that are not looked at, then the clip, {time * devices} n in all."
    )
  place = P(batch, axis)
  return jax.shard_map(
    functools.partial(_encode_own, vae, axis, devices),
    mesh=mesh,
    in_specs=(P(), place),
    out_specs=place,
    check_vma=False,
  )(params, video)


def halo(vae) -> int:
  """Latents before a latent on which its encoding depends; 28 for Wan 2.1."""
  far = 10**6
  return slice_to_read(vae, far, far + 1)[1]


def _encode_own(vae, axis, devices, params, video):
  """What one device does with its frames [B, 4 L, H, W, 3]."""
  time, here = 2 ** sum(vae.temporal), lax.axis_index(axis)
  own = video.shape[1] // time
  reach = min(halo(vae), (devices - 1) * own)
  parts, missing = [video], reach
  for hops in range(1, -(-reach // own) + 1):
    to = [(i, i + hops) for i in range(devices - hops)]
    part = video[:, -time * min(own, missing) :]
    parts.insert(0, lax.ppermute(part, axis, to))
    missing -= own
  frames = jnp.concatenate(parts, axis=1)
  # The first devices have fewer before them: theirs come first, and what follows is not read.
  before = jnp.minimum(reach, here * own)
  frames = jnp.roll(frames, -time * (reach - before), axis=1)[:, time - 1 :]
  if frames.dtype == jnp.uint8:
    frames = frames.astype(jnp.float32) / 127.5 - 1
  return lax.dynamic_slice_in_dim(encode(vae, params, frames), before, own, axis=1)
