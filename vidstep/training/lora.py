"""Low-rank adaptation: small factors are trained in place of a network that stays as it is."""

import dataclasses
import re

import jax
import jax.numpy as jnp

from vidstep.io.rules import flatten, unflatten

# Layers by their paths, "blocks/self_attn/q" (or "blocks_0/.."), as patterns to be found in them.
TARGETS = {
  "attention": r"^blocks\w*/(self|cross)_attn/",
  "linear": r"^blocks\w*/",
}


@dataclasses.dataclass(frozen=True)
class LoRA:
  """W + (alpha / r) A B instead of W, of which A [in, r] and B [r, out] are trained (2106.09685).

  The factors are a function of parameters to parameters: the network does not know of them. B
  starts at zero, so that at first the network is its base. Stacked blocks (`VideoDiT(scan=True)`)
  have stacked factors. The changed kernels exist while a step runs, in the dtype of the base.

  Attributes:
    rank: r.
    alpha: see above; None means r.
    targets: a name in `TARGETS`, or a regular expression that is searched for in the paths of
      linear layers, such as "self_attn/(q|v)$".
  """

  rank: int
  alpha: float | None = None
  targets: str = "attention"

  def __post_init__(self):
    if self.rank < 1:
      raise ValueError(f"lora.rank={self.rank}: low-rank factors have a rank of 1 or more.")

  @property
  def scale(self) -> float:
    """alpha / r."""
    return 1.0 if self.alpha is None else self.alpha / self.rank

  def layers(self, params) -> dict:
    """Path of every layer with factors, such as "blocks/self_attn/q", to its kernel.

    Args:
      params: parameters of the network, or their shapes.

    Raises:
      ValueError: if there is none, or the pattern is no regular expression.
    """
    kernels = {k: v for k, v in flatten(params).items() if k.endswith("/kernel")}
    kernels = {path.removesuffix("/kernel"): kernel for path, kernel in kernels.items()}
    try:
      pattern = re.compile(TARGETS.get(self.targets, self.targets))
      found = {path: kernel for path, kernel in kernels.items() if pattern.search(path)}
    except re.error as e:
      raise ValueError(f"lora.targets={self.targets!r} is no regular expression: {e}.") from e
    if not found:
      raise ValueError(
        f"lora.targets={self.targets!r} fits no linear layer: choose one of {', '.join(TARGETS)}, "
        f"or a pattern of paths such as {', '.join(list(kernels)[:3])}."
      )
    return found

  def init(self, key, params) -> dict:
    """Fresh factors: A ~ U(-1, 1) / sqrt(in), B = 0.

    Args:
      key: PRNG key.
      params: parameters of the network, or their shapes.

    Returns:
      Tree of the layers with {"a": [.., in, r], "b": [.., r, out]}, float32.
    """
    factors = {}
    for i, (path, kernel) in enumerate(self.layers(params).items()):
      *stack, rows, columns = kernel.shape
      a = jax.random.uniform(
        jax.random.fold_in(key, i), (*stack, rows, self.rank), jnp.float32, -1.0, 1.0
      )
      factors[f"{path}/a"] = a / rows**0.5
      factors[f"{path}/b"] = jnp.zeros((*stack, self.rank, columns), jnp.float32)
    return unflatten(factors)

  def merge(self, params, factors) -> dict:
    """Parameters of the network with the factors added; all others are those of the base.

    Args:
      params: parameters of the base.
      factors: as `init` makes them.
    """
    leaves, factors = flatten(params), flatten(factors)
    for path in [name.removesuffix("/a") for name in factors if name.endswith("/a")]:
      a, b, kernel = factors[f"{path}/a"], factors[f"{path}/b"], leaves[f"{path}/kernel"]
      change = self.scale * jnp.matmul(a, b, precision="highest")
      leaves[f"{path}/kernel"] = (kernel.astype(change.dtype) + change).astype(kernel.dtype)
    return unflatten(leaves)

  def export(self, factors) -> dict:
    """The factors as `vidstep.io.save_lora` wants them: layer -> (a [in, r], b [r, out]), scaled.

    Stacked blocks are taken apart: the layers are "blocks_0/self_attn/q" and so on.
    """
    out, factors = {}, flatten(factors)
    for path in [name.removesuffix("/a") for name in factors if name.endswith("/a")]:
      a, b = jax.device_get((factors[f"{path}/a"], factors[f"{path}/b"]))
      b = self.scale * b
      if a.ndim == 2:
        out[path] = a, b
      else:
        rest = path.removeprefix("blocks/")
        out |= {f"blocks_{i}/{rest}": pair for i, pair in enumerate(zip(a, b, strict=True))}
    return out


def parse_lora(section) -> LoRA | None:
  """The `LoRA` of a config's nets.<role>.lora; None if it has no rank."""
  section = {k: v for k, v in (section or {}).items() if v is not None}
  if "rank" not in section:
    if section:
      raise ValueError(f"lora.{next(iter(section))} is given but no lora.rank: give it as well.")
    return None
  return LoRA(**section)
