"""Our Wan VAE against diffusers' `AutoencoderKLWan` at random weights, and its streaming."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests.mutation import assert_caught
from vidstep.io.rules import load_params
from vidstep.io.wan_vae import vae_rules
from vidstep.models import vae as vaes
from vidstep.models.vae import WanVAE, layers, wan

torch = pytest.importorskip("torch")
diffusers = pytest.importorskip("diffusers")

# Every kind of level at little cost; and the shape of the released one, narrower.
SIZES = {
  "small": {"base_dim": 3, "dim_mult": [1, 2, 2], "temperal_downsample": [False, True]},
  "Wan 2.1": {"base_dim": 4, "dim_mult": [1, 2, 4, 4], "temperal_downsample": [False, True, True]},
}
MEAN, STD = (0.1, -0.2), (1.1, 2.0)


def build(size, depth=1, seed=0):
  """(theirs, ours, params), every parameter random."""
  torch.manual_seed(seed)
  config = {"z_dim": 2, "num_res_blocks": depth, "latents_mean": MEAN, "latents_std": STD}
  config |= SIZES[size]
  theirs = diffusers.AutoencoderKLWan(**config).eval()
  with torch.no_grad():
    for name, p in theirs.named_parameters():
      if p.ndim == 1 or "gamma" in name:
        p.normal_(1.0 if "gamma" in name else 0.0, 0.2)
      else:
        p.normal_(0.0, p[0].numel() ** -0.5)
  ours = WanVAE(
    base=config["base_dim"],
    channels=2,
    multipliers=tuple(config["dim_mult"]),
    depth=depth,
    temporal=tuple(config["temperal_downsample"]),
    mean=MEAN,
    std=STD,
  )
  blank = jnp.zeros((1, 1, 8, 8, 3))
  like = jax.eval_shape(lambda: ours.init(jax.random.key(0), blank))["params"]
  state = {k: v.numpy() for k, v in theirs.state_dict().items()}
  return theirs, ours, load_params(state, vae_rules(ours), like, what="the Wan VAE")


def swap(a):
  """Between [B, T, H, W, C] of NumPy and [B, C, T, H, W] of torch."""
  if isinstance(a, np.ndarray):
    return torch.from_numpy(a).permute(0, 4, 1, 2, 3)
  return a.permute(0, 2, 3, 4, 1).numpy()


@torch.no_grad()
def reference(theirs, video):
  """(posterior mean normalised as Wan's pipeline does it, video decoded from it)."""
  mode = theirs.encode(swap(video)).latent_dist.mode()
  z = (swap(mode) - np.asarray(MEAN, np.float32)) / np.asarray(STD, np.float32)
  return z, swap(theirs.decode(mode).sample)


def check(size, frames, sides, depth=1):
  theirs, ours, params = build(size, depth)
  rng = np.random.default_rng(1)
  video = rng.uniform(-1, 1, (2, max(frames), *sides, 3)).astype(np.float32)
  latents = np.asarray(jax.jit(partial(vaes.encode, ours))(params, video))
  # One compiled decoder gives all lengths: a shorter clip is the beginning of a longer one.
  decoded = jax.jit(partial(vaes.decode, ours))(params, latents)
  for n in frames:
    z, want = reference(theirs, video[:, :n])
    assert want.shape[1] == n and np.std(want) > 0.05
    np.testing.assert_allclose(latents[:, : z.shape[1]], z, atol=1e-5, rtol=1e-5)
    np.testing.assert_allclose(decoded[:, :n], want, atol=1e-5, rtol=1e-5)


def test_matches_diffusers_in_the_shape_of_the_release():
  check("Wan 2.1", (1, 5, 9), (16, 24))


@pytest.mark.parametrize("sides", [(8, 8), (20, 4)])
def test_matches_diffusers_at_other_sizes(sides):
  check("small", (1, 5, 13), sides, depth=2 if sides[0] > sides[1] else 1)


conv = layers.Conv2d
MUTANTS = {
  "pixels doubled side by side": ("DoubleSpace", lambda *a, **k: lambda x: conv(*a, **k)(
    jnp.tile(x, (1, 1, 2, 2, 1)))),
  "zeros before instead of after": ("Conv2d", lambda *a, padding=(1, 1), **k: conv(
    *a, padding=padding[::-1], **k)),
}  # fmt: skip


@pytest.mark.parametrize("mutant", MUTANTS)
def test_the_comparison_notices(monkeypatch, mutant):
  monkeypatch.setattr(wan, *MUTANTS[mutant])
  assert_caught(check, "small", (1, 5), (8, 8))
