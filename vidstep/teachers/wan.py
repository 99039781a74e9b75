"""Wan 2.1 as frozen networks: prompts, images and latents in, velocities and video out."""

import dataclasses
import functools
import json
from collections.abc import Callable, Mapping, Sequence

import jax
import jax.numpy as jnp
import numpy as np

from vidstep.io import load_lora, load_wan, merge_lora
from vidstep.io.dit_names import dit_rules
from vidstep.io.files import find
from vidstep.models.dit import VideoDiT
from vidstep.models.precision import kept_dtype
from vidstep.models.vae import TinyDecoder, WanVAE, decode_chunk
from vidstep.releases import WAN, Release
from vidstep.teachers.encoders import ImageEncoder, TextEncoder


@dataclasses.dataclass(frozen=True, eq=False)
class Wan:
  """What `open_wan` opens.

  Attributes:
    name: of the release or the folder.
    model: the `VideoDiT`.
    params: its parameters.
    vae: the `WanVAE`, for encoding.
    vae_params: its parameters.
    decoder: what latents are decoded by: the VAE, or a `TinyDecoder`.
    decoder_params: its parameters.
    release: how it is sampled, and its sizes.
    text: prompts -> embeddings.
    image: image -> CLIP's states; None for text to video.
  """

  name: str
  model: VideoDiT
  params: Mapping
  vae: WanVAE
  vae_params: Mapping
  decoder: WanVAE | TinyDecoder
  decoder_params: Mapping
  release: Release
  text: TextEncoder
  image: ImageEncoder | None = None

  def embed(self, prompts: Sequence[str]) -> np.ndarray:
    """Embeds prompts; UMT5 is read when it is first needed, used, and let go again.

    Args:
      prompts: N strings.

    Returns:
      float32 [N, text_tokens, text_dim]; zero beyond a prompt's end, which the network attends to:
      for `Cond.text` without `text_mask`.
    """
    return self.text(prompts)

  @property
  def factors(self) -> tuple[int, int]:
    """Pixel frames of a latent frame but the first, and the side in pixels of a latent."""
    return 2 ** sum(self.vae.temporal), 2 ** len(self.vae.temporal)

  def latent_shape(self, height: int, width: int, frames: int) -> tuple[int, int, int, int]:
    """(F, h, w, C) of the latents of a clip.

    Raises:
      ValueError: for a size that does not fit, naming the nearest that does.
    """
    time, space = self.factors
    units = [space * p for p in self.model.patch[1:]]
    fits = [max(1, round(n / u)) * u for n, u in zip((height, width), units, strict=True)]
    if fits != [height, width]:
      raise ValueError(
        f"{height} x {width} pixels do not fit: the height is a multiple of {units[0]}, the width "
        f"of {units[1]}; the nearest is {fits[0]} x {fits[1]}."
      )
    count = max(0, round((frames - 1) / time))
    if frames != 1 + time * count:
      raise ValueError(
        f"{frames} frames do not fit: a clip has 1 + {time} n; the nearest is {1 + time * count}."
      )
    return 1 + count, height // space, width // space, self.model.out_channels

  def decode(self, latents: jax.Array) -> np.ndarray:
    """Latents [B, F, h, w, C] -> video uint8 [B, T, H, W, 3] on the host, latent by latent.

    The device holds the pixels of one latent. Two programs: for a clip's first latent, all others.
    """
    first, later = self._decoders
    video, state = first(self.decoder_params, latents[:, :1])
    parts = [video]
    for i in range(1, latents.shape[1]):
      video, state = later(self.decoder_params, latents[:, i : i + 1], state)
      parts[-1] = np.asarray(parts[-1])  # while the device is at the next
      parts.append(video)
    return np.concatenate(jax.device_get(parts), axis=1)

  @functools.cached_property
  def _decoders(self):
    def run(params, latents, state=None):
      video, state = decode_chunk(self.decoder, params, latents, state)
      pixels = jnp.round(jnp.clip((video + 1) * 127.5, 0.0, 255.0))
      return pixels.astype(jnp.uint8), state

    return jax.jit(run), jax.jit(run, donate_argnums=2)


def open_wan(
  path,
  *,
  dtype=jnp.bfloat16,
  vae_dtype=jnp.float32,
  shard: Callable | None = None,
  lora=None,
  transformer=None,
  tiny_decoder=None,
) -> Wan:
  """Opens Wan 2.1, or something of its shape.

  Args:
    path: a name in `vidstep.releases.WAN`, which is fetched from the hub; "owner/name" of
      another repository; or a folder (a diffusers pipeline or the original release).
    dtype: of matrices and of computing. Norms, biases, modulation and what makes it stay float32.
    vae_dtype: of the VAE, and of the tiny decoder; the release computes its VAE in float32.
    shard: tree of `ShapeDtypeStruct` -> tree of shardings, for every network; see `load_wan`.
    lora: file with low-rank factors, or (file, weight): merged into the transformer.
    transformer: another file or folder for the transformer, such as a distilled student; or
      (model, params) that are open already.
    tiny_decoder: file of TAEHV, to decode by.

  Returns:
    The networks; UMT5 and CLIP are read when they are first needed.

  Raises:
    FileNotFoundError: for what is not there, saying what was looked for.
    ValueError: for weights or factors that do not fit.
  """
  name = str(path)
  place = WAN[name].repository if name in WAN else path
  kept = lambda dtype: {"param_dtype": lambda path: kept_dtype(path, dtype), "dtype": dtype}
  load = functools.partial(load_wan, shard=shard, **kept(dtype))
  pixels = functools.partial(load, **kept(vae_dtype))
  vae, vae_params = pixels(place, "vae")
  decoder = (vae, vae_params) if tiny_decoder is None else pixels(tiny_decoder, "tiny_decoder")
  if isinstance(transformer, tuple):
    model, params = transformer
  else:
    model, params = load(place if transformer is None else transformer, scan=True)
  image = None
  if model.image_dim is not None:
    image = ImageEncoder(place, functools.partial(load, place, "image_encoder"))
    model = model.clone(image_tokens=image.tokens)
  if lora is not None:
    lora, weight = lora if isinstance(lora, tuple) else (lora, 1.0)
    params = merge_lora(params, load_lora(lora, dit_rules(model)), scale=weight)
  release = WAN[name] if name in WAN else _release(place, model)
  text = TextEncoder(place, release.text_tokens, functools.partial(load, place, "text_encoder"))
  return Wan(name, model, params, vae, vae_params, *decoder, release, text, image)


def _release(place, model) -> Release:
  """The release of a folder: a known one by its numbers, or what its own files say."""
  shift = _config(place, "scheduler", "scheduler_config.json").get("flow_shift", 5.0)
  alike = [r for r in WAN.values() if all(getattr(model, k) == v for k, v in r.fields.items())]
  if alike:  # image to video was released twice, for two sizes: they differ in their shift
    return next((r for r in alike if r.shift == shift), alike[0])
  given = ("patch", "in_channels", "out_channels", "text_dim", "dim", "heads", "depth", "ffn_dim")
  given += ("image_dim", "image_tokens") if model.image_dim is not None else ()
  fields = {name: getattr(model, name) for name in given}
  return Release(str(place), fields, shift=shift, text_tokens=prompt_length(place))


def prompt_length(place) -> int:
  """Tokens of a prompt, as the tokenizer's files say; 512 if they say nothing."""
  tokenizer = _config(place, "tokenizer", "tokenizer_config.json")
  return min(512, tokenizer.get("model_max_length", 512))


def _config(place, part, file) -> dict:
  try:
    path = find(place, part)
  except FileNotFoundError:
    return {}
  path = path / file if path.is_dir() else path.with_name(file)
  return json.loads(path.read_text()) if path.is_file() else {}
