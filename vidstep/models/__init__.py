"""Networks: one video DiT, its conditioning, its layout."""

from vidstep.models.cond import Cond, Out, null_cond
from vidstep.models.dit import VideoDiT
from vidstep.models.layout import Layout, pack, unpack
from vidstep.models.velocity import velocity_fn

__all__ = ["Cond", "Layout", "Out", "VideoDiT", "null_cond", "pack", "unpack", "velocity_fn"]
