"""Our networks to disk as diffusers reads them, so that a distilled student runs elsewhere."""

import json
import math
import pathlib

import numpy as np

from vidstep.io.dit_names import dit_rules
from vidstep.io.rules import save_params
from vidstep.io.safetensors_file import Item, write_safetensors
from vidstep.io.wan_vae import vae_rules
from vidstep.models.dit import VideoDiT
from vidstep.models.vae import WanVAE

STEM = "diffusion_pytorch_model"


def save_wan(folder, model, params, *, dtype=np.float32, shard_bytes: int = 10**10, note=""):
  """Writes config.json and (sharded) safetensors that diffusers' `from_pretrained` reads.

  Tensors are fetched and written one after another.

  Args:
    folder: where to; made if it does not exist.
    model: a `VideoDiT` of Wan's shape, or a `WanVAE`.
    params: its parameters.
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
  else:
    raise ValueError(f"diffusers' layout is known for VideoDiT and WanVAE, not {type(model)}.")
  metadata = {"format": "pt"} | ({"note": note} if note else {})
  shards = _shards(list(save_params(params, rules, dtype)), shard_bytes)
  weight_map = {}
  for i, items in enumerate(shards):
    number = f"-{i + 1:05d}-of-{len(shards):05d}" if len(shards) > 1 else ""
    name = f"{STEM}{number}.safetensors"
    write_safetensors(folder / name, items, metadata)
    weight_map |= {item.name: name for item in items}
  if len(shards) > 1:
    total = sum(map(_bytes, (item for items in shards for item in items)))
    index = {"metadata": {"total_size": total}, "weight_map": weight_map}
    (folder / f"{STEM}.safetensors.index.json").write_text(json.dumps(index, indent=2))
  (folder / "config.json").write_text(json.dumps(config, indent=2) + "\n")


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
