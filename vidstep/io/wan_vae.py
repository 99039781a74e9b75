"""Names of the Wan VAE's weights: those of diffusers, and those of the original release."""

import re
from collections.abc import Iterator

from vidstep.io.rules import CONVOLUTION, Rule, layer, pointwise, trailing


def vae_rules(vae) -> Iterator[Rule]:
  """The rules of a `WanVAE` in the names of diffusers' `AutoencoderKLWan`."""
  depth, levels = vae.depth, len(vae.multipliers)
  yield from layer("quant", "quant_conv", pointwise(3))
  yield from layer("post_quant", "post_quant_conv", pointwise(3))
  for side in ("encoder", "decoder"):
    yield from layer(f"{side}/conv_in", f"{side}.conv_in", CONVOLUTION)
    for i in range(2):
      yield from _block(f"{side}/middle_block{i}", f"{side}.mid_block.resnets.{i}", False)
    ours, theirs = f"{side}/middle_attention", f"{side}.mid_block.attentions.0"
    yield Rule(f"{ours}/norm/scale", f"{theirs}.norm.gamma", trailing(2))
    yield from layer(f"{ours}/qkv", f"{theirs}.to_qkv", pointwise(2))
    yield from layer(f"{ours}/proj", f"{theirs}.proj", pointwise(2))
    yield Rule(f"{side}/norm_out/scale", f"{side}.norm_out.gamma", trailing(3))
    yield from layer(f"{side}/conv_out", f"{side}.conv_out", CONVOLUTION)

  widths = [vae.base * m for m in vae.multipliers]
  number = 0
  for i, width in enumerate(widths):
    for j in range(depth):
      narrower = j == 0 and width != (widths[i - 1] if i else widths[0])
      theirs = f"encoder.down_blocks.{number}"
      yield from _block(f"encoder/level{i}_block{j}", theirs, narrower)
      number += 1
    if i < levels - 1:
      yield from _resample(f"encoder/level{i}", f"encoder.down_blocks.{number}", vae.temporal[i])
      number += 1
  for i, width in enumerate(widths[::-1]):
    for j in range(depth + 1):
      other = j == 0 and i > 0 and widths[::-1][i - 1] // 2 != width
      theirs = f"decoder.up_blocks.{i}.resnets.{j}"
      yield from _block(f"decoder/level{i}_block{j}", theirs, other)
    if i < levels - 1:
      theirs = f"decoder.up_blocks.{i}.upsamplers.0"
      yield from _resample(f"decoder/level{i}", theirs, vae.temporal[::-1][i])


def _block(ours, theirs, shortcut):
  for i in (1, 2):
    yield Rule(f"{ours}/norm{i}/scale", f"{theirs}.norm{i}.gamma", trailing(3))
    yield from layer(f"{ours}/conv{i}", f"{theirs}.conv{i}", CONVOLUTION)
  if shortcut:
    yield from layer(f"{ours}/shortcut", f"{theirs}.conv_shortcut", pointwise(3))


def _resample(ours, theirs, temporal):
  yield from layer(f"{ours}_space", f"{theirs}.resample.1", CONVOLUTION)
  if temporal:
    yield from layer(f"{ours}_time", f"{theirs}.time_conv", CONVOLUTION)


_PARTS = {
  "conv1": "conv_in",
  "head.0": "norm_out",
  "head.2": "conv_out",
  "middle.0": "mid_block.resnets.0",
  "middle.1": "mid_block.attentions.0",
  "middle.2": "mid_block.resnets.1",
}
_BLOCK = {"residual.0": "norm1", "residual.2": "conv1", "residual.3": "norm2",
          "residual.6": "conv2", "shortcut": "conv_shortcut"}  # fmt: skip


def from_original(name: str, depth: int = 2) -> str:
  """The name in diffusers of a weight of the original `Wan2.1_VAE.pth`.

  Args:
    name: such as "decoder.upsamples.3.time_conv.weight".
    depth: residual blocks of a level of the encoder.
  """
  if name.startswith(("conv1.", "conv2.")):
    return name.replace("conv1.", "quant_conv.").replace("conv2.", "post_quant_conv.")
  side, _, rest = name.partition(".")
  found = re.fullmatch(r"(downsamples|upsamples)\.(\d+)\.(.*)", rest)
  if not found:
    for old, new in _PARTS.items():
      if rest.startswith(old + "."):
        rest = new + rest[len(old) :]
        break
    head, tail = "", rest
  elif found[1] == "downsamples":
    head, tail = f"down_blocks.{found[2]}.", found[3]
  else:
    level, number = divmod(int(found[2]), depth + 2)
    head = f"up_blocks.{level}." + (f"resnets.{number}." if number <= depth else "upsamplers.0.")
    tail = found[3]
  for old, new in _BLOCK.items():
    tail = re.sub(rf"(^|\.){re.escape(old)}\.", rf"\g<1>{new}.", tail)
  return f"{side}.{head}{tail}"
