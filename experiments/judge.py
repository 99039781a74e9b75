"""Judging generated videos: one bench for all rows of a table, distances beside motion, latency."""

import dataclasses
import functools

import jax
import numpy as np
from tqdm import tqdm

from experiments import generate
from vidstep.metrics.describe import describe_clips
from vidstep.metrics.latency import Stopwatch, measure
from vidstep.metrics.summary import evaluate_clips


@dataclasses.dataclass(frozen=True, eq=False)
class Bench:
  """What every row of a table shares.

  Attributes:
    clips: N held-out clips: their contexts and actions are the conditions.
    reference: `Description` of the real frames of other held-out clips.
    context: frames that are given, not judged.
    features: "alexnet", "i3d" or both.
    seeds: seeds of the noise.
    resamples: of the bootstrap.
  """

  clips: dict
  reference: object
  context: int
  features: tuple
  seeds: tuple
  resamples: int = 200


def make_bench(network, *, videos, seeds, features, resamples=200):
  """Reads conditions and reference of a network's test split.

  Raises:
    ValueError: if the split has fewer than 2 x videos clips; with 3 x videos the floor stands at
      as many clips as the distances.
  """
  config = network.config
  try:
    clips = generate.held_out(config, 3 * videos)
  except ValueError:
    clips = generate.held_out(config, 2 * videos)
  conditions = {k: v[:videos] for k, v in clips.items()}
  reference = describe_clips(clips["video"][videos:, network.context :], features=features)
  return Bench(conditions, reference, network.context, features, seeds, resamples)


def describe_network(network, setting, bench, *, name=""):
  """Draws the videos of all seeds, with a progress bar.

  Returns:
    (`Description`, uint8 videos [S, N, F, H, W, 3]).
  """
  total = len(bench.seeds) * len(bench.clips["video"])
  with tqdm(total=total, desc=f"{name or setting.label:32s}", unit="clip", leave=False) as bar:
    videos = np.stack(
      [
        generate.draw_videos(network, setting, bench.clips, seed=seed, progress=bar.update)
        for seed in bench.seeds
      ]
    )
  return describe_clips(videos, features=bench.features, seeds=bench.seeds), videos


def judge(description, bench):
  """Every number about one set of videos (`evaluate_clips`)."""
  return evaluate_clips(
    description, bench.reference, features=bench.features, resamples=bench.resamples
  )


def time_network(network, setting, clips, *, runs):
  """Latency at batch 1, in seconds: all of it, and its stages denoise / decode / transfer.

  There is no text encoder in this path. Compilation is told apart and not in the median.

  Returns:
    {"total": {...}, "stages": {...}, "per_frame": seconds, "nfe": count, "device": name}.
  """
  draw, decode = generate.make_sampler(network, setting), generate.make_decoder(network)
  one = {k: v[:1] for k, v in clips.items() if k != "caption"}
  batch, key = network.prepare(one), jax.random.key(0)
  whole = lambda: jax.device_get(decode(draw(network.params, batch, key)))
  total = measure(whole, runs=runs, warmup=1)
  watch = Stopwatch()
  for _ in range(runs + 1):
    latents = watch.time("denoise", draw, network.params, batch, key)
    pixels = watch.time("decode", decode, latents)
    watch.time("transfer", functools.partial(jax.device_get, pixels))
  return {
    "total": total.to_dict(),
    "stages": watch.breakdown(),
    "per_frame": total.median / batch.x0.shape[1],
    "nfe": network.nfe(setting),
    "device": total.device,
  }
