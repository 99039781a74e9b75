"""Our reading of the original releases' names against diffusers' own converters."""

import pytest

from tests.io.wan_files import original_vae_names
from vidstep.io import wan_vae
from vidstep.io.wan_vae import vae_rules
from vidstep.models.vae import WanVAE

pytest.importorskip("torch")
single_file = pytest.importorskip("diffusers.loaders.single_file_utils")


def test_original_vae_names():
  names = original_vae_names()
  want = single_file.convert_wan_vae_to_diffusers({name: name for name in names})
  assert {wan_vae.from_original(name): name for name in names} == want
  assert set(want) == {rule.theirs for rule in vae_rules(WanVAE())}
