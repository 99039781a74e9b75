"""Video autoencoders that are causal in time: whole clips, chunk after chunk, or slices."""

from vidstep.models.vae.codec import VAECodec
from vidstep.models.vae.stream import decode, decode_chunk, encode, encode_chunk, slice_to_read
from vidstep.models.vae.tiny import TinyDecoder
from vidstep.models.vae.wan import WanVAE

__all__ = [
  "TinyDecoder",
  "VAECodec",
  "WanVAE",
  "decode",
  "decode_chunk",
  "encode",
  "encode_chunk",
  "slice_to_read",
]
