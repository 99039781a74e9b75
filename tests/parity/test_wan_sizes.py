"""The released sizes: every name and shape that diffusers and transformers give them, and no other.

Nothing is allocated: their networks are on PyTorch's meta device, ours are shapes.
"""

import jax
import numpy as np
import pytest

from vidstep.io.clip_names import clip_rules, clip_tensors
from vidstep.io.dit_names import dit_fields, dit_rules
from vidstep.io.rules import save_params
from vidstep.io.text_names import umt5_name, umt5_rules
from vidstep.io.wan import init_dit, init_vae
from vidstep.io.wan_vae import vae_rules
from vidstep.models.clip import CLIPVision
from vidstep.models.dit import VideoDiT
from vidstep.models.umt5 import UMT5Encoder
from vidstep.models.vae import WanVAE

torch = pytest.importorskip("torch")
diffusers = pytest.importorskip("diffusers")
transformers = pytest.importorskip("transformers")

# Heads, layers, feed-forward width, and how many parameters the release has.
TRANSFORMERS = {"1.3B": (12, 30, 8960, 1_418_996_800), "14B": (40, 40, 13824, 14_288_491_584)}


def shapes_of_theirs(make):
  with torch.device("meta"):
    return {name: tuple(a.shape) for name, a in make().state_dict().items()}


def shapes_of_ours(like, rules):
  return {item.name: tuple(item.shape) for item in save_params(like["params"], rules)}


def test_the_transformer_of_image_to_video():
  config = {"in_channels": 36, "image_dim": 1280, "added_kv_proj_dim": 5120}
  want = shapes_of_theirs(lambda: diffusers.WanTransformer3DModel(**config))
  zeros = {name: np.broadcast_to(np.float32(0), shape) for name, shape in want.items()}
  model = VideoDiT(**dit_fields(zeros), scan=True)
  assert (model.depth, model.image_dim, model.image_tokens) == (40, 1280, 257)
  assert shapes_of_ours(jax.eval_shape(lambda: init_dit(model)), dit_rules(model)) == want


@pytest.mark.parametrize("size", TRANSFORMERS)
def test_transformers(size):
  heads, depth, ffn, count = TRANSFORMERS[size]
  want = shapes_of_theirs(
    lambda: diffusers.WanTransformer3DModel(
      num_attention_heads=heads, num_layers=depth, ffn_dim=ffn, text_dim=4096
    )
  )
  zeros = {name: np.broadcast_to(np.float32(0), shape) for name, shape in want.items()}
  model = VideoDiT(**dit_fields(zeros), scan=True)
  assert (model.heads, model.depth, model.dim) == (heads, depth, 128 * heads)
  like = jax.eval_shape(lambda: init_dit(model))
  assert shapes_of_ours(like, dit_rules(model)) == want
  assert sum(a.size for a in jax.tree.leaves(like)) == count


def test_the_vae():
  like = jax.eval_shape(lambda: init_vae(WanVAE()))
  want = shapes_of_theirs(diffusers.AutoencoderKLWan)
  assert shapes_of_ours(like, vae_rules(WanVAE())) == want


def test_the_text_encoder():
  config = transformers.UMT5Config(
    vocab_size=256384, d_model=4096, num_heads=64, d_kv=64, d_ff=10240, num_layers=24
  )
  want = shapes_of_theirs(lambda: transformers.UMT5EncoderModel(config))
  want = {umt5_name(name): shape for name, shape in want.items()}
  tokens = np.zeros((1, 1), np.int32)
  like = jax.eval_shape(lambda: UMT5Encoder().init(jax.random.key(0), tokens, tokens == 0))
  assert shapes_of_ours(like, umt5_rules(24)) == want


def test_the_image_encoder():
  config = transformers.CLIPVisionConfig(
    hidden_size=1280, intermediate_size=5120, num_hidden_layers=32, num_attention_heads=16,
    image_size=224, patch_size=14, hidden_act="gelu",
  )  # fmt: skip
  want = clip_tensors(shapes_of_theirs(lambda: transformers.CLIPVisionModel(config)))
  pixels = np.zeros((1, 224, 224, 3), np.float32)
  like = jax.eval_shape(lambda: CLIPVision().init(jax.random.key(0), pixels))
  assert shapes_of_ours(like, clip_rules(31)) == want
