"""Our video DiT against diffusers' Wan transformer at random weights, through the mapping."""

import jax
import numpy as np
import pytest

from vidstep.models.cond import Cond
from vidstep.models.dit import VideoDiT
from vidstep.models.wan import wan_fields, wan_params

torch = pytest.importorskip("torch")
wan = pytest.importorskip("diffusers.models.transformers.transformer_wan")

TEXT = 12


def build(seed=0, **config):
  """A tiny Wan transformer, every parameter random: variance kept by weights, none left at zero."""
  torch.manual_seed(seed)
  config = {"num_attention_heads": 2, "attention_head_dim": 16, "ffn_dim": 48, "num_layers": 2} | {
    "in_channels": 4,
    "out_channels": 4,
    "text_dim": TEXT,
    "rope_max_seq_len": 32,
    **config,
  }
  theirs = wan.WanTransformer3DModel(**config).eval()
  with torch.no_grad():
    for name, p in theirs.named_parameters():
      if p.ndim == 1:
        p.normal_(1.0 if "norm" in name and "weight" in name else 0.0, 0.2)
      else:
        p.normal_(0.0, p[0].numel() ** -0.5)
  state = {k: v.numpy() for k, v in theirs.state_dict().items()}
  ours = VideoDiT(**wan_fields(theirs.config))
  return theirs, ours, state


def inputs(seed, frames, height, width, channels=4, batch=2):
  rng = np.random.default_rng(seed)
  draw = lambda *shape: rng.standard_normal(shape).astype(np.float32)
  return draw(batch, frames, height, width, channels), draw(batch, 7, TEXT), rng


def run_theirs(theirs, x, t, text, patch):
  """t [B] or [B, F]; diffusers takes one time a token."""
  t = torch.from_numpy(t) * 1000
  if t.ndim == 2:
    tokens = x.shape[2] // patch[1] * (x.shape[3] // patch[2])
    t = t[:, :: patch[0]].repeat_interleave(tokens, dim=1)
  x = torch.from_numpy(x).permute(0, 4, 1, 2, 3)
  with torch.no_grad():
    y = theirs(x, t, torch.from_numpy(text), return_dict=False)[0]
  return y.permute(0, 2, 3, 4, 1).numpy()


SHAPES = {
  "even grid": {"grid": (3, 8, 8)},
  "odd grid": {"grid": (5, 6, 10)},
  "one row of patches": {"grid": (7, 2, 14)},
  "image": {"grid": (1, 10, 6)},
  "head of 20, not a multiple of 6": {"grid": (3, 6, 4), "attention_head_dim": 20},
  "patch in time": {"grid": (6, 4, 6), "patch_size": (2, 2, 2)},
  "patch of 1 x 3 x 1": {"grid": (2, 9, 3), "patch_size": (1, 3, 1)},
  "three heads, three blocks": {"grid": (2, 4, 4), "num_attention_heads": 3, "num_layers": 3},
}


@pytest.mark.parametrize("times", ["per sample", "per frame"])
@pytest.mark.parametrize("shape", SHAPES)
def test_matches_diffusers(shape, times):
  config = dict(SHAPES[shape])
  grid = config.pop("grid")
  theirs, ours, state = build(**config)
  x, text, rng = inputs(1, *grid)
  t = rng.uniform(0, 1, x.shape[:1] if times == "per sample" else x.shape[:2])
  t = t.astype(np.float32)
  want = run_theirs(theirs, x, t, text, ours.patch)
  params = wan_params(state, ours.depth)
  got = jax.jit(ours.apply)({"params": params}, x, t, cond=Cond(text=text)).v
  assert np.std(want) > 0.1
  np.testing.assert_allclose(got, want, atol=1e-5, rtol=1e-5)
