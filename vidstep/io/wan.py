"""Wan 2.1's networks from disk, in every public layout, onto any sharding."""

import math
from collections.abc import Callable, Mapping
from functools import partial
from types import FunctionType

import jax
import jax.numpy as jnp
import numpy as np

from vidstep.io.clip_names import clip_rules, clip_tensors
from vidstep.io.configs import check_config, read_config, vae_fields
from vidstep.io.dit_names import dit_fields, dit_rules, dit_tensors, unwrap
from vidstep.io.files import find
from vidstep.io.rules import flatten, load_params, unflatten
from vidstep.io.tensors import open_tensors
from vidstep.io.text_names import umt5_name, umt5_rules
from vidstep.io.tiny_names import tiny_rules, tiny_tensors
from vidstep.io.wan_vae import from_original, vae_rules
from vidstep.models.clip import CLIPVision
from vidstep.models.cond import Cond
from vidstep.models.dit import VideoDiT
from vidstep.models.umt5 import UMT5Encoder
from vidstep.models.vae import TinyDecoder, WanVAE


def load_wan(
  path,
  part: str = "transformer",
  *,
  shard: Callable | None = None,
  param_dtype=jnp.float32,
  role: str | None = None,
  **fields,
):
  """Loads one network of Wan 2.1.

  Args:
    path: a diffusers pipeline or one of its parts, a folder of the original release, a single file
      (.safetensors; .pth, .pt: read without PyTorch, tensors only), or the name of a repository on
      the Hugging Face hub. The transformer may be a student of Self-Forcing, CausVid, LongLive or
      rCM as well.
    part: "transformer", "vae", "text_encoder", "image_encoder" or "tiny_decoder" (TAEHV).
    shard: tree of `ShapeDtypeStruct` -> tree of shardings, such as
      `lambda like: state_sharding(like, mesh)`. Every device then reads its own part of each
      tensor. Without it everything comes to the first device.
    param_dtype: dtype of the parameters, whatever that of the file; or a function of a parameter's
      path, "blocks/ffn_in/kernel", that says it.
    role: of a checkpoint with several networks, the one to take; see `dit_names.unwrap`.
    **fields: fields of the module that are not the checkpoint's: `dtype`, `scan`, `attention`, ..

  Returns:
    (module, params): `VideoDiT`, `WanVAE`, `UMT5Encoder`, `CLIPVision` or `TinyDecoder`.

  Raises:
    FileNotFoundError: if it is not there, saying what was looked for.
    ValueError: naming the tensors that are missing, left over, or of another shape.
    NotImplementedError: for a variant whose layers are others.
  """
  if part not in PARTS:
    raise ValueError(f"Wan has no part {part!r}: choose one of {', '.join(PARTS)}.")
  files = find(path, part)
  tensors, config = open_tensors(files), read_config(files)
  what = f"Wan's {part}, read from {files}"
  chosen = {"shard": shard, "param_dtype": param_dtype, "role": role, "what": what}
  return from_tensors(tensors, part, config=config, **chosen, **fields)


def from_tensors(
  tensors: Mapping[str, np.ndarray],
  part: str = "transformer",
  *,
  config: Mapping | None = None,
  shard: Callable | None = None,
  param_dtype=jnp.float32,
  role: str | None = None,
  what: str = "a network of Wan",
  **fields,
):
  """`load_wan` for tensors that are at hand.

  Args:
    tensors: name to array, in any public layout.
    part: see `load_wan`.
    config: what config.json says, if there is one.
    shard: see `load_wan`.
    param_dtype: see `load_wan`.
    role: see `load_wan`.
    what: name of the network, for messages.
    **fields: see `load_wan`.

  Returns:
    (module, params).

  Raises:
    ValueError, NotImplementedError: as `load_wan`.
  """
  model, init, tensors, rules = PARTS[part](tensors, config or {}, role, fields)
  given = param_dtype if isinstance(param_dtype, FunctionType) else lambda path: param_dtype
  like = flatten(jax.eval_shape(init)["params"])
  like = {path: jax.ShapeDtypeStruct(a.shape, given(path)) for path, a in like.items()}
  like = unflatten(like)
  if shard is not None:
    put = lambda a, s: jax.ShapeDtypeStruct(a.shape, a.dtype, sharding=s)
    like = jax.tree.map(put, like, shard(like))
  return model, load_params(tensors, rules, like, what=what)


def _transformer(tensors, config, role, fields):
  check_config(config, "transformer")
  tensors = dit_tensors(tensors, role)
  heads = config.get("num_attention_heads", config.get("num_heads"))
  model = VideoDiT(**dit_fields(tensors, heads) | fields)
  return model, partial(init_dit, model), tensors, dit_rules(model)


def init_dit(model):
  """Fresh variables of a `VideoDiT`; under `jax.eval_shape`, their shapes."""
  x = jnp.zeros((1, *model.patch, model.out_channels))
  image = jnp.zeros((*x.shape[:-1], model.in_channels - model.out_channels))
  tokens = jnp.zeros((1, model.image_tokens, model.image_dim)) if model.image_dim else None
  cond = Cond(image=image if image.size else None, image_tokens=tokens)
  return model.init(jax.random.key(0), x, jnp.zeros(1), cond=cond)


def _vae(tensors, config, role, fields):
  check_config(config, "vae")
  tensors = unwrap(tensors, role)
  model = WanVAE(**vae_fields(config) | fields)
  if "conv1.weight" in tensors:
    tensors = {from_original(name, model.depth): a for name, a in tensors.items()}
  return model, partial(init_vae, model), tensors, vae_rules(model)


def init_vae(model):
  """Fresh variables of a `WanVAE`; under `jax.eval_shape`, their shapes."""
  side = 2 ** len(model.temporal)
  return model.init(jax.random.key(0), jnp.zeros((1, 1, side, side, 3)))


def _text_encoder(tensors, config, role, fields):
  check_config(config, "text_encoder")
  tensors = {umt5_name(name): a for name, a in unwrap(tensors, role).items()}
  layer = "encoder.block.0.layer."
  try:
    buckets, heads = tensors[f"{layer}0.SelfAttention.relative_attention_bias.weight"].shape
    ours = {
      "vocabulary": tensors["shared.weight"].shape[0],
      "dim": tensors["shared.weight"].shape[1],
      "heads": heads,
      "head_dim": tensors[f"{layer}0.SelfAttention.q.weight"].shape[0] // heads,
      "ffn_dim": tensors[f"{layer}1.DenseReluDense.wi_0.weight"].shape[0],
      "depth": len({n.split(".")[2] for n in tensors if n.startswith("encoder.block.")}),
      "buckets": buckets,
    }
  except KeyError as e:
    raise ValueError(f"this is no UMT5 encoder: there is no {e.args[0]}.") from e
  model = UMT5Encoder(**ours | fields)
  return model, partial(init_umt5, model), tensors, umt5_rules(model.depth)


def init_umt5(model):
  """Fresh variables of a `UMT5Encoder`; under `jax.eval_shape`, their shapes."""
  tokens = jnp.zeros((1, 1), jnp.int32)
  return model.init(jax.random.key(0), tokens, tokens == 0)


def _image_encoder(tensors, config, role, fields):
  config = config.get("vision_config", config)
  check_config(config, "image_encoder")
  tensors = clip_tensors(unwrap(tensors, role))
  try:
    dim, _, patch, _ = tensors["embeddings.patch_embedding.weight"].shape
    grid = math.isqrt(tensors["embeddings.position_embedding.weight"].shape[0] - 1)
    ffn_dim = tensors["encoder.layers.0.mlp.fc1.weight"].shape[0]
  except KeyError as e:
    raise ValueError(f"this is no CLIP image encoder: there is no {e.args[0]}.") from e
  depth = 1 + max(int(n.split(".")[2]) for n in tensors if n.startswith("encoder.layers."))
  heads = config.get("num_attention_heads", dim // 80)  # ViT-H's heads have 80 channels
  ours = {"dim": dim, "heads": heads, "ffn_dim": ffn_dim, "depth": depth}
  model = CLIPVision(**ours | {"patch": patch, "size": grid * patch} | fields)
  return model, partial(init_clip, model), tensors, clip_rules(depth)


def init_clip(model):
  """Fresh variables of a `CLIPVision`; under `jax.eval_shape`, their shapes."""
  return model.init(jax.random.key(0), jnp.zeros((1, model.size, model.size, 3)))


def _tiny_decoder(tensors, config, role, fields):
  tensors = unwrap(tensors, role)
  first = tensors.get("decoder.1.weight")
  if first is None:
    raise ValueError("this is no decoder of TAEHV: there is no decoder.1.weight.")
  model = TinyDecoder(**{"channels": first.shape[1]} | fields)
  blank = jnp.zeros((1, 1, 1, 1, model.channels))
  init = lambda: model.init(jax.random.key(0), blank)
  return model, init, tiny_tensors(tensors, model), tiny_rules(model)


PARTS = {
  "transformer": _transformer,
  "vae": _vae,
  "text_encoder": _text_encoder,
  "image_encoder": _image_encoder,
  "tiny_decoder": _tiny_decoder,
}
