"""Runs one mode of attention with the best kernel of a platform, or with the one asked for."""

import dataclasses
import functools

import jax

from pallas_kernels.attention import KERNELS, HostArray, Kernel, Mask
from vidstep.masks import Rule
from vidstep.masks.plan import FieldRule


@dataclasses.dataclass(frozen=True)
class Spec:
  """What is static about a call.

  Attributes:
    rule: the mask; None attends everywhere.
    q_info: attributes of the queries, `[B or 1, 4, Nq]`, if the host knows them; with a leading
      axis of shards if x says which shard this is.
    k_info: attributes of the keys.
    scale: factor of the logits.
    implementation: name of a kernel; None picks.
  """

  rule: Rule | None
  q_info: HostArray | None
  k_info: HostArray | None
  scale: float
  implementation: str | None

  @property
  def sharded(self) -> bool:
    """Whether the host knows the attributes of all shards, and x says which ones these are."""
    return self.q_info is not None and self.q_info.value.ndim == 4

  @property
  def inputs(self) -> int:
    """How many arrays make up x: q, k, v and whatever the mask needs at run time, two arrays."""
    return 3 if self.rule is None or (self.q_info is not None and not self.sharded) else 5

  def mask(self, x: list[jax.Array]) -> Mask:
    """The mask of the call `x`."""
    q, k, _, *rest = x
    if self.rule is None:
      return Mask(q.shape[1], k.shape[1])
    at = tuple(rest) if self.sharded else None
    infos = (self.q_info, self.k_info) if self.q_info is not None else rest
    return Mask(q.shape[1], k.shape[1], FieldRule(self.rule), *infos, at)


def pick(mode: str, platform: str | None, spec: Spec, x: list[jax.Array]) -> Kernel:
  """The kernel for a call.

  Args:
    mode: "forward", "tangent" or "backward".
    platform: where it will run; None while that is not known.
    spec: the static side of the call.
    x: q, k, v and, where the mask needs them, traced attributes or shard indices.

  Raises:
    ValueError: for a name that no kernel has.
    NotImplementedError: with the reason of the kernel asked for, or the reasons of all.
  """
  kernels = [k for k in KERNELS if spec.implementation in (None, k.name)]
  if not kernels:
    names = sorted({"xla", *(k.name for k in KERNELS)})
    raise ValueError(f"implementation={spec.implementation!r}: choose from {names}, or None.")
  reasons = []
  for kernel in kernels:
    if spec.implementation is None and kernel.experimental:
      reason = "it was never run on its hardware, and is used only when named"
    elif platform not in (None, *kernel.platforms):
      reason = f"it runs on {' and '.join(kernel.platforms)}, not on {platform}"
    else:
      reason = kernel.refuses(mode, x[0], x[1], spec.mask(x))
    if reason is None:
      return kernel
    reasons.append(f"{kernel.name}: {reason}")
  raise NotImplementedError(f"attention {mode} is not supported by " + "; ".join(reasons) + ".")


@functools.partial(jax.jit, static_argnames=("mode", "platform", "spec", "flags"))
def run(*args: jax.Array, mode: str, platform: str, spec: Spec, flags: tuple[bool, ...]):
  """Runs a kernel's function on the flat arguments of its primitive.

  Args:
    *args: x, then what the mode needs; of tangents, only the live ones.
    mode: "forward", "forward_tangent", "tangent" or "backward".
    platform: where it will run.
    spec: the static side of the call.
    flags: which tangents are alive, or which gradients wanted.

  Returns:
    A list of outputs; of gradients, only the wanted ones.
  """
  x, rest = list(args[: spec.inputs]), list(args[spec.inputs :])
  q, k, v = x[:3]
  call = {"mask": spec.mask(x), "scale": spec.scale}
  kernel = functools.partial(pick, platform=platform, spec=spec, x=x)
  if mode == "forward":
    return list(kernel(mode).forward(q, k, v, **call))
  if mode == "backward":
    grads = kernel(mode).backward(q, k, v, *rest, wanted=flags, **call)
    return [g for g, wanted in zip(grads, flags, strict=True) if wanted]
  residuals, live = ([], rest) if mode == "forward_tangent" else (rest[:2], rest[2:])
  live = iter(live)
  tangents = [next(live) if alive else None for alive in flags]
  if mode == "tangent":
    return list(kernel(mode).tangent(q, k, v, *residuals, *tangents, **call))
  fused = kernel("tangent").forward_tangent
  if fused is not None and kernel("forward") is kernel("tangent"):
    return list(fused(q, k, v, *tangents, **call))
  o, lse = kernel("forward").forward(q, k, v, **call)
  return [o, lse, *kernel("tangent").tangent(q, k, v, o, lse, *tangents, **call)]
