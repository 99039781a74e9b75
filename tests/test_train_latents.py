"""From prompts to a trained student: a tiny Wan makes data by the command, networks train on it."""

import json
import shutil

import jax.numpy as jnp
import numpy as np
import pytest
from commands import run_all
from PIL import Image
from wan_release import make_release

from configs import synthetic
from configs.wan import teacher_forcing
from experiments import batches, preview, train
from vidstep.data import latents
from vidstep.data.builder import describe, read_split
from vidstep.data.video_io import save_video
from vidstep.io import load_wan
from vidstep.models.vae import VAECodec
from vidstep.training.log import read_metrics

pytest.importorskip("tokenizers")
pytestmark = pytest.mark.usefixtures("unoptimized", "one_device")


def synthesize(cache, *calls):
  """What the command says, called once or more: on one device, compiled quickly and once."""
  commands = [("synthesize", f"--compilation_cache={cache}", *flags) for flags in calls]
  results = run_all(commands)
  for status, _, err in results:
    assert status == 0, err[-3000:]
  return [out for _, out, _ in results]


@pytest.fixture(scope="module")
def release(tmp_path_factory):
  return make_release(tmp_path_factory.mktemp("wan") / "tiny")


@pytest.fixture(scope="module")
def flags(release, tmp_path_factory):
  where = tmp_path_factory.mktemp("made")
  (where / "prompts.txt").write_text("a cat\na red car in the rain\n\nwaves\n")
  return [
    f"--model={release}", f"--prompts={where / 'prompts.txt'}", f"--out={where / 'data'}",
    "--count=8", "--test=2", "--steps=2", "--size=32x32", "--frames=21", "--batch=5",
    "--shard_items=5", "--dtype=float32", "--negative_prompt=dull",
  ]  # fmt: skip


@pytest.fixture(scope="module")
def data(flags, tmp_path_factory):
  """Made in two parts, the second of which makes the other shards as well."""
  part, whole = synthesize(tmp_path_factory.mktemp("cache"), [*flags, "--part=1/3"], flags)
  assert "this part is done (1 of 3 shards); others are at work" in part
  assert "8 train, 2 test examples of 6x4x4x4 latents" in whole
  return flags[2].removeprefix("--out=")


def test_the_dataset_says_where_it_comes_from(data, release):
  meta = describe(data)
  assert meta["provenance"] == f"AI-generated, made by {release}"
  assert meta["sampler"]["solver"] == "unipc" and meta["sampler"]["steps"] == 2
  assert (meta["frame_rate"], meta["size"], meta["text_tokens"]) == (16.0, [32, 32], 16)
  assert latents.null_text(data, 16).any() and latents.is_dataset(data)


def test_a_folder_of_videos_becomes_latents_by_the_command(release, tmp_path):
  rng, videos = np.random.default_rng(0), tmp_path / "videos"
  for name in ("a", "b", "c"):
    video = rng.integers(0, 256, (12, 20, 20, 3), dtype=np.uint8)
    save_video(videos / f"{name}.mp4", video, 32)
  (videos / "b.mp4").write_bytes((videos / "b.mp4").read_bytes()[:300])
  (videos / "a.txt").write_text("a cat")
  flags = [f"--model={release}", f"--videos={videos}", f"--out={tmp_path / 'd'}"]
  flags += ["--size=16x16", "--frames=5", "--test=0", "--dtype=float32"]
  (said,) = synthesize(tmp_path / "cache", flags)
  assert "2 train examples of 2x2x2x4 latents" in said and "1 left out: " in said
  meta, source = describe(tmp_path / "d"), read_split(tmp_path / "d", "train")
  assert meta["provenance"] == "Encoded from the videos of videos" and meta["without_caption"] == 2
  stored = {clip["source"].decode(): clip["caption"].decode() for clip in (source[0], source[1])}
  assert stored == {"a.mp4": "a cat", "c.mp4": ""}


def configure(data, **settings):
  config = teacher_forcing.get_config("tiny")
  config.data.path, config.data.batch_size = str(data), 4
  config.nets.model.init = None
  config.model.update(dim=8, depth=1, ffn_dim=8, scan=False, remat=None)
  config.mesh.update(data=1, fsdp=1)
  config.train.update(steps=3, save_every=1, **settings)
  return config


def test_a_student_trains_on_it_and_resumes_to_the_same_numbers(data, release, tmp_path, capsys):
  config = configure(data, sample_every=3)
  config.eval.steps = 1
  train.train(config, tmp_path / "whole")
  assert f"pictures are decoded by {release}" in capsys.readouterr().out
  picture = np.asarray(Image.open(tmp_path / "whole" / "samples" / "step_0000003.png"))
  assert picture.shape == (2 * 34 - 2, 6 * 34 - 2, 3)  # one frame a latent: 6, real above drawn
  whole = list(read_metrics(tmp_path / "whole"))
  shutil.copytree(tmp_path / "whole", tmp_path / "parts")  # as if stopped after two steps
  (last,) = (tmp_path / "parts" / "checkpoints").glob("*3")
  shutil.rmtree(last)
  train.train(configure(data, sample_every=0), tmp_path / "parts")
  assert "at step 2" in capsys.readouterr().out
  parts = list(read_metrics(tmp_path / "parts"))
  losses = [[row["model/loss"] for row in rows] for rows in (whole, parts)]
  assert losses[0] == losses[1] and len(set(losses[0])) == 3 and np.isfinite(losses).all()


def test_pictures_show_one_frame_of_each_latent_or_colours(data, release):
  codec = VAECodec(*load_wan(release, "vae"))
  z = np.random.default_rng(0).standard_normal((2, 3, 4, 4, 4)).astype(np.float32)
  shown = preview.frames(codec, z)
  np.testing.assert_allclose(shown, codec.decode(z)[:, jnp.array([0, 4, 8])], atol=1e-4)
  np.testing.assert_allclose(preview.channels(z), np.clip(z[..., :3] / 3, -1, 1))
  frame = np.arange(3 * 272 * 8, dtype=np.float32).reshape(272, 8, 3)
  small = frame.reshape(68, 4, 2, 4, 3).mean((1, 3))  # halved it is too high still
  np.testing.assert_allclose(preview.reduced(jnp.asarray(frame)), small, rtol=1e-6)


def test_a_dataset_whose_vae_is_gone_is_shown_as_colours(data, release, tmp_path):
  copy = tmp_path / "copy"
  shutil.copytree(data, copy)
  meta = json.loads((copy / "metadata.json").read_text()) | {"codec": str(tmp_path / "nowhere")}
  (copy / "metadata.json").write_text(json.dumps(meta))

  class Run:
    codec, config = None, {"data": {"path": str(copy)}}

  show, sentence = preview.make_show(Run)
  assert show is preview.channels
  assert sentence.startswith("pictures show the first three latent channels as colours: there is")


def resolved(data, **changes):
  config = synthetic.get_config()
  config.data.update(path=data, frames=6, batch_size=4, context=0, text=True, text_tokens=16)
  config.data.update(changes)
  return config.to_dict() | {"causal": {"forcing": None}}


def test_latents_are_recognised_and_what_does_not_fit_is_told_in_a_sentence(data):
  config = resolved(data)
  assert batches.holds_latents(config["data"])  # though data.codec is what it is by default
  loader = batches.make_loader(config)
  config["model"] |= {"action_dim": None}
  _, example = batches.fit_to_data(config, None, loader)
  assert example.x0.shape == (4, 6, 4, 4, 4) and example.cond.text.shape == (4, 16, 10)
  assert config["model"]["text_dim"] == 10 and config["model"]["out_channels"] == 4
  for changes, sentence in (
    ({"text_tokens": 24}, r"prompts of 16 tokens: set data\.text_tokens"),
    ({"text": False}, r"set data\.text to True"),
    ({"path": "synthetic", "codec": "none", "text": True}, r"synthetic holds videos"),
  ):
    config = resolved(data, **changes)
    loader = batches.make_loader(config) if "path" not in changes else PIXELS
    with pytest.raises(ValueError, match=sentence):
      batches.fit_to_data(config, None, loader)
  config = resolved(data, codec="runs/codec.npz")
  with pytest.raises(ValueError, match=r"holds latents: set data\.codec to none"):
    batches.fit_to_data(config, None, batches.make_loader(resolved(data)))


class PIXELS:
  """A loader of pixels."""

  latent_shape = text_shape = None
