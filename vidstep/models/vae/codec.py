"""A causal video autoencoder as the codec of a stream: network and parameters in one value."""

from typing import Any

import flax.struct
import jax

from vidstep.models.vae.stream import decode_chunk, encode, factors
from vidstep.models.vae.tiny import TinyDecoder
from vidstep.models.vae.wan import WanVAE


@flax.struct.dataclass
class VAECodec:
  """A `vidstep.models.codec.VideoCodec` of Wan's latents; decodes latent by latent.

      codec = VAECodec(*load_wan(folder, "vae"))
      codec = VAECodec(*load_wan(folder, "vae"), *load_wan("taew2_1.pth", "tiny_decoder"))

  Attributes:
    vae: the autoencoder; static.
    params: its parameters.
    decoder: what decodes in its place, such as a `TinyDecoder`; None for itself; static.
    decoder_params: its parameters.
  """

  vae: WanVAE = flax.struct.field(pytree_node=False)
  params: Any
  decoder: WanVAE | TinyDecoder | None = flax.struct.field(pytree_node=False, default=None)
  decoder_params: Any = None

  @property
  def channels(self) -> int:
    return self.vae.channels

  @property
  def factors(self) -> tuple[int, int]:
    return factors(self.vae)

  def encode(self, video: jax.Array) -> jax.Array:
    """See `vidstep.models.vae.encode`."""
    return encode(self.vae, self.params, video)

  def decode(self, latents: jax.Array) -> jax.Array:
    """A whole clip; see `vidstep.models.vae.decode`."""
    return self.decode_next(latents)[0]

  def decode_next(self, latents: jax.Array, state=None) -> tuple[jax.Array, Any]:
    """See `vidstep.models.vae.decode_chunk`."""
    own = self.decoder is None
    decoder, params = (self.vae, self.params) if own else (self.decoder, self.decoder_params)
    return decode_chunk(decoder, params, latents, state)
