"""Our reading of the original releases' names against diffusers' own converters."""

import pytest

from vidstep.io import wan_vae
from vidstep.io.wan_vae import vae_rules
from vidstep.models.vae import WanVAE

pytest.importorskip("torch")
single_file = pytest.importorskip("diffusers.loaders.single_file_utils")


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


def test_original_vae_names():
  names = original_vae_names()
  want = single_file.convert_wan_vae_to_diffusers({name: name for name in names})
  assert {wan_vae.from_original(name): name for name in names} == want
  assert set(want) == {rule.theirs for rule in vae_rules(WanVAE())}
