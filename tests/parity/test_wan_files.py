"""Checkpoints written by PyTorch, diffusers and transformers are read by us, and ours by them."""

import ml_dtypes
import numpy as np
import pytest

from tests.io.wan_files import original_state, write
from vidstep.io import load_wan, save_wan
from vidstep.io.rules import flatten
from vidstep.io.safetensors_file import read_safetensors
from vidstep.io.torch_file import read_torch
from vidstep.models.vae import WanVAE

torch = pytest.importorskip("torch")
diffusers = pytest.importorskip("diffusers")
transformers = pytest.importorskip("transformers")

TRANSFORMER = {
  "num_attention_heads": 3, "attention_head_dim": 8, "ffn_dim": 48, "num_layers": 2,
  "in_channels": 4, "out_channels": 4, "text_dim": 12, "rope_max_seq_len": 32,
}  # fmt: skip
IMAGE_TO_VIDEO = {"in_channels": 9, "image_dim": 6, "added_kv_proj_dim": 24}
VAE = {
  "base_dim": 3, "z_dim": 2, "dim_mult": [1, 2, 2], "num_res_blocks": 1,
  "temperal_downsample": [False, True], "latents_mean": [0.1, 0.2], "latents_std": [1.1, 2.0],
}  # fmt: skip


def randomised(module, seed=0):
  torch.manual_seed(seed)
  with torch.no_grad():
    for p in module.parameters():
      p.normal_(0.0, p[0].numel() ** -0.5 if p.ndim > 1 else 1.0)
  return module.eval()


def assert_same_state(got, want):
  want = {name: a.float().numpy() for name, a in want.items()}
  got = {name: a.float().numpy() for name, a in got.items()}
  assert set(got) == set(want)
  for name, a in want.items():
    np.testing.assert_array_equal(got[name], a, err_msg=name)


def test_tensors_of_every_kind_that_pytorch_writes(tmp_path):
  state = {
    "float": torch.randn(3, 4),
    "half": {"bf16": torch.randn(5).bfloat16(), "parameter": torch.nn.Parameter(torch.ones(2))},
    "transposed": torch.arange(6).reshape(2, 3).t(),
    "window": torch.arange(20.0)[3:9:2],
    "empty": torch.zeros(0, 3),
    "bool": torch.tensor([True, False]),
    "scalar": torch.tensor(2.5, dtype=torch.float64),
    "step": 7,
  }
  torch.save(state, tmp_path / "x.pt")
  got = read_torch(tmp_path / "x.pt")
  assert got["step"] == 7 and got["half"]["bf16"].dtype == ml_dtypes.bfloat16
  for name in ("float", "transposed", "window", "empty", "bool", "scalar"):
    np.testing.assert_array_equal(got[name], state[name].numpy())
    assert got[name].dtype == state[name].numpy().dtype
  np.testing.assert_array_equal(got["half"]["parameter"], [1, 1])
  want = state["half"]["bf16"].float().numpy()
  np.testing.assert_array_equal(got["half"]["bf16"].astype(np.float32), want)


def test_modules_and_their_state_as_pytorch_writes_them(tmp_path):
  module = randomised(torch.nn.Sequential(torch.nn.Linear(3, 2), torch.nn.BatchNorm1d(2)))
  torch.save(module.state_dict(), tmp_path / "state.pth")
  got = read_torch(tmp_path / "state.pth")
  np.testing.assert_array_equal(got["0.weight"], module[0].weight.detach().numpy())
  torch.save(module, tmp_path / "module.pth")
  with pytest.raises(ValueError, match=r"asks for torch\.nn.*save its state_dict\(\) alone"):
    read_torch(tmp_path / "module.pth")


def test_storages_that_are_shorter_than_they_say_are_refused(tmp_path):
  torch.save({"a": torch.randn(1000)}, tmp_path / "x.pt")
  data = (tmp_path / "x.pt").read_bytes()
  (tmp_path / "x.pt").write_bytes(data[:2000])
  with pytest.raises(ValueError, match=r"x\.pt"):
    read_torch(tmp_path / "x.pt")


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_transformer_goes_to_us_and_back(tmp_path, dtype, monkeypatch):
  # What is kept in float32 needs the package accelerate; the numbers are the same without.
  monkeypatch.setattr(diffusers.WanTransformer3DModel, "_keep_in_fp32_modules", None)
  config = TRANSFORMER if dtype == torch.float32 else TRANSFORMER | IMAGE_TO_VIDEO
  theirs = randomised(diffusers.WanTransformer3DModel(**config)).to(dtype)
  theirs.save_pretrained(tmp_path / "theirs", max_shard_size="20KB")
  assert len(list((tmp_path / "theirs").glob("*.safetensors"))) > 1
  model, params = load_wan(tmp_path / "theirs", scan=True)
  assert (model.heads, model.depth, model.scan) == (3, 2, True)
  half = ml_dtypes.bfloat16 if dtype == torch.bfloat16 else np.float32
  save_wan(tmp_path / "ours", model, params, dtype=half, shard_bytes=20_000)
  again = diffusers.WanTransformer3DModel.from_pretrained(tmp_path / "ours", torch_dtype=dtype)
  assert_same_state(again.state_dict(), theirs.state_dict())
  want = {k: v for k, v in config.items() if k != "rope_max_seq_len"}
  assert {k: again.config[k] for k in want} == want


def test_a_vae_goes_to_us_and_back(tmp_path):
  theirs = randomised(diffusers.AutoencoderKLWan(**VAE))
  theirs.save_pretrained(tmp_path / "vae")
  model, params = load_wan(tmp_path, "vae")
  assert model == WanVAE(base=3, channels=2, multipliers=(1, 2, 2), depth=1,
                         temporal=(False, True), mean=(0.1, 0.2), std=(1.1, 2.0))  # fmt: skip
  save_wan(tmp_path / "ours", model, params)
  again = diffusers.AutoencoderKLWan.from_pretrained(tmp_path / "ours")
  assert_same_state(again.state_dict(), theirs.state_dict())
  assert {k: again.config[k] for k in VAE} == VAE


def test_the_text_encoder_of_a_pipeline(tmp_path):
  config = transformers.UMT5Config(
    vocab_size=31, d_model=10, num_heads=3, d_kv=4, d_ff=14, num_layers=2
  )
  theirs = randomised(transformers.UMT5EncoderModel(config))
  theirs.save_pretrained(tmp_path / "text_encoder", max_shard_size="4KB")
  model, params = load_wan(tmp_path, "text_encoder")
  assert (model.vocabulary, model.dim, model.heads, model.head_dim) == (31, 10, 3, 4)
  assert (model.ffn_dim, model.depth, model.buckets) == (14, 2, 32)
  want = theirs.encoder.block[1].layer[1].DenseReluDense.wo.weight.detach().numpy().T
  np.testing.assert_array_equal(params["blocks"]["out"]["kernel"][1], want)
  assert model == load_wan(tmp_path / "text_encoder", "text_encoder")[0]


def test_the_image_encoder_of_a_pipeline(tmp_path):
  config = transformers.CLIPVisionConfig(
    hidden_size=12, intermediate_size=20, num_hidden_layers=3, num_attention_heads=2,
    image_size=12, patch_size=4, hidden_act="gelu",
  )  # fmt: skip
  theirs = randomised(transformers.CLIPVisionModel(config))
  theirs.save_pretrained(tmp_path / "image_encoder")
  model, params = load_wan(tmp_path, "image_encoder")
  assert (model.dim, model.heads, model.depth, model.patch, model.size) == (12, 2, 2, 4, 12)
  want = theirs.state_dict()["encoder.layers.1.mlp.fc1.weight"].numpy().T
  np.testing.assert_array_equal(params["blocks"]["in"]["kernel"][1], want)


def test_the_original_release_and_a_student(tmp_path):
  """The names are proven elsewhere; here, that PyTorch's files with them are read."""
  state = {name: torch.from_numpy(a) for name, a in original_state().items()}
  roles = {"generator": {}, "generator_ema": {f"model.{n}": a for n, a in state.items()}}
  torch.save(roles | {"step": 3}, tmp_path / "student.pt")
  _, params = load_wan(tmp_path / "student.pt", heads=2)
  want = state["blocks.0.self_attn.q.weight"].numpy().T
  np.testing.assert_array_equal(params["blocks_0"]["self_attn"]["q"]["kernel"], want)
  assert set(flatten(params)) == set(flatten(load_wan(tmp_path, heads=2)[1]))


def test_our_files_are_read_by_the_formats_own_reader(tmp_path):
  from safetensors.torch import load_file, save_file

  state = {"a": torch.randn(3, 2).bfloat16(), "b": torch.arange(4), "c": torch.tensor(1.5)}
  save_file(state, tmp_path / "theirs.safetensors")
  ours = read_safetensors(tmp_path / "theirs.safetensors")
  np.testing.assert_array_equal(ours["a"].astype(np.float32), state["a"].float().numpy())
  again = load_file(write(tmp_path / "ours.safetensors", ours))
  assert_same_state(again, state)
  assert all(again[name].dtype == a.dtype for name, a in state.items())
