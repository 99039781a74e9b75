"""Low-rank factors under everyone's names become the same change of the same weights."""

import json

import jax
import numpy as np
import pytest

from tests.io.wan_files import DEPTH, diffusers_state, write
from vidstep.io import load_lora, load_wan, merge_lora, save_lora
from vidstep.io.dit_names import dit_rules
from vidstep.io.rules import flatten
from vidstep.models.dit import stack_blocks

RANK = 3
LAYERS = {  # diffusers' name of a layer, and ours
  "blocks.0.attn1.to_q": "blocks_0/self_attn/q",
  "blocks.1.attn2.to_out.0": "blocks_1/cross_attn/o",
  "blocks.1.ffn.net.0.proj": "blocks_1/ffn_in",
}
ORIGINAL = {
  "blocks.0.attn1.to_q": "blocks.0.self_attn.q",
  "blocks.1.attn2.to_out.0": "blocks.1.cross_attn.o",
  "blocks.1.ffn.net.0.proj": "blocks.1.ffn.0",
}


@pytest.fixture(scope="module")
def loaded(tmp_path_factory):
  path = tmp_path_factory.mktemp("wan") / "x.safetensors"
  return load_wan(write(path, diffusers_state()), heads=2)


def factors(seed=0):
  """Layer -> (A [r, in], B [out, r]) as PyTorch keeps them."""
  rng = np.random.default_rng(seed)
  state = diffusers_state()
  draw = lambda *shape: rng.standard_normal(shape).astype(np.float32)
  shapes = {name: state[f"{name}.weight"].shape for name in LAYERS}
  return {name: (draw(RANK, n), draw(m, RANK)) for name, (m, n) in shapes.items()}


def diffusers(name):
  return f"transformer.{name}.lora_A.weight", f"transformer.{name}.lora_B.weight"


def peft(name):
  name = f"base_model.model.{name}"
  return f"{name}.lora_A.default.weight", f"{name}.lora_B.default.weight"


def longlive(name):
  name = f"generator_lora.base_model.model.{ORIGINAL[name]}"
  return f"{name}.lora_A.weight", f"{name}.lora_B.weight"


def comfy(name):
  name = f"diffusion_model.{ORIGINAL[name]}"
  return f"{name}.lora_down.weight", f"{name}.lora_up.weight"


@pytest.mark.parametrize("names", [diffusers, peft, longlive, comfy])
def test_merged_weights_are_those_of_pytorch(loaded, names):
  model, params = loaded
  tensors, want = {}, diffusers_state()
  for name, (a, b) in factors().items():
    down, up = names(name)
    tensors |= {down: a, up: b}
    want[f"{name}.weight"] = want[f"{name}.weight"] + 0.7 * b @ a
  merged = merge_lora(params, load_lora(tensors, dit_rules(model)), scale=0.7)
  before, after = flatten(params), flatten(merged)
  for name, layer in LAYERS.items():
    got = after.pop(f"{layer}/kernel")
    assert np.abs(got - before.pop(f"{layer}/kernel")).max() > 0.1
    np.testing.assert_allclose(got, want[f"{name}.weight"].T, atol=1e-5)
  assert all((a == before[n]).all() for n, a in after.items())


def flat(names):
  out = {}
  for name, (a, b) in factors().items():
    down, up = names(name)
    out |= {down: a, up: b}
  return out


def test_alpha_over_rank_scales(loaded, tmp_path):
  rules = lambda: dit_rules(loaded[0])
  plain = load_lora(flat(comfy), rules())
  alphas = {f"diffusion_model.{ORIGINAL[n]}.alpha": np.array(6.0, np.float32) for n in LAYERS}
  write(tmp_path / "adapter_model.safetensors", flat(peft))
  (tmp_path / "adapter_config.json").write_text(json.dumps({"r": RANK, "lora_alpha": 6}))
  for other in (
    load_lora(flat(comfy) | alphas, rules()),
    load_lora(flat(diffusers), rules(), alpha=6),
    load_lora(tmp_path, rules()),
  ):
    for layer, (a, b) in plain.items():
      np.testing.assert_array_equal(other[layer][0], a)
      np.testing.assert_allclose(other[layer][1], 2 * b)


def test_stacked_blocks_are_merged_alike_and_back(loaded):
  model, params = loaded
  lora = load_lora(flat(diffusers), dit_rules(model))
  stacked = stack_blocks(params, DEPTH)
  got = merge_lora(stacked, lora)
  want = stack_blocks(merge_lora(params, lora), DEPTH)
  for a, b in zip(jax.tree.leaves(got), jax.tree.leaves(want), strict=True):
    np.testing.assert_array_equal(a, b)
  back = merge_lora(got, lora, scale=-1)
  for a, b in zip(jax.tree.leaves(back), jax.tree.leaves(stacked), strict=True):
    np.testing.assert_allclose(a, b, atol=1e-5)


def test_what_is_exported_is_read_back(loaded, tmp_path):
  rules = lambda: dit_rules(loaded[0])
  lora = load_lora(flat(peft), rules())
  save_lora(tmp_path / "lora.safetensors", lora, rules())
  again = load_lora(tmp_path / "lora.safetensors", rules())
  for layer, pair in lora.items():
    for a, b in zip(pair, again[layer], strict=True):
      np.testing.assert_array_equal(a, b)


def test_what_does_not_fit_is_named(loaded):
  model, params = loaded
  rules = lambda: dit_rules(model)
  tensors = flat(diffusers)
  with pytest.raises(
    ValueError, match=r"fit no layer of the network: blocks\.7\.attn1\.to_q\.lora_A"
  ):
    load_lora(tensors | {"blocks.7.attn1.to_q.lora_A.weight": np.zeros((3, 16))}, rules())
  del tensors["transformer.blocks.0.attn1.to_q.lora_B.weight"]
  with pytest.raises(ValueError, match="one factor without the other: blocks_0/self_attn/q"):
    load_lora(tensors, rules())
  a, b = np.zeros((16, 3), np.float32), np.zeros((3, 24), np.float32)
  with pytest.raises(ValueError, match=r"do not fit blocks_0/self_attn/q of shape \(16, 16\)"):
    merge_lora(params, {"blocks_0/self_attn/q": (a, b)})
  with pytest.raises(ValueError, match="no layer blocks_0/other"):
    merge_lora(params, {"blocks_0/other": (a, b)})
  with pytest.raises(ValueError, match="no such layers: blocks_0/other"):
    save_lora("unused.safetensors", {"blocks_0/other": (a, b)}, rules())
