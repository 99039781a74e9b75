"""A release of Wan with random weights, as diffusers lays it out: every path, no download."""

import math
import pathlib
import zlib

import jax
import numpy as np

from vidstep.files import write_json
from vidstep.io.export import save_wan
from vidstep.io.rules import flatten, unflatten
from vidstep.io.wan import init_clip, init_dit, init_umt5, init_vae
from vidstep.models.clip import MEAN, STD, CLIPVision
from vidstep.models.dit import VideoDiT
from vidstep.models.umt5 import UMT5Encoder
from vidstep.models.vae import WanVAE

LETTERS = [chr(i) for i in range(33, 127)]


def write_random_wan(
  folder,
  transformer: VideoDiT,
  vae: WanVAE,
  text_encoder: UMT5Encoder,
  image_encoder: CLIPVision | None = None,
  *,
  seed: int = 0,
  dtype=np.float32,
  shift: float = 5.0,
  text_tokens: int = 512,
  shard_bytes: int = 10**10,
) -> pathlib.Path:
  """Writes what `open_wan` and diffusers' `WanPipeline.from_pretrained` open.

  Every parameter is random, none is zero: kernels of variance 1 / fan_in, norms around 1. Numbers
  are drawn when their tensor is written, so that memory is that of one tensor.

  Args:
    folder: where to.
    transformer: its shape.
    vae: its shape.
    text_encoder: its shape; its vocabulary must hold the tokenizer's.
    image_encoder: its shape, of an image-to-video release.
    seed: of the numbers.
    dtype: of the files, such as `ml_dtypes.bfloat16`.
    shift: time shift of the sampling grid that the release states.
    text_tokens: length of a prompt.
    shard_bytes: most bytes of a file.

  Returns:
    The folder.

  Raises:
    ValueError: for a vocabulary that is too small.
  """
  folder = pathlib.Path(folder)
  if text_encoder.vocabulary < 4 + len(LETTERS):
    raise ValueError(f"The tokenizer has {4 + len(LETTERS)} tokens: use a vocabulary of as many.")
  parts = {"transformer": (transformer, init_dit), "vae": (vae, init_vae)}
  parts["text_encoder"] = text_encoder, init_umt5
  if image_encoder is not None:  # the release has the layer behind the states as well
    parts["image_encoder"] = image_encoder.clone(depth=image_encoder.depth + 1), init_clip
  for name, (model, init) in parts.items():
    params = _random_tree(model, init, [seed, zlib.crc32(name.encode())])
    how = {"dtype": dtype, "shard_bytes": shard_bytes, "note": "random weights, not trained"}
    save_wan(folder / name, model, params, **how)
  _write_tokenizer(folder / "tokenizer", text_tokens)
  scheduler = {
    "_class_name": "UniPCMultistepScheduler",
    "flow_shift": shift,
    "prediction_type": "flow_prediction",
    "use_flow_sigmas": True,
  }
  write_json(folder / "scheduler/scheduler_config.json", scheduler)
  index = {
    "_class_name": "WanPipeline" if image_encoder is None else "WanImageToVideoPipeline",
    "_diffusers_version": "0.33.0",
    "scheduler": ["diffusers", "UniPCMultistepScheduler"],
    "text_encoder": ["transformers", "UMT5EncoderModel"],
    "tokenizer": ["transformers", "PreTrainedTokenizerFast"],
    "transformer": ["diffusers", "WanTransformer3DModel"],
    "vae": ["diffusers", "AutoencoderKLWan"],
  }
  if image_encoder is not None:
    index["image_encoder"] = ["transformers", "CLIPVisionModel"]
    index["image_processor"] = ["transformers", "CLIPImageProcessor"]
    _write_processor(folder / "image_processor", image_encoder.size)
  write_json(folder / "model_index.json", index)
  return folder


class _Random:
  """An array that is drawn when it is indexed."""

  def __init__(self, path, shape, seed):
    self.path, self.shape, self.seed = path, shape, [*seed, zlib.crc32(path.encode())]

  def __getitem__(self, index):
    stacked = index is not ...
    shape = self.shape[1:] if stacked else self.shape
    rng = np.random.default_rng([*self.seed, index] if stacked else self.seed)
    a = rng.standard_normal(shape, np.float32)
    kind = self.path.rpartition("/")[2]
    if kind == "scale":
      return 1 + 0.1 * a
    if kind == "kernel":
      return a * np.float32(math.prod(shape[:-1]) ** -0.5)
    return a if kind in ("embed", "position") else 0.2 * a


def _random_tree(model, init, seed):
  shapes = flatten(jax.eval_shape(lambda: init(model))["params"])
  return unflatten({path: _Random(path, a.shape, seed) for path, a in shapes.items()})


def _write_tokenizer(folder, length):
  """Single letters, and </s> behind every prompt as UMT5 has it."""
  import tokenizers

  words = [("<pad>", 0.0), ("</s>", 0.0), ("<unk>", 0.0), ("▁", -2.0)]
  words += [(letter, -4.0) for letter in LETTERS]
  made = tokenizers.Tokenizer(tokenizers.models.Unigram(words, unk_id=2))
  made.pre_tokenizer = tokenizers.pre_tokenizers.Metaspace()
  made.post_processor = tokenizers.processors.TemplateProcessing(
    single="$A </s>", special_tokens=[("</s>", 1)]
  )
  folder.mkdir(parents=True, exist_ok=True)
  made.save(str(folder / "tokenizer.json"))
  config = {"tokenizer_class": "PreTrainedTokenizerFast", "model_max_length": length}
  tokens = {"pad_token": "<pad>", "eos_token": "</s>", "unk_token": "<unk>"}
  write_json(folder / "tokenizer_config.json", config | tokens)


def _write_processor(folder, size):
  config = {
    "crop_size": {"height": size, "width": size},
    "do_center_crop": True,
    "do_resize": True,
    "image_mean": MEAN,
    "image_processor_type": "CLIPImageProcessor",
    "image_std": STD,
    "resample": 3,
    "size": {"shortest_edge": size},
  }
  write_json(folder / "preprocessor_config.json", config)
