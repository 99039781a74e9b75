"""One implementation of attention, as `vidstep.attention` sees it."""

import dataclasses
from collections.abc import Callable


@dataclasses.dataclass(frozen=True)
class Kernel:
  """One implementation of attention; the package's docstring says what its functions compute.

  Attributes:
    name: what users call it.
    platforms: lowering platforms it runs on, of "cpu", "tpu", "cuda", "rocm".
    forward: output and log-sum-exp.
    tangent: their directional derivative.
    backward: the transpose of the tangent.
    forward_tangent: both in one sweep, if the kernel has it.
    refuses: why a call is not supported, or None.
    experimental: never executed on its hardware.
  """

  name: str
  platforms: tuple[str, ...]
  forward: Callable
  tangent: Callable
  backward: Callable
  forward_tangent: Callable | None = None
  refuses: Callable = lambda mode, q, k, mask: None
  experimental: bool = False
