"""Names of the weights of Wan's text encoder: those of transformers, and those of the release."""

import re
from collections.abc import Iterator

from vidstep.io.rules import SAME, Rule, layer

_LAYER = {"q": "0.SelfAttention.q", "k": "0.SelfAttention.k", "v": "0.SelfAttention.v",
          "o": "0.SelfAttention.o", "gate": "1.DenseReluDense.wi_0",
          "in": "1.DenseReluDense.wi_1", "out": "1.DenseReluDense.wo"}  # fmt: skip


def umt5_rules(depth: int) -> Iterator[Rule]:
  """The rules of a `UMT5Encoder` in the names of `transformers.UMT5EncoderModel`."""
  yield Rule("embed", "shared.weight", SAME)
  yield Rule("norm/scale", "encoder.final_layer_norm.weight", SAME)
  for i in range(depth):
    ours, theirs = f"blocks_{i}", f"encoder.block.{i}.layer"
    for a, b in _LAYER.items():
      yield from layer(f"{ours}/{a}", f"{theirs}.{b}", bias=False)
    for j in range(2):
      yield Rule(f"{ours}/norm{j + 1}/scale", f"{theirs}.{j}.layer_norm.weight", SAME)
    bias = f"{theirs}.0.SelfAttention.relative_attention_bias.weight"
    yield Rule(f"{ours}/position", bias, SAME)


_ORIGINAL = {
  r"token_embedding\.": "shared.",
  r"norm\.": "encoder.final_layer_norm.",
  r"blocks\.(\d+)\.norm1\.": r"encoder.block.\1.layer.0.layer_norm.",
  r"blocks\.(\d+)\.norm2\.": r"encoder.block.\1.layer.1.layer_norm.",
  r"blocks\.(\d+)\.attn\.": r"encoder.block.\1.layer.0.SelfAttention.",
  r"blocks\.(\d+)\.pos_embedding\.embedding\.":
    r"encoder.block.\1.layer.0.SelfAttention.relative_attention_bias.",
  r"blocks\.(\d+)\.ffn\.gate\.0\.": r"encoder.block.\1.layer.1.DenseReluDense.wi_0.",
  r"blocks\.(\d+)\.ffn\.fc1\.": r"encoder.block.\1.layer.1.DenseReluDense.wi_1.",
  r"blocks\.(\d+)\.ffn\.fc2\.": r"encoder.block.\1.layer.1.DenseReluDense.wo.",
}  # fmt: skip


def umt5_name(name: str) -> str:
  """The name in transformers of a weight of `models_t5_umt5-xxl-enc-bf16.pth`.

  Names that are those of transformers already stay; the input embedding has two there.
  """
  if name == "encoder.embed_tokens.weight":
    return "shared.weight"
  for pattern, new in _ORIGINAL.items():
    renamed, hits = re.subn("^" + pattern, new, name)
    if hits:
      return renamed
  return name
