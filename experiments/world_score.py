"""The numbers about one row of the world table: fidelity, distances, drift, obedience."""

import numpy as np

from experiments.world_bench import column
from vidstep.metrics.actions import following
from vidstep.metrics.describe import describe_clips
from vidstep.metrics.distribution import frechet_distance
from vidstep.metrics.drift import windows as time_windows
from vidstep.metrics.features import alexnet_frames
from vidstep.metrics.frames import lpips, psnr
from vidstep.metrics.motion import contrast, motion_magnitude, saturation
from vidstep.metrics.resampling import bootstrap
from vidstep.metrics.summary import evaluate_clips
from vidstep.metrics.turns import horizontal_flow, under

LPIPS_SIZE = 32  # LPIPS needs frames of this size
TENTHS = 10


def score(videos, bench):
  """All numbers that need no slow network.

  Args:
    videos: "near" [K, horizon, ...], "rollout" [N, max(frames), ...] and "long" [n, long, ...],
      uint8 frames after the contexts of `bench`; "left" and "right" [N, hold, ...] if there are.
    bench: the `Bench`.

  Returns:
    JSON-ready dict.
  """
  out = {
    "near": near_frames(videos["near"], bench),
    "distances": distances(videos["rollout"], bench, ("alexnet",), bench.config["frames"]),
    "drift": drift(videos["long"], bench),
    "obeys": obeys(videos["rollout"], bench),
  }
  if bench.turns and "left" in videos:
    out["turns"] = told_apart(videos["left"], videos["right"], bench)
  return out


def near_frames(fake, bench):
  """PSNR and LPIPS of the frames that follow real ones, by index; an interval for the first."""
  real = bench.near["video"][:, bench.context :]
  metrics = {"psnr": psnr} | ({"lpips": lpips} if min(real.shape[2:4]) >= LPIPS_SIZE else {})
  out = {"clips": len(real)}
  for name, metric in metrics.items():
    values = metric(fake, real)
    first = bootstrap(np.mean, values[:, 0], None, bench.config["seed"], bench.config["resamples"])
    out[name] = first._asdict() | {"by_frame": values.mean(axis=0).tolist()}
  return out


def distances(fake, bench, features, lengths):
  """`evaluate_clips` of rollouts [N, T, ...] at every length: {"16": {...}, ...}."""
  out = {}
  for length in lengths:
    described = describe_clips(fake[:, :length], features=features)
    real = bench.real(features, length)
    result = evaluate_clips(described, real, resamples=bench.config["resamples"])
    result.pop("drift")  # that of the long rollouts is told instead
    out[str(length)] = result
  return out


def drift(fake, bench):
  """Metrics of long rollouts [n, L, ...] by tenths.

  "distance" is the Frechet distance between AlexNet features of single frames: those of one tenth
  of the rollouts against real ones of any time, since a game does not grow older.
  """
  size = max(2, fake.shape[1] // TENTHS)
  cuts = time_windows(fake.shape[1], size)
  features, flat = alexnet_frames(fake), lambda x: x.reshape(-1, x.shape[-1])
  moved, saturated, contrasted = motion_magnitude(fake), saturation(fake), contrast(fake)
  return {
    "clips": len(fake),
    "stops": [stop for _, stop in cuts],
    "distance": [frechet_distance(flat(features[:, a:b]), bench.features) for a, b in cuts],
    "motion": [float(moved[:, a : b - 1].mean()) for a, b in cuts],
    "saturation": [float(saturated[:, a:b].mean()) for a, b in cuts],
    "contrast": [float(contrasted[:, a:b].mean()) for a, b in cuts],
    "obeys": [_within(fake, bench, a, b) for a, b in cuts],
  }


def obeys(fake, bench):
  """What the reader makes of rollouts [N, T, ...], against what was asked for (`following`)."""
  n, frames = bench.context, fake.shape[1]
  options = {"seed": bench.config["seed"], "resamples": bench.config["resamples"]}
  return following(
    bench.reader.read(_with_last(fake, bench)),
    bench.conditions["actions"][: len(fake), n - 1 : n + frames],
    bench.reader,
    buttons=bench.readable,
    **options,
  )


def _within(fake, bench, start, stop):
  """Balanced accuracy in frames start .. stop; None where too little is pressed there."""
  n = bench.context
  odds = bench.reader.read(_with_last(fake[:, :stop], bench))[:, start:]
  actions = bench.conditions["actions"][: len(fake), n + start - 1 : n + stop]
  try:
    result = following(odds, actions, bench.reader, buttons=bench.readable, resamples=20)
  except ValueError:
    return None
  return result["balanced"]["value"]


def _with_last(fake, bench):
  """The last real frame of the context in front."""
  last = bench.conditions["video"][: len(fake), bench.context - 1 : bench.context]
  return np.concatenate([last, fake], axis=1)


def told_apart(left, right, bench):
  """Left against right, from the same contexts and noise, told by the flow alone.

  Args:
    left: [N, T, H, W, 3] under the left key.
    right: under the right one.
    bench: the `Bench`.

  Returns:
    {"frames": share of single frames told, "clips": {value, low, high} by the mean flow of a clip,
    "apart": mean absolute difference of the last frames, on 0..255}.
  """
  flows = [horizontal_flow(_with_last(video, bench)) for video in (left, right)]
  means = [flow.mean(axis=1) for flow in flows]
  told = np.stack([bench.turns.first(means[0]), ~bench.turns.first(means[1])], axis=1)
  seed, resamples = bench.config["seed"], bench.config["resamples"]
  ends = [video[:, -1].astype(np.float32) for video in (left, right)]
  return {
    "frames": bench.turns.accuracy(*flows),
    "clips": bootstrap(np.mean, told.astype(np.float64), None, seed, resamples)._asdict(),
    "apart": float(np.abs(ends[0] - ends[1]).mean()),
  }


def score_real(bench, late, dealt):
  """Real frames, read: what no model can be expected to beat, and what chance is worth.

  Args:
    bench: the `Bench`.
    late: actions [M, T, A] of the reference, shifted.
    dealt: the same, shuffled.

  Returns:
    {"real", "shifted", "shuffled": `following` of the reference clips, "turns": as `told_apart`}.
  """
  odds, actions = bench.reader.read(bench.reference["video"]), bench.reference["actions"]
  options = {"buttons": bench.readable, "resamples": bench.config["resamples"]}
  read = lambda asked: following(odds, asked, bench.reader, **options)
  out = {"real": read(actions), "shifted": read(late), "shuffled": read(dealt)}
  if bench.turns:
    columns = [column(bench.names, bench.config["hold"][side]) for side in ("left", "right")]
    flow = horizontal_flow(bench.reference["video"])
    sides = under(flow, actions, *columns), under(flow, actions, *columns[::-1])
    if all(map(len, sides)):
      out["turns"] = {"frames": bench.turns.accuracy(*sides)}
  return out
