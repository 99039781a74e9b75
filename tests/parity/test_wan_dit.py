"""Our video DiT against diffusers' Wan transformer at random weights, through the mapping."""

import jax
import numpy as np
import pytest

from vidstep.attention import attention
from vidstep.io.wan import from_tensors
from vidstep.models import blocks, dit
from vidstep.models.cond import Cond

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
  return theirs, *from_tensors(state, config=theirs.config)


def inputs(seed, frames, height, width, channels=4, batch=2, length=7):
  rng = np.random.default_rng(seed)
  draw = lambda *shape: rng.standard_normal(shape).astype(np.float32)
  return draw(batch, frames, height, width, channels), draw(batch, length, TEXT), rng


def run_theirs(theirs, x, t, text, patch, image_tokens=None):
  """t [B] or [B, F]; diffusers takes one time a token."""
  t = torch.from_numpy(t) * 1000
  if t.ndim == 2:
    tokens = x.shape[2] // patch[1] * (x.shape[3] // patch[2])
    t = t[:, :: patch[0]].repeat_interleave(tokens, dim=1)
  x = torch.from_numpy(x).permute(0, 4, 1, 2, 3)
  with torch.no_grad():
    image = None if image_tokens is None else torch.from_numpy(image_tokens)
    y = theirs(x, t, torch.from_numpy(text), image, return_dict=False)[0]
  return y.permute(0, 2, 3, 4, 1).numpy()


CASES = {
  "even grid": {"grid": (3, 8, 8)},
  "even grid, times per frame": {"grid": (3, 8, 8), "times": "frame"},
  "odd grid, times per frame": {"grid": (5, 6, 10), "times": "frame"},
  "one row of patches": {"grid": (7, 2, 14)},
  "image": {"grid": (1, 10, 6)},
  "head size no multiple of 6": {"grid": (3, 6, 4), "attention_head_dim": 20, "times": "frame"},
  "patches in time": {"grid": (6, 4, 6), "patch_size": (2, 2, 2), "times": "frame"},
  "patches of 1 x 3 x 1": {"grid": (2, 9, 3), "patch_size": (1, 3, 1)},
  "three heads, three blocks": {"grid": (2, 4, 4), "num_attention_heads": 3, "num_layers": 3},
  "image in the channels": {"grid": (2, 4, 4), "in_channels": 7},
  "image to video": {"grid": (2, 4, 4), "in_channels": 9, "image_dim": 10, "times": "frame"},
}


def compare(grid, times="sample", **config):
  """(ours, theirs) of one case."""
  if "image_dim" in config:  # the number of their text tokens is then fixed
    config |= {"added_kv_proj_dim": 32}
  theirs, ours, params = build(**config)
  length = 7 if ours.image_dim is None else 512
  x, text, rng = inputs(1, *grid, channels=ours.in_channels, length=length)
  t = rng.uniform(0, 1, x.shape[:2] if times == "frame" else x.shape[:1]).astype(np.float32)
  tokens = None
  if ours.image_dim is not None:
    tokens = rng.standard_normal((2, ours.image_tokens, ours.image_dim)).astype(np.float32)
  want = run_theirs(theirs, x, t, text, ours.patch, tokens)
  x, image = np.split(x, [ours.out_channels], axis=-1)
  cond = Cond(text=text, image=image if image.size else None, image_tokens=tokens)
  return jax.jit(ours.apply)({"params": params}, x, t, cond=cond).v, want


@pytest.mark.parametrize("case", CASES)
def test_matches_diffusers(case):
  got, want = compare(**CASES[case])
  assert np.std(want) > 0.1
  np.testing.assert_allclose(got, want, atol=1e-5, rtol=1e-5)


MUTANTS = {
  "no rotation": (dit, "rope_table", lambda *a: _still(*_rope_table(*a))),
  "shift and scale swapped": (blocks, "modulated_norm", lambda x, a, b: _modulated(x, b, a)),
  "time not multiplied by 1000": (dit, "sinusoid", lambda t: _sinusoid(t / 1000)),
  "another epsilon": (blocks, "EPS", 1e-2),
  "patch read column by column": (dit, "patchify", lambda x, p: _patchify(x.swapaxes(2, 3), p)),
}
_modulated, _sinusoid, _patchify = blocks.modulated_norm, dit.sinusoid, dit.patchify
_rope_table, _still = dit.rope_table, lambda cos, sin: (np.ones_like(cos), np.zeros_like(sin))


@pytest.mark.parametrize("mutant", MUTANTS)
def test_the_comparison_notices(monkeypatch, mutant):
  monkeypatch.setattr(*MUTANTS[mutant])
  got, want = compare(grid=(2, 4, 4), num_layers=1)
  assert np.abs(got - want).max() > 1e-3


def test_one_softmax_over_text_and_image_is_noticed(monkeypatch):
  one = lambda q, k, v, valid, implementation, image: attention(q, k, v)
  monkeypatch.setattr(dit, "text_and_image_attention", one)
  got, want = compare(**CASES["image to video"] | {"num_layers": 1})
  assert np.abs(got - want).max() > 1e-3
