"""One call, every number: distances with interval and floor, and never without motion beside."""

import numpy as np

from vidstep.metrics.describe import Description, describe_clips
from vidstep.metrics.distribution import frechet_distance, frechet_of_rows, kernel_of_rows
from vidstep.metrics.drift import by_frame, by_window, slope
from vidstep.metrics.features import pool_frames
from vidstep.metrics.resampling import bootstrap, bootstrap_rows, disjoint_rows

# Only distances on I3D's Kinetics-400 logits carry the famous names.
DISTANCES = {
  "frechet_alexnet_clip": ("alexnet", frechet_of_rows),
  "kernel_alexnet_clip": ("alexnet", kernel_of_rows),
  "fvd_i3d_k400": ("i3d", frechet_of_rows),
  "kvd_i3d_k400": ("i3d", kernel_of_rows),
}


def _describe(clips, features, seeds=None):
  return (
    clips
    if isinstance(clips, Description)
    else describe_clips(clips, features=features, seeds=seeds)
  )


def _check(fake, real, paired):
  if len(real.seeds) != 1:
    raise ValueError("real clips have no generation seeds: give them as [M, T, H, W, 3].")
  if fake.shape != real.shape:
    raise ValueError(
      f"fake clips are (T, H, W) = {fake.shape}, real ones {real.shape}: distances between "
      "different lengths or sizes compare the formats. Cut or resize both to one."
    )
  if fake.resize != real.resize:
    raise ValueError(f"fake was described with {fake.resize}, real with {real.resize}: use one.")
  n, m = (len(d.statistics["motion"]) for d in (fake, real))
  if paired and n != m:
    raise ValueError(f"paired=True means real[i] is the truth of fake[i]; there are {m} and {n}.")
  return n, m


def _of_rows(distance, fake, real):
  """One function of row numbers per generation seed; fake [N, S, D], real [M, 1, D]."""
  return [distance(fake[:, s], real[:, 0]) for s in range(fake.shape[1])]


def _mean(functions):
  return lambda i, j: float(np.mean([at(i, j) for at in functions]))


def _distance(distance, fake, real, *, seed, resamples, level, splits, paired):
  (n, m), at = (len(fake), len(real)), _of_rows(distance, fake, real)
  interval = bootstrap_rows(
    _mean(at), n, m, seed=seed, resamples=resamples, level=level, paired=paired
  )
  by_seed = [one(np.arange(n), np.arange(m)) for one in at]
  out = interval._asdict() | {"by_seed": by_seed}
  if len(by_seed) > 1:
    out["spread"] = float(np.std(by_seed, ddof=1))
  size = min(n, m // 2)
  if size >= 2:
    same = {"size": size, "splits": splits, "seed": seed}
    floor = disjoint_rows(_mean(_of_rows(distance, real, real)), m, m, **same)
    matched = disjoint_rows(_mean(at), n, m, **same)
    out["floor"] = {"mean": floor.mean, "std": floor.std, "clips": size, "splits": splits}
    out["at_floor"] = {"mean": matched.mean, "std": matched.std, "clips": size, "splits": splits}
  return out


def _beside(name, fake, real, *, seed, resamples, level):
  fake, real = fake.statistics[name], real.statistics[name][:, 0]
  interval = bootstrap(np.mean, fake.mean(axis=(1, 2)), None, seed, resamples, level=level)
  truth = float(real.mean())
  return interval._asdict() | {"real": truth, "ratio": interval.value / truth if truth else None}


def _drift(fake, real, window):
  out = {"by_frame": {}, "slope": {}}
  for name in ("motion", "saturation", "contrast"):
    mean, error = by_frame(fake.statistics[name].mean(axis=1))
    truth, _ = by_frame(real.statistics[name][:, 0])
    out["by_frame"][name] = {
      "value": mean.tolist(),
      "standard_error": error.tolist(),
      "real": truth.tolist(),
    }
    if len(mean) > 1:
      out["slope"][name] = {
        "value": slope(fake.statistics[name].mean(axis=1)),
        "real": slope(real.statistics[name][:, 0]),
      }
  if fake.frames is not None:
    cut = lambda d: np.swapaxes(d.frames, 1, 2)  # [N, T, S, C]: windows are cut from axis 1
    out["frechet_alexnet_clip"] = by_window(_frechet_of_frames, cut(fake), cut(real), window=window)
  return out


def _frechet_of_frames(fake, real):
  """Frechet distance of clips given as frame features [N, w, S, C], mean over S."""
  pooled = pool_frames(real[:, :, 0])
  return float(
    np.mean([frechet_distance(pool_frames(fake[:, :, s]), pooled) for s in range(fake.shape[2])])
  )


def evaluate_clips(
  fake,
  real,
  *,
  features="alexnet",
  seeds=None,
  seed=0,
  resamples=200,
  level=0.95,
  splits=10,
  window=None,
  paired=False,
):
  """Everything there is to say about generated clips without a person looking at them.

  Distances reward stillness, averages or exposure in ways of their own, so motion, saturation,
  contrast and clipping (each with the real clips' number) and drift along the clip are always in
  the answer; diversity at fixed condition too where there are two generation seeds or more.

  Reading a distance: `value` (mean over generation seeds) with its interval is for all N and M
  clips. `floor` is real against other real clips at `clips` a side, `at_floor` is fake against real
  at the same number, with no clip (or its condition) on both sides: compare those two. With
  M >= 2 N they stand at N; with M = N at N / 2.

  Args:
    fake: [N, T, H, W, 3] or [S, N, T, H, W, 3] (S generation seeds for N conditions), uint8 or
      float in [-1, 1]; or a `Description` of them.
    real: [M, T, H, W, 3], drawn across episodes; or a `Description`, so that many sets share one.
    features: "alexnet", "i3d" (needs T >= 9) or both. Ignored where a Description is given.
    seeds: names of the S generation seeds.
    seed: of bootstrap and splits.
    resamples: of the bootstrap.
    level: of the intervals.
    splits: of the floor.
    window: frames in a drift window; None for half the clip.
    paired: real[i] is the continuation of the condition of fake[i]; they are resampled together.

  Returns:
    JSON-ready dict: clips, real_clips, frames, height, width, seeds, seed, resamples, level,
    paired; for each distance {value, low, high, by_seed, [spread], floor, at_floor, resize}, named
    frechet_alexnet_clip, kernel_alexnet_clip, fvd_i3d_k400, kvd_i3d_k400; motion (0..255 a frame),
    saturation, contrast, clipped {value, low, high, real, ratio}; drift; diversity.

  Raises:
    ValueError: on anything that is no video, or sets that cannot be compared.
    ImportError: if the metrics extra is missing.
  """
  real = _describe(real, features)
  fake = _describe(fake, tuple(real.features), seeds)
  n, m = _check(fake, real, paired)
  frames, height, width = fake.shape
  common = {"seed": seed, "resamples": resamples, "level": level}
  out = {
    "clips": n,
    "real_clips": m,
    "frames": frames,
    "height": height,
    "width": width,
    "seeds": list(fake.seeds),
    "paired": paired,
    **common,
  }
  for name, (feature, distance) in DISTANCES.items():
    if feature in real.features:
      out[name] = _distance(
        distance,
        fake.features[feature],
        real.features[feature],
        splits=splits,
        paired=paired,
        **common,
      ) | {"resize": real.resize[feature]}
  for name in fake.statistics:
    out[name] = _beside(name, fake, real, **common)
  out["drift"] = _drift(fake, real, max(2, frames // 2) if window is None else window)
  if fake.diversity is not None:
    per_condition = fake.diversity.mean(axis=1)
    interval = bootstrap(np.mean, per_condition, None, seed, resamples, level=level)
    out["diversity"] = interval._asdict() | {"by_frame": fake.diversity.mean(axis=0).tolist()}
  return out


def compare_clips(
  first, second, real, *, features="alexnet", seed=0, resamples=200, level=0.95, paired=False
):
  """Which of two settings is closer to real, with seeds and conditions shared: paired bootstrap.

  Args:
    first: clips or `Description`; clip i has the condition and noise of clip i of second.
    second: clips or `Description`.
    real: clips or `Description`.
    features: as in `evaluate_clips`.
    seed: of the resampling.
    resamples: of the bootstrap.
    level: of the intervals.
    paired: real[i] is the continuation of the condition of clip i.

  Returns:
    {distance: {"value", "low", "high", "verdict"}} of first minus second; the verdict is "first",
    "second" or "tie" (the interval contains 0).

  Raises:
    ValueError: if the three sets cannot be compared.
    ImportError: if the metrics extra is missing.
  """
  real = _describe(real, features)
  first, second = (_describe(x, tuple(real.features)) for x in (first, second))
  (n, m), (n_second, _) = (_check(fake, real, paired) for fake in (first, second))
  if n != n_second:
    raise ValueError(f"paired sets must have as many clips each, got {n} and {n_second}.")
  out = {}
  for name, (feature, distance) in DISTANCES.items():
    if feature not in real.features:
      continue
    truth = real.features[feature]
    one, two = (_mean(_of_rows(distance, d.features[feature], truth)) for d in (first, second))
    interval = bootstrap_rows(
      lambda i, j, one=one, two=two: one(i, j) - two(i, j),
      n,
      m,
      seed=seed,
      resamples=resamples,
      level=level,
      paired=paired,
    )
    verdict = "first" if interval.high < 0 else "second" if interval.low > 0 else "tie"
    out[name] = interval._asdict() | {"verdict": verdict}
  return out
