"""experiments.sample beside the pipelines of diffusers: same files, same noise, same video."""

import dataclasses

import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image

from experiments import sample_wan
from experiments.sample_wan import Order, draw
from tests.mutation import assert_caught
from tests.wan_release import CHANNELS, make_release
from vidstep.teachers import text_to_video
from vidstep.teachers.text_to_video import Sampler

torch = pytest.importorskip("torch")
diffusers = pytest.importorskip("diffusers")
transformers = pytest.importorskip("transformers")

HEIGHT, WIDTH, FRAMES, STEPS, GUIDANCE = 16, 32, 9, 3, 4.0
LENGTH = 512  # which diffusers takes for granted where there is an image
PROMPT, NEGATIVE = "a dog", "blurred"
NOISE = np.random.default_rng(0).standard_normal((1, 3, 2, 4, CHANNELS)).astype(np.float32)
# Of CLIP's size: what they do to other pictures differs (diffusers cuts a square out, the release
# and we squeeze).
PICTURE = np.random.default_rng(1).integers(0, 256, (12, 12, 3), dtype=np.uint8)


@dataclasses.dataclass
class WholeThousandths:
  """Diffusers hands times to the network as whole thousandths, cut off; so does the release."""

  model: object

  def __getattr__(self, name):
    return getattr(self.model, name)

  def apply(self, variables, x, t, **other):
    return self.model.apply(variables, x, jnp.floor(1000 * t) / 1000, **other)


def theirs(folder, saved, image):
  """(latents, video in [0, 1], times) of a pipeline from our files, which it saves again."""
  kind = diffusers.WanImageToVideoPipeline if image else diffusers.WanPipeline
  pipeline = kind.from_pretrained(folder)
  assert isinstance(pipeline.scheduler, diffusers.UniPCMultistepScheduler)
  pipeline.set_progress_bar_config(disable=True)
  pipeline.save_pretrained(saved)
  call = {
    "prompt": PROMPT, "negative_prompt": NEGATIVE, "height": HEIGHT, "width": WIDTH,
    "num_frames": FRAMES, "num_inference_steps": STEPS, "guidance_scale": GUIDANCE,
    "max_sequence_length": LENGTH, "latents": torch.from_numpy(NOISE).permute(0, 4, 1, 2, 3),
  } | ({"image": Image.fromarray(PICTURE)} if image else {})  # fmt: skip
  latents = pipeline(**call, output_type="latent").frames.permute(0, 2, 3, 4, 1).numpy()
  video = pipeline(**call, output_type="np").frames
  return latents, video, np.asarray(pipeline.scheduler.sigmas, np.float32)


def ours(folder, times, monkeypatch, tmp_path, image):
  """The same of `experiments.sample` with that folder."""
  made = {}
  opened = sample_wan.open_network

  def open_network(order):
    wan, student = opened(order)
    return dataclasses.replace(wan, model=WholeThousandths(wan.model)), student

  class Recorded(Sampler):
    def __call__(self, *args):
      made["latents"] = super().__call__(*args)
      return made["latents"]

  def release_times(steps, shift):
    """Their grid goes from 1 to 0.001 where the release's goes from 0.999 to 0."""
    own = text_to_video.release_times(steps, shift)
    assert own.shape == times.shape and np.abs(own - times).max() < 2e-3
    return times

  monkeypatch.setattr(sample_wan, "release_times", release_times)
  monkeypatch.setattr(sample_wan, "open_network", open_network)
  monkeypatch.setattr(sample_wan, "Sampler", Recorded)
  monkeypatch.setattr(sample_wan, "draw_noise", lambda key, shape: NOISE)
  monkeypatch.setattr(sample_wan, "write", lambda path, video, *rest: made.update(video=video))
  Image.fromarray(PICTURE).save(tmp_path / "picture.png")
  draw(
    Order(
      model=str(folder), prompts=(PROMPT,), out=str(tmp_path / "x.mp4"), negative=NEGATIVE,
      size=(HEIGHT, WIDTH), frames=FRAMES, steps=STEPS, guidance=GUIDANCE, dtype="float32",
      image=str(tmp_path / "picture.png") if image else None,
    )
  )  # fmt: skip
  return made["latents"], made["video"]


def check(tmp_path, monkeypatch, image):
  # What is kept in float32 needs the package accelerate; the numbers are the same without.
  monkeypatch.setattr(diffusers.WanTransformer3DModel, "_keep_in_fp32_modules", None)
  folder = make_release(tmp_path / "ours", image=image, text_tokens=LENGTH)
  saved = tmp_path / "theirs"
  want, want_video, times = theirs(folder, saved, image)
  got, video = ours(saved, times, monkeypatch, tmp_path, image)
  assert np.std(want - NOISE) > 0.1 and np.std(want_video) > 0.05
  np.testing.assert_allclose(got, want, atol=3e-5, rtol=3e-5)
  # Half a grey value is rounding to uint8; the VAE makes a hundredth of one of 3e-5 in the latents.
  assert np.abs(video / 255 - want_video[0]).max() < 0.55 / 255


@pytest.mark.parametrize("image", [False, True])
def test_the_same_video_from_the_same_files_and_noise(tmp_path, monkeypatch, image):
  check(tmp_path, monkeypatch, image)


def test_a_mask_behind_the_image_is_noticed(tmp_path, monkeypatch):
  """The order of the 20 channels: first which frames are given, then their latents."""
  join = lambda parts, axis: np.concatenate([np.asarray(a) for a in parts[::-1]], axis=axis)
  fake = type("jnp", (), {"__getattr__": lambda self, name: getattr(jnp, name)})()
  fake.concatenate = join
  monkeypatch.setattr(text_to_video, "jnp", fake)
  assert_caught(check, tmp_path, monkeypatch, True)
