"""Training data from a config: loader, embedded captions, batches as objectives want them."""

import functools
import types

import jax
import jax.numpy as jnp

from vidstep import losses
from vidstep.data import latents
from vidstep.data.loader import Loader, data_info
from vidstep.models.cond import Cond
from vidstep.models.text import TextEncoder
from vidstep.parallel import processes
from vidstep.parallel.sharding import batch_sharding


def make_loader(config, split="train", batch_size=None, mesh=None):
  """This process's share of a split, as the config's `data` says.

  Args:
    config: the config as a dict.
    split: "train" (endless) or "test" (one pass).
    batch_size: over all processes; None takes data.batch_size.
    mesh: says which samples this process's devices hold; None: processes take equal parts.
  """
  data = config["data"]
  if not data["path"]:
    raise ValueError(
      'No data: give --config.data.path, a folder made by experiments.record or "synthetic".'
    )
  batch_size = batch_size or data["batch_size"]
  index, count = jax.process_index(), jax.process_count()
  if mesh is not None and count > 1:
    index, count = processes.share(batch_sharding(mesh), batch_size)
  if batch_size % count:
    raise ValueError(f"data.batch_size={batch_size} is not divided by {count} processes.")
  return Loader(
    data["path"],
    split,
    batch_size=batch_size // count,
    frames=data["frames"],
    seed=config["seed"],
    shard=(index, count),
    embed=text_encoder(data),
    text_tokens=data["text_tokens"] if holds_latents(data) else None,
  )


def text_encoder(data):
  """What turns captions into embeddings, as the section `data` of a config says; None: nothing."""
  embeds = data.get("text") and not holds_latents(data)  # with latents it is stored embedded
  return _encoder(data["text_tokens"]) if embeds else None


_encoder = functools.cache(TextEncoder)


def holds_latents(data):
  """Whether the data set of the section `data` of a config holds latents, which need no codec."""
  if data["codec"] in (None, "none"):
    return True
  return data["codec"] == "pixel" and latents.is_dataset(data["path"])


def fit_to_data(config, codec, loader):
  """Fills in the sizes that follow from codec and data; returns prepare and the shapes it gives.

  Args:
    config: the config as a dict; None in `model` is filled in.
    codec: the codec; None for latents.
    loader: the data; None where the config states its sizes.
  """
  data, model = config["data"], config["model"]
  frames, context = data["frames"], data["context"]
  if not 0 <= context < frames:
    raise ValueError(f"data.context={context} leaves nothing to generate of data.frames={frames}.")
  if holds_latents(data):
    shapes = _latent_shapes(data, model, loader)
  else:
    shapes = _video_shapes(data, model, codec, loader)
  clean = config["causal"]["forcing"] == "teacher"
  prepare = make_prepare(codec, context, actions=model["action_dim"] > 0, clean=clean)
  return prepare, jax.eval_shape(prepare, shapes)


def _video_shapes(data, model, codec, loader):
  """Shapes of a batch of pixels and actions; fills in the fields of the model that follow."""
  loader = _stated(data, model, codec) if loader is None else loader
  if loader.size is None:
    raise ValueError(f"{data['path']} holds latents: set data.codec to none, not {data['codec']}.")
  batch, frames = data["batch_size"], data["frames"]
  channels = {"in_channels": codec.channels, "out_channels": codec.channels}
  _fill(model, action_dim=loader.num_actions, **channels)
  shapes = {
    "video": jax.ShapeDtypeStruct((batch, frames, loader.size, loader.size, 3), jnp.uint8),
    "actions": jax.ShapeDtypeStruct((batch, frames, loader.num_actions), jnp.float32),
  }
  if data.get("text"):
    model["text_dim"], length = TextEncoder.dim, data["text_tokens"]
    shapes["text"] = jax.ShapeDtypeStruct((batch, length, TextEncoder.dim), jnp.float32)
    shapes["text_mask"] = jax.ShapeDtypeStruct((batch, length), bool)
  return shapes


def _stated(data, model, codec):
  """Stands in for data of pixels that is not opened: its sizes are what the config states."""
  if data["latent_size"] is None or model["action_dim"] is None:
    raise ValueError(
      "Shapes without data follow from the config: give data.latent_size=(h, w) and "
      "model.action_dim."
    )
  size = data["latent_size"][0] * codec.factors[1]
  return types.SimpleNamespace(size=size, num_actions=model["action_dim"])


def _latent_shapes(data, model, loader):
  """Shapes of a batch of latents and text, by the data or, without any, by the config alone."""
  if not data["text"]:
    raise ValueError("Latents come with their text: set data.text to True.")
  if loader is not None:
    _check_latents(data, loader)
    (_, *size, channels), width = loader.latent_shape, loader.text_shape[1]
    data["latent_size"] = data["latent_size"] or size
    _fill(model, in_channels=channels, out_channels=channels, text_dim=width)
    stated = [*data["latent_size"], model["out_channels"], model["text_dim"]]
    if stated != [*size, channels, width]:
      raise ValueError(
        f"{data['path']} holds latents (h, w, C, channels of text) {[*size, channels, width]}, not "
        f"{stated}: change data.latent_size, model.out_channels or model.text_dim."
      )
  _fill(model, action_dim=0)
  needed = ("in_channels", "out_channels", "text_dim")
  if data["latent_size"] is None or any(model[key] is None for key in needed):
    raise ValueError(
      "Shapes without data follow from the config: give data.latent_size=(h, w) and "
      f"{', '.join(f'model.{key}' for key in needed)}."
    )
  batch, length = data["batch_size"], data["text_tokens"]
  shape = (batch, data["frames"], *data["latent_size"], model["out_channels"])
  return {
    "latents": jax.ShapeDtypeStruct(shape, jnp.float32),
    "text": jax.ShapeDtypeStruct((batch, length, model["text_dim"]), jnp.float32),
  }


def _check_latents(data, loader):
  if loader.latent_shape is None:
    raise ValueError(
      f"{data['path']} holds videos: data.codec=none is for data of experiments.synthesize."
    )
  tokens = data_info(data["path"]).get("text_tokens")
  if tokens != data["text_tokens"]:  # padding is attended to
    raise ValueError(
      f"{data['path']} holds prompts of {tokens} tokens: set data.text_tokens to that, not "
      f"{data['text_tokens']}."
    )


def _fill(model, **values):
  for key, value in values.items():
    model[key] = value if model[key] is None else model[key]


def make_prepare(codec, context, *, actions, clean=False):
  """Loader batches to objective batches.

  Args:
    codec: video [B, T, H, W, 3] in [-1, 1] -> latents [B, T, h, w, C]; None for data of latents.
    context: number of first frames that are given clean.
    actions: whether the network is told the actions.
    clean: whether the condition holds the clean video, for teacher forcing.

  Returns:
    prepare({"video": uint8 [B, T, H, W, 3], "actions": [B, T, A]}) -> `Batch` with x0 the frames
    after the context, cond.context those before, cond.actions of all T frames; "text" and
    "text_mask" of the batch, if it has them, are the condition's. {"latents": [B, T, h, w, C]}
    instead of video pass through.
  """

  def prepare(batch):
    frames = batch.get("latents")
    if frames is None:
      frames = codec.encode(batch["video"].astype(jnp.float32) / 127.5 - 1)
    x0 = frames[:, context:]
    cond = Cond(
      text=batch.get("text"),
      text_mask=batch.get("text_mask"),
      actions=batch["actions"] if actions else None,
      context=frames[:, :context] if context else None,
      clean=x0 if clean else None,
    )
    return losses.Batch(x0=x0, cond=cond)

  return prepare


def sample_batch(setup):
  """The first eval.videos clips of eval.split, prepared: the same ones throughout a run."""
  settings = setup.config["eval"]
  loader = Loader(
    setup.config["data"]["path"],
    settings["split"],
    batch_size=settings["videos"],
    frames=setup.config["data"]["frames"],
    seed=setup.config["seed"],
    embed=text_encoder(setup.config["data"]),
    text_tokens=setup.config["data"]["text_tokens"],
  )
  clips = next(iter(loader))
  return setup.prepare({name: value for name, value in clips.items() if name != "caption"})
