"""Names of the weights of Wan's image encoder: those of transformers, and those of the release."""

import re
from collections.abc import Iterator, Mapping

import numpy as np

from vidstep.io.rules import SAME, Form, Rule, layer

_PATCH = Form(
  lambda a: a.transpose(2, 3, 1, 0).reshape(-1, a.shape[0]),
  lambda a: np.transpose(a.reshape(*(round((a.shape[0] / 3) ** 0.5),) * 2, 3, -1), (3, 2, 0, 1)),
)
_LAYER = {"q": "self_attn.q_proj", "k": "self_attn.k_proj", "v": "self_attn.v_proj",
          "o": "self_attn.out_proj", "in": "mlp.fc1", "out": "mlp.fc2"}  # fmt: skip


def clip_rules(depth: int) -> Iterator[Rule]:
  """The rules of a `CLIPVision` in the names of `transformers.CLIPVisionModel`."""
  yield Rule("class", "embeddings.class_embedding", SAME)
  yield Rule("position", "embeddings.position_embedding.weight", SAME)
  yield from layer("patch_embed", "embeddings.patch_embedding", _PATCH, bias=False)
  yield from _norm("norm", "pre_layrnorm")
  for i in range(depth):
    ours, theirs = f"blocks_{i}", f"encoder.layers.{i}"
    for a, b in _LAYER.items():
      yield from layer(f"{ours}/{a}", f"{theirs}.{b}")
    for j in (1, 2):
      yield from _norm(f"{ours}/norm{j}", f"{theirs}.layer_norm{j}")


def _norm(ours, theirs):
  yield Rule(f"{ours}/scale", f"{theirs}.weight", SAME)
  yield Rule(f"{ours}/bias", f"{theirs}.bias", SAME)


_ORIGINAL = {
  r"pre_norm\.": "pre_layrnorm.",
  r"patch_embedding\.": "embeddings.patch_embedding.",
  r"transformer\.(\d+)\.norm([12])\.": r"encoder.layers.\1.layer_norm\2.",
  r"transformer\.(\d+)\.attn\.proj\.": r"encoder.layers.\1.self_attn.out_proj.",
  r"transformer\.(\d+)\.mlp\.0\.": r"encoder.layers.\1.mlp.fc1.",
  r"transformer\.(\d+)\.mlp\.2\.": r"encoder.layers.\1.mlp.fc2.",
}


def clip_tensors(tensors: Mapping) -> dict:
  """The tensors that `clip_rules` asks for, out of any public layout.

  Args:
    tensors: of transformers' vision model (with or without the prefix "vision_model."), or of
      `models_clip_open-clip-xlm-roberta-large-vit-huge-14.pth`, which holds the text side as well.

  Returns:
    Name to array, views of the given ones; without the last layer and what follows it.
  """
  out = {}
  for name, a in tensors.items():
    if name.startswith("textual.") or name == "log_scale":
      continue
    out |= _original(name[7:], a) if name.startswith("visual.") else {name: a}
  plain = {name.removeprefix("vision_model."): a for name, a in out.items()}
  numbers = [int(n.split(".")[2]) for n in plain if n.startswith("encoder.layers.")]
  return {name: a for name, a in plain.items() if not _unused(name, max(numbers, default=0))}


def _original(name, a):
  if name == "cls_embedding":
    return {"embeddings.class_embedding": a.reshape(-1)}
  if name == "pos_embedding":
    return {"embeddings.position_embedding.weight": a[0]}
  fused = re.fullmatch(r"transformer\.(\d+)\.attn\.to_qkv\.(weight|bias)", name)
  if fused:
    thirds = [a[i * len(a) // 3 : (i + 1) * len(a) // 3] for i in range(3)]
    theirs = f"encoder.layers.{fused[1]}.self_attn.%s_proj.{fused[2]}"
    return {theirs % part: third for part, third in zip("qkv", thirds, strict=True)}
  for pattern, new in _ORIGINAL.items():
    name, hits = re.subn("^" + pattern, new, name)
    if hits:
      break
  return {name: a}


def _unused(name, last):
  """What comes behind the states that are asked for, and a table of 0, 1, 2, .."""
  after = (f"encoder.layers.{last}.", "post_layernorm.", "post_norm.", "visual_projection.")
  return name.startswith(after) or name in ("head", "embeddings.position_ids")
