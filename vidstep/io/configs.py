"""The config.json beside the weights: what it may say, and what it says about our networks."""

import json
from collections.abc import Mapping

# The values that our layers stand for; whatever a config does not mention has them.
_FIXED = {
  "transformer": {
    "cross_attn_norm": (True,),
    "qk_norm": ("rms_norm_across_heads", True),
    "eps": (1e-6,),
    "freq_dim": (256,),
    "pos_embed_seq_len": (None,),
    "model_type": ("t2v", "i2v"),
  },
  "vae": {
    "is_residual": (False,),
    "patch_size": (None,),
    "attn_scales": ([],),
    "in_channels": (3,),
    "out_channels": (3,),
  },
  "text_encoder": {
    "feed_forward_proj": ("gated-gelu",),
    "layer_norm_epsilon": (1e-6,),
    "relative_attention_max_distance": (128,),
  },
  "image_encoder": {"hidden_act": ("gelu",), "layer_norm_eps": (1e-5,), "num_channels": (3,)},
}


def read_config(files) -> dict:
  """The config.json in the folder of the weights; empty if there is none."""
  path = (files if files.is_dir() else files.parent) / "config.json"
  return json.loads(path.read_text()) if path.is_file() else {}


def check_config(config: Mapping, part: str):
  """Refuses a network whose layers are not ours.

  Raises:
    NotImplementedError: naming the entry, and what it must be.
  """
  for name, values in _FIXED[part].items():
    if name in config and config[name] not in values:
      raise NotImplementedError(
        f"a Wan {part} with {name}={config[name]} is not supported; it must be {values[0]}."
      )
  base = config.get("base_dim")
  if part == "vae" and config.get("decoder_base_dim") not in (None, base):
    raise NotImplementedError("a Wan vae whose decoder has a width of its own is not supported.")


def vae_fields(config: Mapping) -> dict:
  """Fields of the `WanVAE` that diffusers' config describes; those it leaves out are Wan 2.1's."""
  names = {
    "base_dim": "base",
    "z_dim": "channels",
    "dim_mult": "multipliers",
    "num_res_blocks": "depth",
    "temperal_downsample": "temporal",  # as diffusers spells it
    "latents_mean": "mean",
    "latents_std": "std",
  }
  fields = {ours: config[theirs] for theirs, ours in names.items() if theirs in config}
  return {name: tuple(v) if isinstance(v, list) else v for name, v in fields.items()}
