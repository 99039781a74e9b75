"""Tiny Wan checkpoints, their names and shapes written out from the architecture."""

import numpy as np

from vidstep.io.safetensors_file import Item, write_safetensors

DIM, FFN, TEXT, DEPTH = 16, 24, 5, 2
CONFIG = {
  "_class_name": "WanTransformer3DModel",
  "num_attention_heads": 2,
  "attention_head_dim": 8,
  "num_layers": DEPTH,
}


def diffusers_state(dtype=np.float32):
  """A transformer under the names of diffusers."""
  rng = np.random.default_rng(0)
  shapes = {
    "patch_embedding": (DIM, 3, 1, 2, 2),
    "condition_embedder.time_embedder.linear_1": (DIM, 256),
    "condition_embedder.time_embedder.linear_2": (DIM, DIM),
    "condition_embedder.time_proj": (6 * DIM, DIM),
    "condition_embedder.text_embedder.linear_1": (DIM, TEXT),
    "condition_embedder.text_embedder.linear_2": (DIM, DIM),
    "proj_out": (12, DIM),
  }
  plain = {"scale_shift_table": (1, 2, DIM)}
  for i in range(DEPTH):
    block = f"blocks.{i}"
    plain[f"{block}.scale_shift_table"] = (1, 6, DIM)
    shapes |= {f"{block}.norm2": (DIM,), f"{block}.ffn.net.0.proj": (FFN, DIM)}
    shapes |= {f"{block}.ffn.net.2": (DIM, FFN)}
    for attn in ("attn1", "attn2"):
      names = ("to_q", "to_k", "to_v", "to_out.0")
      shapes |= {f"{block}.{attn}.{name}": (DIM, DIM) for name in names}
      plain |= {f"{block}.{attn}.{norm}.weight": (DIM,) for norm in ("norm_q", "norm_k")}
  for name, shape in shapes.items():
    plain |= {f"{name}.weight": shape, f"{name}.bias": shape[:1]}
  return {name: rng.standard_normal(shape).astype(dtype) for name, shape in plain.items()}


ORIGINAL = {
  "condition_embedder.time_embedder.linear_1": "time_embedding.0",
  "condition_embedder.time_embedder.linear_2": "time_embedding.2",
  "condition_embedder.text_embedder.linear_1": "text_embedding.0",
  "condition_embedder.text_embedder.linear_2": "text_embedding.2",
  "condition_embedder.time_proj": "time_projection.1",
  "attn1": "self_attn", "attn2": "cross_attn", ".to_q": ".q", ".to_k": ".k", ".to_v": ".v",
  ".to_out.0": ".o", ".norm2": ".norm3", "ffn.net.0.proj": "ffn.0", "ffn.net.2": "ffn.2",
  "proj_out": "head.head",
}  # fmt: skip


def original_state():
  """The same under the names of the original release."""
  out = {}
  for name, a in diffusers_state().items():
    if name == "scale_shift_table":
      name = "head.modulation"
    name = name.replace("scale_shift_table", "modulation")
    for theirs, original in ORIGINAL.items():
      name = name.replace(theirs, original)
    out[name] = a
  return out


def original_vae_names():
  """The names in `Wan2.1_VAE.pth`, written out from its architecture."""
  block = ("residual.0.gamma", "residual.2.weight", "residual.2.bias", "residual.3.gamma",
           "residual.6.weight", "residual.6.bias")  # fmt: skip
  both = lambda name: (f"{name}.weight", f"{name}.bias")
  names = [*both("conv1"), *both("conv2")]
  for side, layers, shortcuts, spaces, times in (
    ("encoder.downsamples", 11, (3, 6), (2, 5, 8), (5, 8)),
    ("decoder.upsamples", 15, (4,), (3, 7, 11), (3, 7)),
  ):
    for i in range(layers):
      names += [f"{side}.{i}.{n}" for n in (both("resample.1") if i in spaces else block)]
    for part, where in (("shortcut", shortcuts), ("time_conv", times)):
      names += [f"{side}.{i}.{n}" for i in where for n in both(part)]
    side = side.partition(".")[0]
    names += [*both(f"{side}.conv1"), *both(f"{side}.head.2"), f"{side}.head.0.gamma"]
    names += [f"{side}.middle.{i}.{n}" for i in (0, 2) for n in block]
    names += [f"{side}.middle.1.{n}" for n in (*both("to_qkv"), *both("proj"), "norm.gamma")]
  return names


def write(path, state):
  """Writes a state as one safetensors file."""
  items = [Item(n, a.shape, a.dtype, lambda a=a: a) for n, a in state.items()]
  write_safetensors(path, items, {"format": "pt"})
  return path
