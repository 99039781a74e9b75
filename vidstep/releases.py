"""The released sizes of Wan 2.1: where they are, their numbers, and how they are sampled."""

import dataclasses
from collections.abc import Mapping
from types import MappingProxyType


@dataclasses.dataclass(frozen=True)
class Release:
  """One pretrained network (arXiv 2503.20314, table 2 and the public configs).

  Attributes:
    repository: on the Hugging Face hub, in diffusers' layout.
    fields: of `VideoDiT`.
    size: (height, width) in pixels that it was made for.
    shift: time shift of its sampling grid at that size.
    guidance: v_uncond + w (v_cond - v_uncond), the usual w.
    frames: pixel frames of a clip, 1 + 4 n.
    frame_rate: frames per second.
    text_tokens: length of a prompt; padding is zero and is attended to.
  """

  repository: str
  fields: Mapping
  size: tuple[int, int] = (480, 832)
  shift: float = 5.0
  guidance: float = 5.0
  frames: int = 81
  frame_rate: float = 16.0
  text_tokens: int = 512

  @property
  def image(self) -> bool:
    """Whether it continues an image."""
    return "image_dim" in self.fields


_COMMON = {"patch": (1, 2, 2), "in_channels": 16, "out_channels": 16, "text_dim": 4096}
_SMALL = MappingProxyType(_COMMON | {"dim": 1536, "heads": 12, "depth": 30, "ffn_dim": 8960})
_LARGE = MappingProxyType(_COMMON | {"dim": 5120, "heads": 40, "depth": 40, "ffn_dim": 13824})
# 16 channels of the image's latent and 4 that say which frames are given; CLIP's 257 states.
_IMAGE = MappingProxyType(_LARGE | {"in_channels": 36, "image_dim": 1280, "image_tokens": 257})

WAN = {
  "wan2.1-t2v-1.3b": Release("Wan-AI/Wan2.1-T2V-1.3B-Diffusers", _SMALL),
  "wan2.1-t2v-14b": Release("Wan-AI/Wan2.1-T2V-14B-Diffusers", _LARGE),
  "wan2.1-i2v-14b-480p": Release("Wan-AI/Wan2.1-I2V-14B-480P-Diffusers", _IMAGE, shift=3.0),
  "wan2.1-i2v-14b-720p": Release("Wan-AI/Wan2.1-I2V-14B-720P-Diffusers", _IMAGE, (720, 1280)),
}
