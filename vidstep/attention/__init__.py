"""Attention: one op, forward and reverse mode, any frame mask, the kernel picked per platform."""

from vidstep.attention.merge import merge
from vidstep.attention.op import attention

__all__ = ["attention", "merge"]
