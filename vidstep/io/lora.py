"""Low-rank factors in and out, under the names of diffusers and peft; merged into the weights."""

import json
import pathlib
import re
from collections.abc import Iterable, Mapping

import jax
import jax.numpy as jnp
import numpy as np

from vidstep.io.dit_names import from_original
from vidstep.io.rules import LINEAR, Rule, flatten, some, unflatten
from vidstep.io.safetensors_file import Item, write_safetensors
from vidstep.io.tensors import open_tensors

Factors = dict[str, tuple[np.ndarray, np.ndarray]]

_NAME = re.compile(
  r"(?:(?:generator_ema|generator_lora|generator|base_model|diffusion_model|transformer|model)\.)*"
  r"(.+?)\.(lora_A|lora_B|lora_down|lora_up|alpha)(?:\.default)?(?:\.weight)?"
)
_SIDES = {"lora_A": "a", "lora_down": "a", "lora_B": "b", "lora_up": "b", "alpha": "alpha"}


def load_lora(path, rules: Iterable[Rule], *, alpha: float | None = None) -> Factors:
  """Reads factors A [r, in] and B [out, r] of `W + alpha / r * B A`.

  Args:
    path: a file or folder, in the names of diffusers, peft (with its adapter_config.json) or the
      original Wan; or a mapping of name to array.
    rules: those of the network that they belong to, such as `dit_rules(model)`.
    alpha: of a file that does not say; by default r, so that the factors are taken as they are.

  Returns:
    Path of the layer, "blocks_0/self_attn/q", to (a [in, r], b [r, out]) float32 with the scale in
    b, so that the layer's kernel becomes `kernel + a @ b`.

  Raises:
    ValueError: naming what fits no layer, and layers that have one factor only.
  """
  if not isinstance(path, Mapping):
    config = pathlib.Path(path) / "adapter_config.json"
    if alpha is None and config.is_file():
      alpha = json.loads(config.read_text())["lora_alpha"]
    path = {n: a for n, a in open_tensors(path).items() if not n.startswith("critic_lora.")}
  layers = {r.theirs.removesuffix(".weight"): r for r in rules if r.form is LINEAR}
  found, wrong = {}, []
  for name, tensor in path.items():
    match = _NAME.fullmatch(name)
    module = match and from_original(match[1] + ".").rstrip(".")
    if module not in layers:
      wrong.append(name)
      continue
    ours = layers[module].ours.removesuffix("/kernel")
    found.setdefault(ours, {})[_SIDES[match[2]]] = np.asarray(tensor, np.float32)
  if wrong:
    raise ValueError(f"these factors fit no layer of the network: {some(sorted(wrong))}.")
  halves = sorted(ours for ours, parts in found.items() if not {"a", "b"} <= set(parts))
  if halves:
    raise ValueError(f"these layers have one factor without the other: {some(halves)}.")
  out = {}
  for ours, parts in found.items():
    rank = parts["a"].shape[0]
    scale = float(parts.get("alpha", rank if alpha is None else alpha)) / rank
    out[ours] = parts["a"].T, scale * parts["b"].T
  return out


def save_lora(path, factors: Factors, rules: Iterable[Rule], *, note: str = ""):
  """Writes factors under diffusers' names, `transformer.blocks.0.attn1.to_q.lora_A.weight`.

  Args:
    path: a .safetensors file.
    factors: layer to (a [in, r], b [r, out]).
    rules: those of the network.
    note: what this is and how it was made; kept in the header.

  Raises:
    ValueError: for a layer that is not in the rules.
  """
  names = {r.ours: r.theirs.removesuffix(".weight") for r in rules if r.form is LINEAR}
  unknown = sorted(layer for layer in factors if f"{layer}/kernel" not in names)
  if unknown:
    raise ValueError(f"the network has no such layers: {some(unknown)}.")
  items = []
  for layer, pair in factors.items():
    for side, factor in zip("AB", pair, strict=True):
      name = f"transformer.{names[f'{layer}/kernel']}.lora_{side}.weight"
      read = lambda factor=factor: np.asarray(factor).T
      items.append(Item(name, factor.shape[::-1], np.dtype(np.float32), read))
  write_safetensors(path, items, {"format": "pt"} | ({"note": note} if note else {}))


def merge_lora(params, factors: Factors, *, scale: float = 1.0):
  """kernel + scale * a @ b for every layer that has factors; stacked blocks as well.

  Args:
    params: parameters of the network.
    factors: see `load_lora`.
    scale: strength; negative takes merged factors out again.

  Returns:
    The parameters, of the same dtypes and shardings.

  Raises:
    ValueError: for a layer that is not there, or of another shape.
  """
  leaves = flatten(params)
  for layer, (a, b) in factors.items():
    path, index = _place(f"{layer}/kernel", leaves)
    leaf = leaves[path]
    if leaf[index].shape != (a.shape[0], b.shape[1]) or a.shape[1] != b.shape[0]:
      raise ValueError(
        f"factors {a.shape} and {b.shape} do not fit {layer} of shape {leaf[index].shape}."
      )
    update = scale * jnp.dot(a, b, precision="highest")
    kernel = (leaf[index].astype(jnp.float32) + update).astype(leaf.dtype)
    merged = jnp.asarray(leaf).at[index].set(kernel)
    sharding = getattr(leaf, "sharding", None)
    leaves[path] = merged if sharding is None else jax.device_put(merged, sharding)
  return unflatten(leaves)


def _place(path, leaves):
  """Where a kernel is: under its own path, or in a stack of blocks."""
  if path in leaves:
    return path, ...
  block, _, rest = path.partition("/")
  if block.startswith("blocks_") and f"blocks/{rest}" in leaves:
    return f"blocks/{rest}", int(block.removeprefix("blocks_"))
  raise ValueError(f"the network has no layer {path.removesuffix('/kernel')}.")
