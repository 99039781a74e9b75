"""Every layout of a tiny Wan transformer becomes the same parameters, on any sharding."""

import json

import jax
import ml_dtypes
import numpy as np
import pytest

from tests.io.wan_files import (
  CONFIG,
  DEPTH,
  diffusers_state,
  original_state,
  original_vae_names,
  write,
)
from vidstep.io import load_wan, save_wan
from vidstep.io.rules import flatten, load_params, save_params
from vidstep.io.tensors import open_tensors
from vidstep.io.wan import init_vae
from vidstep.io.wan_vae import from_original, vae_rules
from vidstep.models.dit import stack_blocks
from vidstep.models.vae import WanVAE
from vidstep.parallel.mesh import make_mesh
from vidstep.parallel.sharding import state_sharding

FILE = "diffusion_pytorch_model.safetensors"


def folder(path, state, config=CONFIG):
  path.mkdir(parents=True, exist_ok=True)
  write(path / FILE, state)
  (path / "config.json").write_text(json.dumps(config))
  return path


def assert_same(got, want):
  got, want = flatten(got), flatten(want)
  assert set(got) == set(want)
  for name, a in want.items():
    assert got[name].dtype == a.dtype
    np.testing.assert_array_equal(got[name], a, err_msg=name)


@pytest.fixture(scope="module")
def loaded(tmp_path_factory):
  return load_wan(folder(tmp_path_factory.mktemp("wan"), diffusers_state()))


def test_numbers_arrive_where_they_belong(loaded):
  """A few of every kind; that all of them do is the parity with diffusers' forward."""
  model, params = loaded
  state = diffusers_state()
  assert (model.dim, model.heads, model.depth, model.ffn_dim, model.text_dim) == (16, 2, 2, 24, 5)
  assert (model.patch, model.in_channels, model.out_channels) == ((1, 2, 2), 3, 3)
  block = params["blocks_1"]
  np.testing.assert_array_equal(
    block["cross_attn"]["o"]["kernel"], state["blocks.1.attn2.to_out.0.weight"].T
  )
  np.testing.assert_array_equal(block["modulation"], state["blocks.1.scale_shift_table"][0])
  kernel = state["patch_embedding.weight"]
  np.testing.assert_array_equal(params["patch_embed"]["kernel"][5], kernel[:, 2, 0, 0, 1])


def rcm(state):
  kernel = state["patch_embedding.weight"]
  state = state | {"patch_embedding.weight": kernel.reshape(len(kernel), -1)}
  state["blocks.0.self_attn.attn_op._extra_state"] = np.zeros(0, np.uint8)
  return {f"net.{n}": a for n, a in state.items()}


LAYOUTS = {
  "original": lambda s: s,
  "Self-Forcing": lambda s: (
    {f"generator_ema.model._fsdp_wrapped_module.{n}": a for n, a in s.items()}
    | {f"generator.model.{n}": 0 * a for n, a in s.items()}
    | {"critic.model.head.head.bias": s["head.head.bias"]}
  ),
  "LongLive": lambda s: {f"generator.model.{n}": a for n, a in s.items()},
  "rCM": rcm,
}


@pytest.mark.parametrize("layout", LAYOUTS)
def test_released_layouts(tmp_path, loaded, layout):
  path = write(tmp_path / "student.safetensors", LAYOUTS[layout](original_state()))
  model, params = load_wan(path, heads=2)
  assert model == loaded[0]
  assert_same(params, loaded[1])


def test_a_role_can_be_chosen(tmp_path):
  path = write(tmp_path / "x.safetensors", LAYOUTS["Self-Forcing"](original_state()))
  params = load_wan(path, role="generator", heads=2)[1]
  assert all(not np.any(a) for a in jax.tree.leaves(params))
  with pytest.raises(ValueError, match="has no 'student'; it has critic, generator, generator_ema"):
    load_wan(path, role="student")


def test_a_pipeline_folder_leads_to_its_transformer(tmp_path, loaded):
  folder(tmp_path / "transformer", diffusers_state())
  assert_same(load_wan(tmp_path)[1], loaded[1])


def test_blocks_can_be_stacked(tmp_path, loaded):
  model, params = load_wan(folder(tmp_path, diffusers_state()), scan=True)
  assert model.scan
  assert_same(params, stack_blocks(loaded[1], DEPTH))


def test_a_bfloat16_file_gives_float32_parameters(tmp_path):
  half = diffusers_state(ml_dtypes.bfloat16)
  path = folder(tmp_path, half)
  params = load_wan(path)[1]
  assert {a.dtype for a in jax.tree.leaves(params)} == {np.dtype(np.float32)}
  want = half["blocks.0.attn1.to_q.weight"].T.astype(np.float32)
  np.testing.assert_array_equal(params["blocks_0"]["self_attn"]["q"]["kernel"], want)
  half_params = load_wan(path, param_dtype=ml_dtypes.bfloat16)[1]
  assert half_params["head"]["bias"].dtype == ml_dtypes.bfloat16


@pytest.mark.parametrize("scan", [False, True])
def test_shards_hold_the_same_numbers(tmp_path, loaded, scan):
  mesh = make_mesh(data=2, fsdp=4)
  path = folder(tmp_path, diffusers_state())
  params = load_wan(path, shard=lambda like: state_sharding(like, mesh), scan=scan)[1]
  want = stack_blocks(loaded[1], DEPTH) if scan else loaded[1]
  assert_same(params, want)
  assert any(not a.sharding.is_fully_replicated for a in jax.tree.leaves(params))


class Watched(np.ndarray):
  """An array that remembers how much of it was read at once."""

  most = 0

  def __array__(self, *args, **kwargs):
    return super().__array__(*args, **kwargs)

  def __getitem__(self, index):
    part = np.asarray(self.view(np.ndarray)[index])
    Watched.most = max(Watched.most, part.size)
    return part


def test_no_device_reads_more_than_its_shard():
  from vidstep.io.rules import layer

  mesh = make_mesh(data=1, fsdp=8)
  tensor = np.random.default_rng(0).standard_normal((64, 32)).astype(np.float32)
  like = {"x": {"kernel": jax.ShapeDtypeStruct((32, 64), np.float32)}}
  put = lambda a, s: jax.ShapeDtypeStruct(a.shape, a.dtype, sharding=s)
  like = jax.tree.map(put, like, state_sharding(like, mesh))
  Watched.most = 0
  params = load_params(
    {"y.weight": tensor.view(Watched)}, layer("x", "y", bias=False), like, what="a layer"
  )
  np.testing.assert_array_equal(params["x"]["kernel"], tensor.T)
  assert Watched.most == 64 * 32 // 8


def test_missing_and_left_over_weights_are_named(tmp_path):
  state = diffusers_state()
  state["blocks.0.attn1.to_q.lora"] = state.pop("blocks.0.attn1.to_q.weight")
  with pytest.raises(ValueError) as error:
    load_wan(folder(tmp_path, state))
  assert "missing blocks.0.attn1.to_q.weight; left over blocks.0.attn1.to_q.lora" in str(
    error.value
  )


def test_a_wrong_shape_is_named(tmp_path):
  state = diffusers_state()
  state["blocks.1.attn2.to_v.weight"] = np.zeros((16, 15), np.float32)
  message = r"blocks\.1\.attn2\.to_v\.weight has shape \(16, 15\), .* of shape \(16, 16\)"
  with pytest.raises(ValueError, match=message):
    load_wan(folder(tmp_path, state))


def test_the_vae_of_the_original_release(tmp_path):
  vae = WanVAE(base=2, channels=2, mean=(0.1, 0.2), std=(1.0, 2.0))
  rng = np.random.default_rng(0)
  like = jax.eval_shape(lambda: init_vae(vae))["params"]
  params = jax.tree.map(lambda a: rng.standard_normal(a.shape).astype(np.float32), like)
  original = {from_original(name): name for name in original_vae_names()}
  state = {original[i.name]: i.read() for i in save_params(params, vae_rules(vae))}
  path = write(tmp_path / "vae.safetensors", state)
  model, got = load_wan(path, "vae", base=2, channels=2, mean=(0.1, 0.2), std=(1.0, 2.0))
  assert model == vae
  assert_same(got, params)


def test_another_network_is_named(tmp_path):
  with pytest.raises(ValueError, match=r"no Wan transformer: there is no patch_embedding\.weight"):
    load_wan(write(tmp_path / "x.safetensors", {"conv1.bias": np.zeros(3, np.float32)}))


def test_another_block_is_refused(tmp_path):
  with pytest.raises(NotImplementedError, match=r"qk_norm=None is not supported"):
    load_wan(folder(tmp_path, diffusers_state(), CONFIG | {"qk_norm": None}))


def test_nothing_there_is_said(tmp_path):
  with pytest.raises(FileNotFoundError, match="there is nothing at"):
    load_wan(tmp_path / "absent" / "one")
  for part in ("transformer", "vae", "text_encoder", "image_encoder"):
    with pytest.raises(FileNotFoundError, match=f"holds no {part}: there is neither a folder"):
      load_wan(tmp_path, part)
  with pytest.raises(ValueError, match="Wan has no part 'unet': choose one of transformer, vae"):
    load_wan(tmp_path, "unet")


def test_what_is_exported_is_read_back(tmp_path, loaded):
  save_wan(tmp_path, *loaded, note="a student")
  assert_same(load_wan(tmp_path)[1], loaded[1])
  exported = open_tensors(tmp_path)
  for name, a in diffusers_state().items():
    np.testing.assert_array_equal(exported.pop(name), a)
  assert not exported


def test_a_large_export_is_cut_into_shards(tmp_path, loaded):
  params = stack_blocks(loaded[1], DEPTH)
  save_wan(tmp_path, loaded[0].clone(scan=True), params, shard_bytes=8000)
  shards = sorted(tmp_path.glob("*.safetensors"))
  assert len(shards) > 2 and all(s.stat().st_size < 26000 for s in shards)
  assert_same(load_wan(tmp_path)[1], loaded[1])
  shards[1].unlink()
  with pytest.raises(FileNotFoundError, match=r"shards that are not there: .*-00002-of-"):
    load_wan(tmp_path)


def test_a_network_that_is_not_wan_is_not_exported(tmp_path, loaded):
  model, params = loaded
  with pytest.raises(ValueError, match="has action_dim=0, not 3"):
    save_wan(tmp_path, model.clone(action_dim=3), params)


def test_two_checkpoints_in_a_folder_are_refused(tmp_path):
  for name in "ab":
    write(tmp_path / f"{name}.safetensors", diffusers_state())
  with pytest.raises(ValueError, match=r"several checkpoints \(a\.safetensors, b\.safetensors\)"):
    open_tensors(tmp_path)
