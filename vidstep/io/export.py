"""Our networks to disk as diffusers reads them, so that a distilled student runs elsewhere."""

import math
import pathlib

import numpy as np

from vidstep.files import write_json
from vidstep.io.clip_names import clip_rules
from vidstep.io.dit_names import dit_rules
from vidstep.io.rules import save_params
from vidstep.io.safetensors_file import Item, write_safetensors
from vidstep.io.text_names import umt5_rules
from vidstep.io.wan_vae import vae_rules
from vidstep.models.clip import CLIPVision
from vidstep.models.dit import VideoDiT
from vidstep.models.umt5 import UMT5Encoder
from vidstep.models.vae import WanVAE

STEM = "diffusion_pytorch_model"


def save_wan(folder, model, params, *, dtype=np.float32, shard_bytes: int = 10**10, note=""):
  """Writes config.json and (sharded) safetensors that `from_pretrained` of others reads.

  Tensors are fetched and written one after another.

  Args:
    folder: where to; made if it does not exist.
    model: a `VideoDiT` of Wan's shape, a `WanVAE`, a `UMT5Encoder` or a `CLIPVision`. The last is
      written without the layer behind its states, which Wan does not use: give one with it.
    params: its parameters; leaves need a shape and an index only.
    dtype: of the file, such as `ml_dtypes.bfloat16`.
    shard_bytes: most bytes of a file.
    note: what this is and how it was made; kept in the header of every file.

  Raises:
    ValueError: if the model is something that diffusers has no class for.
  """
  folder = pathlib.Path(folder)
  if isinstance(model, VideoDiT):
    config, rules = transformer_config(model), dit_rules(model)
  elif isinstance(model, WanVAE):
    config, rules = vae_config(model), vae_rules(model)
  elif isinstance(model, UMT5Encoder):
    config, rules = umt5_config(model), umt5_rules(model.depth)
  elif isinstance(model, CLIPVision):
    config, rules = clip_config(model), clip_rules(model.depth)
  else:
    raise ValueError(f"the layout of others is known for Wan's networks, not for {type(model)}.")
  stem = STEM if "_class_name" in config else "model"
  metadata = {"format": "pt"} | ({"note": note} if note else {})
  shards = _shards(list(save_params(params, rules, dtype)), shard_bytes)
  weight_map = {}
  for i, items in enumerate(shards):
    number = f"-{i + 1:05d}-of-{len(shards):05d}" if len(shards) > 1 else ""
    name = f"{stem}{number}.safetensors"
    write_safetensors(folder / name, items, metadata)
    weight_map |= {item.name: name for item in items}
  if len(shards) > 1:
    total = sum(map(_bytes, (item for items in shards for item in items)))
    index = {"metadata": {"total_size": total}, "weight_map": weight_map}
    write_json(folder / f"{stem}.safetensors.index.json", index)
  write_json(folder / "config.json", config)


def transformer_config(model: VideoDiT) -> dict:
  """config.json of diffusers' `WanTransformer3DModel`.

  Raises:
    ValueError: naming the field that Wan does not have.
  """
  wan = {"action_dim": 0, "second_time": False, "prediction": "v", "time_scale": 1000.0}
  for name, value in wan.items():
    if getattr(model, name) != value:
      raise ValueError(
        f"diffusers' Wan transformer has {name}={value}, not {getattr(model, name)}: this network "
        "cannot be expressed in its layout."
      )
  if model.text_dim is None:
    raise ValueError("diffusers' Wan transformer reads a text; this network has text_dim=None.")
  return {
    "_class_name": "WanTransformer3DModel",
    "_diffusers_version": "0.33.0",
    "added_kv_proj_dim": None if model.image_dim is None else model.dim,
    "attention_head_dim": model.dim // model.heads,
    "cross_attn_norm": True,
    "eps": 1e-6,
    "ffn_dim": model.ffn_dim or 4 * model.dim,
    "freq_dim": 256,
    "image_dim": model.image_dim,
    "in_channels": model.in_channels,
    "num_attention_heads": model.heads,
    "num_layers": model.depth,
    "out_channels": model.out_channels,
    "patch_size": list(model.patch),
    "pos_embed_seq_len": None,
    "qk_norm": "rms_norm_across_heads",
    "rope_max_seq_len": 1024,
    "text_dim": model.text_dim,
  }


def vae_config(model: WanVAE) -> dict:
  """config.json of diffusers' `AutoencoderKLWan`."""
  return {
    "_class_name": "AutoencoderKLWan",
    "_diffusers_version": "0.33.0",
    "attn_scales": [],
    "base_dim": model.base,
    "dim_mult": list(model.multipliers),
    "dropout": 0.0,
    "latents_mean": list(model.mean),
    "latents_std": list(model.std),
    "num_res_blocks": model.depth,
    "temperal_downsample": list(model.temporal),
    "z_dim": model.channels,
  }


def umt5_config(model: UMT5Encoder) -> dict:
  """config.json of transformers' `UMT5EncoderModel`."""
  return {
    "architectures": ["UMT5EncoderModel"],
    "model_type": "umt5",
    "d_ff": model.ffn_dim,
    "d_kv": model.head_dim,
    "d_model": model.dim,
    "dense_act_fn": "gelu_new",
    "feed_forward_proj": "gated-gelu",
    "is_encoder_decoder": True,
    "is_gated_act": True,
    "layer_norm_epsilon": 1e-6,
    "num_decoder_layers": model.depth,
    "num_heads": model.heads,
    "num_layers": model.depth,
    "relative_attention_max_distance": model.max_distance,
    "relative_attention_num_buckets": model.buckets,
    "vocab_size": model.vocabulary,
  }


def clip_config(model: CLIPVision) -> dict:
  """config.json of transformers' `CLIPVisionModel`."""
  return {
    "architectures": ["CLIPVisionModel"],
    "model_type": "clip_vision_model",
    "hidden_act": "gelu",
    "hidden_size": model.dim,
    "image_size": model.size,
    "intermediate_size": model.ffn_dim,
    "layer_norm_eps": 1e-5,
    "num_attention_heads": model.heads,
    "num_channels": 3,
    "num_hidden_layers": model.depth,
    "patch_size": model.patch,
  }


def _shards(items, most) -> list[list[Item]]:
  """Cuts a list of tensors where a file would become too large."""
  shards, size = [[]], 0
  for item in items:
    if shards[-1] and size + _bytes(item) > most:
      shards.append([])
      size = 0
    shards[-1].append(item)
    size += _bytes(item)
  return shards


def _bytes(item):
  return math.prod(item.shape) * item.dtype.itemsize
