"""Text to video as a whole: a pipeline that diffusers saved gives us the same video."""

import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests.mutation import assert_caught
from tests.parity.test_wan_files import randomised
from tests.parity.test_wan_text import tokenizer_file
from vidstep import samplers
from vidstep.io import load_wan
from vidstep.models.cond import Cond
from vidstep.models.umt5 import Tokenizer
from vidstep.models.vae import decode
from vidstep.samplers import guided, sample

torch = pytest.importorskip("torch")
diffusers = pytest.importorskip("diffusers")
transformers = pytest.importorskip("transformers")

LENGTH, STEPS, GUIDANCE = 12, 4, 5.0
PROMPTS, NEGATIVE = ["a dog", "a dogs & a a dog"], "a a"


def save_pipeline(folder):
  """A tiny `WanPipeline` with every parameter random, on disk and in memory."""
  tokenizer_file(folder)
  tokenizer = transformers.PreTrainedTokenizerFast(
    tokenizer_file=str(folder / "tokenizer.json"), pad_token="<pad>", eos_token="</s>"
  )
  text = transformers.UMT5Config(
    vocab_size=8, d_model=10, num_heads=3, d_kv=4, d_ff=14, num_layers=2
  )
  pipeline = diffusers.WanPipeline(
    tokenizer=tokenizer,
    text_encoder=randomised(transformers.UMT5EncoderModel(text), 1),
    vae=randomised(
      diffusers.AutoencoderKLWan(
        base_dim=3, z_dim=2, dim_mult=[1, 2, 2], num_res_blocks=1,
        temperal_downsample=[False, True], latents_mean=[0.1, 0.2], latents_std=[1.1, 2.0],
        scale_factor_temporal=2, scale_factor_spatial=4,
      ), 2,
    ),
    scheduler=diffusers.UniPCMultistepScheduler(
      prediction_type="flow_prediction", use_flow_sigmas=True, flow_shift=5.0
    ),
    transformer=randomised(
      diffusers.WanTransformer3DModel(
        num_attention_heads=2, attention_head_dim=12, ffn_dim=32, num_layers=2, in_channels=2,
        out_channels=2, text_dim=10, rope_max_seq_len=32,
      ), 3,
    ),
  )  # fmt: skip
  pipeline.set_progress_bar_config(disable=True)
  pipeline.save_pretrained(folder / "pipeline")
  return pipeline


def ours(folder, noise, sigmas):
  """The same with our parts: prompts -> tokens -> text -> denoising -> video in [0, 1]."""
  tokens, mask = Tokenizer(folder / "tokenizer", LENGTH)([*PROMPTS, NEGATIVE, NEGATIVE])
  encoder, params = load_wan(folder, "text_encoder")
  # Padding is zero, and not masked: that is how Wan was trained.
  text, null = jnp.split(encoder.apply({"params": params}, tokens, mask), 2)
  model, params = load_wan(folder)

  def velocity(text):
    # Diffusers hands times to the network as whole thousandths, cut off.
    whole = lambda t: jnp.floor(1000 * t) / 1000
    return lambda x, t: model.apply({"params": params}, x, whole(t), cond=Cond(text=text)).v

  field = guided(velocity(text), velocity(null), GUIDANCE)
  latents = jax.jit(lambda x: sample(field, x, sigmas, solver="unipc"))(noise)
  vae, params = load_wan(folder, "vae")
  return latents, (jax.jit(lambda p, z: decode(vae, p, z))(params, latents) + 1) / 2


def check(tmp_path):
  theirs = save_pipeline(tmp_path)
  noise = np.random.default_rng(0).standard_normal((2, 3, 4, 8, 2)).astype(np.float32)
  call = {
    "prompt": PROMPTS, "negative_prompt": [NEGATIVE] * 2, "height": 16, "width": 32,
    "num_frames": 5, "num_inference_steps": STEPS, "guidance_scale": GUIDANCE,
    "max_sequence_length": LENGTH, "latents": torch.from_numpy(noise).permute(0, 4, 1, 2, 3),
  }  # fmt: skip
  want = theirs(**call, output_type="latent").frames.permute(0, 2, 3, 4, 1).numpy()
  video = theirs(**call, output_type="np").frames
  sigmas = np.asarray(theirs.scheduler.sigmas, np.float64)
  latents, frames = ours(tmp_path / "pipeline", noise, sigmas)
  assert np.std(want - noise) > 0.1 and np.std(video) > 0.05
  assert np.abs(want[0] - want[1]).max() > 0.1
  np.testing.assert_allclose(latents, want, atol=3e-5, rtol=3e-5)
  np.testing.assert_allclose(frames, video, atol=3e-5)


def test_the_same_video_from_the_same_noise(tmp_path):
  check(tmp_path)


def test_another_guidance_is_noticed(tmp_path, monkeypatch):
  """The weight of conventions that count from zero."""
  wrong = lambda cond, uncond, w: samplers.guided(cond, uncond, w + 1)
  monkeypatch.setattr(sys.modules[__name__], "guided", wrong)
  assert_caught(check, tmp_path)
