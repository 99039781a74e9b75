"""Names of the Wan transformer's weights: diffusers', the original release's, and students'."""

import re
from collections.abc import Iterator, Mapping

import numpy as np

from vidstep.io.rules import LEADING, SAME, Form, Rule, layer, some

HEAD_DIM = 128  # of every Wan 2.1


def dit_rules(model) -> Iterator[Rule]:
  """The rules of a `VideoDiT` of Wan's shape in the names of diffusers' `WanTransformer3DModel`."""
  yield from layer("patch_embed", "patch_embedding", _patch_form(model.patch, model.in_channels))
  for ours, theirs in (("time_embed", "time_embedder"), ("text_embed", "text_embedder")):
    yield from layer(f"{ours}/in", f"condition_embedder.{theirs}.linear_1")
    yield from layer(f"{ours}/out", f"condition_embedder.{theirs}.linear_2")
  yield from layer("time_proj", "condition_embedder.time_proj")
  if model.image_dim is not None:
    ours, theirs = "image_embed", "condition_embedder.image_embedder"
    yield from layer(f"{ours}/in", f"{theirs}.ff.net.0.proj")
    yield from layer(f"{ours}/out", f"{theirs}.ff.net.2")
    for norm in ("norm1", "norm2"):
      yield Rule(f"{ours}/{norm}/scale", f"{theirs}.{norm}.weight", SAME)
      yield Rule(f"{ours}/{norm}/bias", f"{theirs}.{norm}.bias", SAME)
  for i in range(model.depth):
    ours, theirs = f"blocks_{i}", f"blocks.{i}"
    yield Rule(f"{ours}/modulation", f"{theirs}.scale_shift_table", LEADING)
    for a, b in (("self_attn", "attn1"), ("cross_attn", "attn2")):
      for c, d in (("q", "to_q"), ("k", "to_k"), ("v", "to_v"), ("o", "to_out.0")):
        yield from layer(f"{ours}/{a}/{c}", f"{theirs}.{b}.{d}")
      for norm in ("norm_q", "norm_k"):
        yield Rule(f"{ours}/{a}/{norm}/scale", f"{theirs}.{b}.{norm}.weight", SAME)
    if model.image_dim is not None:
      yield from layer(f"{ours}/cross_attn/k_image", f"{theirs}.attn2.add_k_proj")
      yield from layer(f"{ours}/cross_attn/v_image", f"{theirs}.attn2.add_v_proj")
      norm = f"{theirs}.attn2.norm_added_k.weight"
      yield Rule(f"{ours}/cross_attn/norm_k_image/scale", norm, SAME)
    yield Rule(f"{ours}/cross_norm/scale", f"{theirs}.norm2.weight", SAME)
    yield Rule(f"{ours}/cross_norm/bias", f"{theirs}.norm2.bias", SAME)
    yield from layer(f"{ours}/ffn_in", f"{theirs}.ffn.net.0.proj")
    yield from layer(f"{ours}/ffn_out", f"{theirs}.ffn.net.2")
  yield Rule("head_modulation", "scale_shift_table", LEADING)
  yield from layer("head", "proj_out")


def _patch_form(patch, channels):
  """The patch convolution [dim, C, pt, ph, pw] is our linear layer over (pt, ph, pw, C)."""
  return Form(
    lambda a: a.transpose(2, 3, 4, 1, 0).reshape(-1, a.shape[0]),
    lambda a: a.reshape(*patch, channels, -1).transpose(4, 3, 0, 1, 2),
  )


# What training wraps around names, and the roles that students are saved under, the averaged first:
# Self-Forcing and LongLive keep {"generator_ema": {"model.blocks..": ..}}, rCM "net.blocks..".
_WRAPPERS = ("_fsdp_wrapped_module.", "_checkpoint_wrapped_module.", "_orig_mod.")
_PREFIXES = (
  "generator_ema.", "generator.", "net_ema.", "net.", "state_dict.", "model.diffusion_model.",
  "diffusion_model.", "transformer.", "module.", "model.",
)  # fmt: skip
_ORIGINAL = {
  r"\btime_embedding\.0\.": "condition_embedder.time_embedder.linear_1.",
  r"\btime_embedding\.2\.": "condition_embedder.time_embedder.linear_2.",
  r"\btext_embedding\.0\.": "condition_embedder.text_embedder.linear_1.",
  r"\btext_embedding\.2\.": "condition_embedder.text_embedder.linear_2.",
  r"\btime_projection\.1\.": "condition_embedder.time_proj.",
  r"\bimg_emb\.proj\.0\.": "condition_embedder.image_embedder.norm1.",
  r"\bimg_emb\.proj\.1\.": "condition_embedder.image_embedder.ff.net.0.proj.",
  r"\bimg_emb\.proj\.3\.": "condition_embedder.image_embedder.ff.net.2.",
  r"\bimg_emb\.proj\.4\.": "condition_embedder.image_embedder.norm2.",
  r"\bself_attn\.": "attn1.",
  r"\bcross_attn\.": "attn2.",
  r"(attn[12])\.([qkv])\.": r"\1.to_\2.",
  r"(attn[12])\.o\.": r"\1.to_out.0.",
  r"attn2\.([kv])_img\.": r"attn2.add_\1_proj.",
  r"attn2\.norm_k_img\.": "attn2.norm_added_k.",
  r"\.norm3\.": ".norm2.",
  r"\.ffn\.0\.": ".ffn.net.0.proj.",
  r"\.ffn\.2\.": ".ffn.net.2.",
  r"\.modulation$": ".scale_shift_table",
  r"^head\.scale_shift_table$": "scale_shift_table",
  r"^head\.head\.": "proj_out.",
}


def from_original(name: str) -> str:
  """The name in diffusers of a weight of the original release; names without prefix."""
  for pattern, new in _ORIGINAL.items():
    name = re.sub(pattern, new, name)
  return name


def unwrap(tensors: Mapping, role: str | None = None) -> dict:
  """Takes one network out of a checkpoint: its names without what training put around them.

  Args:
    tensors: name to array.
    role: what the network is saved under, such as "generator"; by default "generator_ema",
      "generator", "net_ema" or "net", the first that is there. All others are left out.

  Raises:
    ValueError: if there is no such role.
  """
  for wrapper in _WRAPPERS:
    tensors = {name.replace(wrapper, ""): a for name, a in tensors.items()}
  if role is not None:
    inside = _inside(tensors, role + ".")
    if not inside:
      there = sorted({name.partition(".")[0] for name in tensors})
      raise ValueError(f"the checkpoint has no {role!r}; it has {some(there)}.")
    tensors = inside
  while inside := next(filter(None, (_inside(tensors, p) for p in _PREFIXES)), None):
    tensors = inside
  return tensors


def _inside(tensors, prefix):
  return {n[len(prefix) :]: a for n, a in tensors.items() if n.startswith(prefix)}


def dit_tensors(tensors: Mapping, role: str | None = None) -> dict:
  """The tensors of a Wan transformer under diffusers' names, out of any public layout.

  Args:
    tensors: of diffusers, of the original release, or of a student of Self-Forcing, CausVid,
      LongLive or rCM.
    role: see `unwrap`.

  Returns:
    Name to array, views of the given ones.
  """
  tensors = unwrap(tensors, role)
  if "head.head.weight" in tensors:
    tensors = {from_original(name): a for name, a in tensors.items()}
  # Transformer Engine's bookkeeping, which rCM's training leaves behind.
  tensors = {name: a for name, a in tensors.items() if not name.endswith("_extra_state")}
  kernel = tensors.get("patch_embedding.weight")
  if kernel is not None and kernel.ndim == 2:  # rCM's linear layer over (C, 1, 2, 2)
    tensors["patch_embedding.weight"] = kernel.reshape(kernel.shape[0], -1, 1, 2, 2)
  return tensors


def dit_fields(tensors: Mapping, heads: int | None = None) -> dict:
  """Fields of the `VideoDiT` that tensors of diffusers' names belong to, read off their shapes.

  Args:
    tensors: see `dit_tensors`.
    heads: attention heads, the one number that shapes do not tell; by default heads of 128.

  Raises:
    ValueError: if the tensors are not those of a Wan transformer.
  """
  try:
    dim, channels, *patch = tensors["patch_embedding.weight"].shape
    depth = len({n.split(".")[1] for n in tensors if n.startswith("blocks.")})
    image = tensors.get("condition_embedder.image_embedder.norm1.weight")
    return {
      "dim": dim,
      "heads": heads or max(1, dim // HEAD_DIM),
      "depth": depth,
      "ffn_dim": tensors["blocks.0.ffn.net.0.proj.weight"].shape[0],
      "patch": tuple(patch),
      "in_channels": channels,
      "out_channels": tensors["proj_out.weight"].shape[0] // int(np.prod(patch)),
      "text_dim": tensors["condition_embedder.text_embedder.linear_1.weight"].shape[1],
      "image_dim": None if image is None else image.shape[0],
    }
  except KeyError as e:
    raise ValueError(
      f"this is no Wan transformer: there is no {e.args[0]} among {some(sorted(tensors), 3)}."
    ) from e
