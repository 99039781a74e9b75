"""Codecs: video to latents and back; what a stream asks of one, and the linear one of patches.

The linear codec is the Karhunen-Loeve transform (PCA) of p x p patches. It is fitted in closed form
in seconds, decodes in microseconds, and what it leaves out is known: the discarded eigenvalues.
"""

import dataclasses
import os
from functools import partial
from typing import Any, Protocol

import jax
import jax.numpy as jnp
import numpy as np

from vidstep.files import whole


class VideoCodec(Protocol):
  """Video to latents and back, piece by piece. See `Codec` and `vidstep.models.vae.VAECodec`.

  A codec is a pytree whose leaves are its parameters: hand it to compiled functions as an argument,
  and nothing is baked into them.

  Attributes:
    channels: of a latent.
    factors: (pixel frames that a latent frame stands for, side of a latent in pixels). A clip of F
      latent frames is 1 + factors[0] (F - 1) pixel frames.
  """

  channels: int
  factors: tuple[int, int]

  def encode(self, video: jax.Array) -> jax.Array:
    """Video [B, T, H, W, 3] in [-1, 1], a clip from its start -> latents [B, F, h, w, C]."""

  def decode(self, latents: jax.Array) -> jax.Array:
    """Latents [B, F, h, w, C], a clip from its start -> video [B, T, H, W, 3] in [-1, 1]."""

  def decode_next(self, latents: jax.Array, state: Any = None) -> tuple[jax.Array, Any]:
    """The next latents [B, n, h, w, C] of a clip: their video, and the state for those after them.

    Args:
      latents: they follow those of the call that returned `state`.
      state: a pytree whose leaves have a row for each of the batch; None starts a clip.

    Returns:
      (video [B, n times the frames of a latent, or that of a clip's start, H, W, 3], state).
    """


@partial(
  jax.tree_util.register_dataclass, data_fields=("mean", "basis", "gain"), meta_fields=("patch",)
)
@dataclasses.dataclass(frozen=True, eq=False)
class Codec:
  """A linear map between patches of pixels and latent channels, frame by frame.

      z = (patch - mean) @ basis * gain,      patch_hat = (z / gain) @ basis' + mean

  Attributes:
    patch: side p of a patch in pixels; a latent frame is H/p x W/p.
    mean: [p*p*3] mean patch.
    basis: [p*p*3, C] orthonormal columns, by falling variance.
    gain: [C] scale of every channel; its choice sets the order in which detail drowns in noise.
  """

  patch: int
  mean: np.ndarray
  basis: np.ndarray
  gain: np.ndarray

  @property
  def channels(self) -> int:
    return self.basis.shape[1]

  @property
  def factors(self) -> tuple[int, int]:
    return 1, self.patch

  def encode(self, video: jax.Array) -> jax.Array:
    """Maps video [B, T, H, W, 3] in [-1, 1] to latents [B, T, H/p, W/p, C], float32."""
    *batch, h, w, c = video.shape
    p = self.patch
    if h % p or w % p:
      raise ValueError(f"frames of {h} x {w} pixels cannot be cut into {p} x {p} patches")
    x = video.reshape(*batch, h // p, p, w // p, p, c)
    x = jnp.moveaxis(x, -4, -3).reshape(*batch, h // p, w // p, p * p * c)
    return (x - _row(self.mean, x)) @ (self.basis * self.gain[None])

  def decode(self, latents: jax.Array) -> jax.Array:
    """Maps latents [B, T, H/p, W/p, C] to video [B, T, H, W, 3], clipped to [-1, 1], float32."""
    *batch, h, w, _ = latents.shape
    p = self.patch
    x = latents @ (self.basis / self.gain[None]).T
    x = (x + _row(self.mean, x)).reshape(*batch, h, w, p, p, 3)
    return jnp.clip(jnp.moveaxis(x, -3, -4).reshape(*batch, h * p, w * p, 3), -1.0, 1.0)

  def decode_next(self, latents: jax.Array, state=None) -> tuple[jax.Array, tuple]:
    """`decode`: frames know nothing of each other, and the state is empty."""
    del state
    return self.decode(latents), ()

  def save(self, path: str | os.PathLike):
    """Writes the codec as one .npz, whole or not at all."""
    with whole(path) as partial, open(partial, "wb") as f:
      np.savez(f, patch=self.patch, mean=self.mean, basis=self.basis, gain=self.gain)


def _row(vector, x):
  """Lifts a vector to the rank of x, so that nothing broadcasts silently."""
  return jnp.asarray(vector).reshape((1,) * (x.ndim - 1) + (-1,))


def pixel_codec() -> Codec:
  """The identity: latents are the pixels themselves."""
  one = np.ones(3, np.float32)
  return Codec(patch=1, mean=0 * one, basis=np.eye(3, dtype=np.float32), gain=one)


def fit_codec(frames: np.ndarray, *, patch: int, channels: int, whiten: float = 0.5) -> Codec:
  """Fits the linear codec: the leading eigenvectors of the patch covariance.

  A channel of variance s^2 is scaled by s^-whiten, then all by one number to unit mean variance.
  whiten = 0 keeps natural statistics (detail drowns in noise first, coarse structure last),
  whiten = 1 makes every channel alike.

  Args:
    frames: [N, H, W, 3] in [-1, 1].
    patch: side of a patch in pixels.
    channels: latent channels to keep, at most 3 * patch^2.
    whiten: exponent in [0, 1].

  Raises:
    ValueError: if channels do not fit the patch or frames do not divide into patches.
  """
  size = 3 * patch * patch
  if not 1 <= channels <= size:
    raise ValueError(f"a {patch} x {patch} patch has 1 to {size} channels, not {channels}")
  raw = Codec(patch, np.zeros(size, np.float32), np.eye(size, dtype=np.float32),
              np.ones(size, np.float32))  # fmt: skip
  x = np.asarray(raw.encode(jnp.asarray(frames, jnp.float32)), np.float64).reshape(-1, size)
  mean = x.mean(0)
  variance, vectors = np.linalg.eigh(np.cov(x - mean, rowvar=False).reshape(size, size))
  variance, vectors = variance[::-1][:channels], vectors[:, ::-1][:, :channels]
  gain = np.maximum(variance, 1e-8) ** (-whiten / 2)
  gain /= np.sqrt(np.mean(gain**2 * variance))
  return Codec(patch, *(a.astype(np.float32) for a in (mean, vectors, gain)))


def load_codec(name: str | os.PathLike) -> Codec:
  """Returns the codec called "pixel", or the one that `Codec.save` wrote to a path.

  Raises:
    FileNotFoundError: if there is no such file.
    ValueError: if the file is no codec.
  """
  if str(name) == "pixel":
    return pixel_codec()
  if not os.path.exists(name):
    raise FileNotFoundError(
      f"no codec at {name}: fit one with `python -m experiments.codec --out={name}`, "
      'or set data.codec to "pixel"'
    )
  try:
    with np.load(name) as f:
      return Codec(int(f["patch"]), f["mean"], f["basis"], f["gain"])
  except (ValueError, KeyError, OSError) as e:
    raise ValueError(f"{name} is not a codec written by experiments.codec ({e})") from e
