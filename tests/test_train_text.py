"""Captions all the way into a network: recorded, embedded, trained on, sampled."""

import importlib.util

import jax
import numpy as np
import pytest

from configs import synthetic
from experiments import batches, generate, train
from vidstep.data import builder
from vidstep.models import text

if importlib.util.find_spec(text.PACKAGE) is None:
  pytest.skip(f"needs the MiniLM weights: {text.HINT}", allow_module_level=True)


pytestmark = pytest.mark.usefixtures("unoptimized", "one_device")


@pytest.fixture(scope="module")
def data(tmp_path_factory):
  """Two kinds of clips: black ones and white ones, with captions that say so."""
  rng = np.random.default_rng(0)

  def clip(i):
    video = np.full((4, 8, 8, 3), 20 + 200 * (i % 2), np.uint8)
    what = {
      "episode": i,
      "start": 0,
      "seed": i,
      "scenario": "s",
      "caption": ["black", "white"][i % 2],
    }
    return {"video": video, "actions": rng.choice([-1.0, 1.0], (4, 2)).astype(np.float32), **what}

  path = tmp_path_factory.mktemp("data") / "told"
  splits = {"train": [clip(i) for i in range(16)], "test": [clip(i) for i in range(4)]}
  builder.write_dataset(path, splits, {"buttons": ["a", "b"], "frame_rate": 8.0})
  return str(path)


@pytest.fixture(scope="module")
def trained(data, tmp_path_factory):
  workdir = tmp_path_factory.mktemp("run")
  config = synthetic.get_config()
  config.data.update(text=True, text_tokens=5, path=data, batch_size=8, frames=4, context=0)
  config.model.update(dim=32, heads=2, depth=1)
  config.optim.update(lr=1e-2, warmup=5, ema="none")
  config.train.update(steps=20, sample_every=0)
  train.train(config, workdir)
  return generate.open_network(f"{workdir}:model")


def test_the_network_reads_the_captions(trained):
  assert trained.config["model"]["text_dim"] == 384
  clips = generate.held_out(trained.config, 4)
  assert clips["text"].shape == (4, 5, 384) and clips["text_mask"].sum(1).tolist() == [3] * 4
  swapped = clips | {"text": clips["text"][::-1]}
  told, other = (
    generate.draw_videos(trained, generate.Setting(steps=1), asked, seed=0).astype(int)
    for asked in (clips, swapped)
  )
  assert all(np.abs(told - other).max((1, 2, 3, 4)) > 3)


def test_prepared_batches_hold_the_text(trained):
  clips = generate.held_out(trained.config, 2)
  batch = trained.prepare({k: v for k, v in clips.items() if k != "caption"})
  np.testing.assert_array_equal(jax.device_get(batch.cond.text), clips["text"])
  assert batch.cond.text_mask.dtype == bool
  assert batches.text_encoder({"text": False}) is None


def test_text_without_captions_is_refused(trained):
  config = trained.config | {"data": trained.config["data"] | {"path": "synthetic"}}
  with pytest.raises(ValueError, match=r"no captions.*set data\.text to False"):
    generate.held_out(config, 2)
