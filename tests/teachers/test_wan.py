"""Wan as frozen networks: what is read, what is kept, and what does not fit."""

import gc

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests.wan_release import CHANNELS, TEXT_DIM, TEXT_TOKENS, make_release
from vidstep.io import load_wan, save_lora
from vidstep.io.dit_names import dit_rules
from vidstep.io.rules import flatten, save_params
from vidstep.io.safetensors_file import write_safetensors
from vidstep.io.tiny_names import tiny_rules
from vidstep.models.cond import Cond
from vidstep.models.umt5 import Tokenizer
from vidstep.models.vae import TinyDecoder, WanVAE, decode
from vidstep.teachers import encoders
from vidstep.teachers.wan import open_wan

pytestmark = pytest.mark.usefixtures("unoptimized")


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
  return make_release(tmp_path_factory.mktemp("wan"))


@pytest.fixture(scope="module")
def wan(folder):
  return open_wan(folder, dtype=jnp.float32)


def test_prompts_are_what_the_encoder_says_at_full_length(folder, wan):
  prompts = ["a red ball", "x" * 40, ""]
  got = wan.embed(prompts)
  tokens, mask = Tokenizer(folder / "tokenizer", TEXT_TOKENS)(prompts)
  model, params = load_wan(folder, "text_encoder")
  want = model.apply({"params": params}, tokens, mask)
  assert got.shape == (3, TEXT_TOKENS, TEXT_DIM) and got.dtype == np.float32
  np.testing.assert_allclose(got, want, atol=1e-5)
  assert (got[2, 1:] == 0).all() and got[1].all() and np.abs(got[0] - got[1]).max() > 0.1


def test_prompts_are_kept_and_the_encoder_is_not(folder, monkeypatch):
  wan = open_wan(folder, dtype=jnp.float32)
  reads, load = [], wan.text._load
  monkeypatch.setattr(wan.text, "_load", lambda: reads.append(1) or load())
  monkeypatch.setattr(encoders, "KEPT", 2)
  first = wan.embed(["a", "b", "a"])
  np.testing.assert_array_equal(first[0], first[2])
  np.testing.assert_array_equal(wan.embed(["b"])[0], first[1])
  assert len(reads) == 1
  wan.embed(["c"])
  assert len(reads) == 2 and list(wan.text._kept) == ["b", "c"]
  gc.collect()
  encoder = load()[1]["embed"].shape
  assert not any(a.shape == encoder for a in jax.live_arrays())


def test_video_latent_by_latent_is_the_whole_video(wan):
  shape = wan.latent_shape(16, 32, 9)
  assert shape == (3, 2, 4, CHANNELS)
  latents = np.random.default_rng(0).standard_normal((2, *shape)).astype(np.float32)
  got = wan.decode(latents)
  want = np.asarray(jax.jit(lambda p, z: decode(wan.vae, p, z))(wan.vae_params, latents))
  assert got.shape == (2, 9, 16, 32, 3) and got.dtype == np.uint8
  assert np.abs(got - (want + 1) * 127.5).max() <= 0.501 and got.std() > 10


@pytest.mark.parametrize(
  "size, said",
  [((40, 32, 9), "nearest is 32 x 32"), ((16, 32, 7), "1 \\+ 4 n; the nearest is 9"),
   ((1, 1, 5), "16 x 16"), ((16, 16, 0), "the nearest is 1")],
)  # fmt: skip
def test_sizes_that_do_not_fit_name_the_nearest(wan, size, said):
  with pytest.raises(ValueError, match=said):
    wan.latent_shape(*size)


def test_image_to_video_reads_the_image(tmp_path):
  wan = open_wan(make_release(tmp_path, image=True), dtype=jnp.float32)
  rng = np.random.default_rng(0)
  tokens = wan.image(rng.uniform(-1, 1, (1, 20, 30, 3)))
  assert tokens.shape == (1, 10, 12) and wan.release.image
  x = rng.standard_normal((1, 2, 2, 4, CHANNELS)).astype(np.float32)
  extra = rng.standard_normal((1, 2, 2, 4, CHANNELS + 4)).astype(np.float32)
  given = Cond(text=jnp.ones((1, 3, TEXT_DIM)), image=extra)
  apply = jax.jit(lambda cond: wan.model.apply({"params": wan.params}, x, jnp.ones(1), cond=cond).v)
  run = lambda tokens: apply(given.replace(image_tokens=tokens))
  assert np.abs(run(tokens) - run(0 * tokens)).max() > 1e-3


def test_factors_are_merged_by_their_weight(folder, wan, tmp_path):
  rng = np.random.default_rng(0)
  a, b = (rng.standard_normal(shape).astype(np.float32) for shape in ((24, 2), (2, 24)))
  file = tmp_path / "x.safetensors"
  save_lora(file, {"blocks_1/self_attn/q": (a, b)}, dit_rules(wan.model))
  for lora, weight in ((file, 1.0), ((file, 0.5), 0.5)):
    merged = open_wan(folder, dtype=jnp.float32, lora=lora)
    got, want = (np.array(flatten(w.params)["blocks/self_attn/q/kernel"]) for w in (merged, wan))
    want[1] += weight * a @ b
    np.testing.assert_allclose(got, want, atol=1e-5)


def test_a_small_decoder_decodes_and_the_vae_encodes(folder, tmp_path):
  tiny = TinyDecoder(channels=CHANNELS)
  shapes = jax.eval_shape(lambda: tiny.init(jax.random.key(0), jnp.zeros((1, 1, 1, 1, CHANNELS))))
  zeros = jax.tree.map(lambda a: np.zeros(a.shape, np.float32), shapes["params"])
  write_safetensors(tmp_path / "taew2_1.safetensors", save_params(zeros, tiny_rules(tiny)))
  wan = open_wan(folder, dtype=jnp.float32, tiny_decoder=tmp_path / "taew2_1.safetensors")
  assert wan.decoder == tiny and isinstance(wan.vae, WanVAE)


def test_large_parameters_alone_are_of_low_precision(folder):
  """Norms, modulation and what makes it stay float32, as diffusers keeps them."""
  wan = open_wan(folder)
  dtypes = {path: a.dtype for path, a in flatten(wan.params).items()}
  assert dtypes["blocks/ffn_in/kernel"] == dtypes["head/kernel"] == jnp.bfloat16
  full = ("time_embed/in/kernel", "time_proj/kernel", "head_modulation", "blocks/modulation")
  assert {dtypes[path] for path in (*full, "blocks/ffn_in/bias")} == {jnp.dtype(jnp.float32)}
  assert {a.dtype for a in jax.tree.leaves(wan.vae_params)} == {jnp.dtype(jnp.float32)}
  assert wan.model.dtype == jnp.bfloat16 and wan.vae.dtype == jnp.float32


def test_another_transformer(folder, wan, tmp_path):
  student = make_release(tmp_path, seed=1) / "transformer"
  other = open_wan(folder, dtype=jnp.float32, transformer=student)
  assert other.model == wan.model
  head = lambda w: np.asarray(w.params["head"]["kernel"])
  assert np.abs(head(other) - head(wan)).max() > 0.1
  np.testing.assert_array_equal(
    other.vae_params["quant"]["kernel"], wan.vae_params["quant"]["kernel"]
  )


def test_a_place_that_is_not_there():
  with pytest.raises(FileNotFoundError, match="nothing at nowhere"):
    open_wan("nowhere")
