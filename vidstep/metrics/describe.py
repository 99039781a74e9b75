"""A set of clips reduced to what the summary needs: features and per-frame statistics."""

from typing import NamedTuple

import numpy as np

from vidstep.metrics.diversity import diversity
from vidstep.metrics.features import (
  ALEXNET_SIZE,
  I3D_SIZE,
  alexnet_frames,
  i3d_k400,
  pool_frames,
)
from vidstep.metrics.motion import clipped, contrast, motion_magnitude, saturation

FEATURES = ("alexnet", "i3d")
STATISTICS = {
  "motion": motion_magnitude,
  "saturation": saturation,
  "contrast": contrast,
  "clipped": clipped,
}


class Description(NamedTuple):
  """N conditions by S seeds. A few hundred kB where the clips were a few hundred MB."""

  shape: tuple  # (T, H, W)
  seeds: tuple  # names of the S generation seeds; (None,) for real clips
  resize: dict  # feature name -> size that frames were resized to
  features: dict  # feature name -> [N, S, D]
  frames: np.ndarray | None  # AlexNet features of every frame [N, S, T, C]
  statistics: dict  # name -> [N, S, T] ("motion": T-1)
  diversity: np.ndarray | None  # pixel distance between seeds [N, T]; None if S = 1


def describe_clips(video, *, features="alexnet", seeds=None, size=ALEXNET_SIZE):
  """Runs the networks and the per-frame statistics once; everything later is small arithmetic.

  Args:
    video: [N, T, H, W, 3], or [S, N, T, H, W, 3] for S generation seeds of the same N conditions;
      uint8 or float in [-1, 1].
    features: "alexnet", "i3d", or both as a tuple.
    seeds: names of the S seeds; None for 0..S-1.
    size: frame size for AlexNet.

  Returns:
    Description.

  Raises:
    ValueError: on a shape, range, feature name or number of seeds that does not fit.
    ImportError: if the metrics extra is missing.
  """
  features = (features,) if isinstance(features, str) else tuple(features)
  unknown = [name for name in features if name not in FEATURES]
  if unknown or not features:
    raise ValueError(f"features are {FEATURES}, one or both; got {features}.")
  video = np.asarray(video)
  stack = video if video.ndim == 6 else video[None]
  named = tuple(range(len(stack))) if seeds is None else tuple(seeds)
  if len(named) != len(stack):
    raise ValueError(f"seeds={named} names {len(named)} seeds, the clips have {len(stack)}.")

  by_seed = lambda fn: np.stack([fn(clips) for clips in stack], axis=1)
  statistics = {name: by_seed(fn) for name, fn in STATISTICS.items()}
  described, resize, frames = {}, {}, None
  if "alexnet" in features:
    frames = by_seed(lambda clips: alexnet_frames(clips, size=size))
    described["alexnet"] = np.stack([pool_frames(frames[:, s]) for s in range(len(stack))], axis=1)
    resize["alexnet"] = size
  if "i3d" in features:
    described["i3d"] = by_seed(i3d_k400)
    resize["i3d"] = I3D_SIZE
  return Description(
    shape=stack.shape[2:5],
    seeds=named,
    resize=resize,
    features=described,
    frames=frames,
    statistics=statistics,
    diversity=diversity(stack) if len(stack) > 1 else None,
  )
