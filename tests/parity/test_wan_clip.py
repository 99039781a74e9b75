"""Our CLIP image encoder against transformers' at random weights."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests.mutation import assert_caught
from vidstep.io.clip_names import clip_rules, clip_tensors
from vidstep.io.rules import load_params
from vidstep.models import clip
from vidstep.models.clip import CLIPVision, clip_pixels

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")

OURS = CLIPVision(dim=12, heads=2, ffn_dim=20, depth=2, patch=4, size=12)


def build():
  """(theirs with one layer more, its state)."""
  torch.manual_seed(0)
  config = transformers.CLIPVisionConfig(
    hidden_size=12, intermediate_size=20, num_hidden_layers=3, num_attention_heads=2,
    image_size=12, patch_size=4, hidden_act="gelu",
  )  # fmt: skip
  theirs = transformers.CLIPVisionModel(config).eval()
  with torch.no_grad():
    for name, p in theirs.named_parameters():
      if p.ndim == 1 or "position" in name:
        p.normal_(1.0 if "norm" in name and "weight" in name else 0.0, 0.3)
      else:
        p.normal_(0.0, p[0].numel() ** -0.5)
  return theirs, {k: v.numpy() for k, v in theirs.state_dict().items()}


def load(state):
  like = jax.eval_shape(lambda: OURS.init(jax.random.key(0), jnp.zeros((1, 12, 12, 3))))["params"]
  return load_params(clip_tensors(state), clip_rules(2), like, what="CLIP")


def check():
  theirs, state = build()
  pixels = np.random.default_rng(0).standard_normal((2, 12, 12, 3)).astype(np.float32)
  with torch.no_grad():
    x = torch.from_numpy(pixels).permute(0, 3, 1, 2)
    want = theirs(x, output_hidden_states=True).hidden_states[-2].numpy()
  assert want.shape == (2, 10, 12) and np.std(want) > 0.3
  got = jax.jit(OURS.apply)({"params": load(state)}, pixels)
  np.testing.assert_allclose(got, want, atol=1e-5, rtol=1e-5)


def test_matches_transformers():
  check()


def test_the_comparison_notices(monkeypatch):
  monkeypatch.setattr(clip, "attention", lambda q, k, v: v)
  assert_caught(check)


def test_original_names():
  """The release keeps q, k and v in one tensor, and the text side beside the image side."""
  _, state = build()
  rename = {"pre_layrnorm": "pre_norm", "layer_norm": "norm", "mlp.fc1": "mlp.0",
            "mlp.fc2": "mlp.2", "self_attn.out_proj": "attn.proj", "encoder.layers": "transformer",
            "embeddings.patch_embedding": "patch_embedding",
            "post_layernorm": "post_norm"}  # fmt: skip
  original = {"textual.norm.weight": np.zeros(3), "log_scale": np.zeros(()),
              "visual.head": np.zeros((12, 4))}  # fmt: skip
  for name, a in state.items():
    if "q_proj" in name:
      parts = [state[name.replace("q_proj", f"{p}_proj")] for p in "qkv"]
      name, a = name.replace("self_attn.q_proj", "attn.to_qkv"), np.concatenate(parts)
    if "k_proj" in name or "v_proj" in name:
      continue
    for old, new in rename.items():
      name = name.replace(old, new)
    name, a = {
      "embeddings.class_embedding": ("cls_embedding", a[None, None]),
      "embeddings.position_embedding.weight": ("pos_embedding", a[None]),
    }.get(name, (name, a))
    original["visual." + name] = a
  same = jax.tree.map(lambda a, b: bool((a == b).all()), load(original), load(state))
  assert all(jax.tree.leaves(same))


@pytest.mark.parametrize("sides", [(31, 47), (9, 20)])
def test_pixels_are_those_of_the_release(sides):
  image = np.random.default_rng(0).uniform(-1, 1, (2, *sides, 3)).astype(np.float32)
  x = torch.from_numpy(image).permute(0, 3, 1, 2)
  x = torch.nn.functional.interpolate(x, size=(14, 14), mode="bicubic", align_corners=False)
  x = x.mul(0.5).add(0.5).permute(0, 2, 3, 1).numpy()
  want = (x - np.asarray(clip.MEAN, np.float32)) / np.asarray(clip.STD, np.float32)
  np.testing.assert_allclose(clip_pixels(image, 14), want, atol=2e-5)
