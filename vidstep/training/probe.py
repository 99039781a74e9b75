"""What a look at a few samples tells about a run: motion, saturation, diversity, against real."""

import numpy as np

from vidstep.metrics.diversity import diversity
from vidstep.metrics.motion import clipped, contrast, motion_magnitude, saturation


def probe(real, drawn, *, context=0):
  """Scalars of samples drawn several times for each of a few fixed conditions.

  Every measure comes with the number that real video has, under the same name with `_real`:

      motion      mean |x_{f+1} - x_f|                    the real clips'
      diversity   mean |x - x'|, same condition           mean |x - real|, same condition
      spread      mean |x - x'|, same seed, two conditions  the real clips'
      contrast, saturation, clipped                       the real clips'

  The first three and contrast are on the 0..255 scale, the last two in [0, 1]. Of a perfect model
  each measure equals its `_real` in expectation: for diversity because the real clip is then one
  more sample of its condition. So a model of a world without chance may answer all seeds alike
  without being called collapsed, as long as the answer is right.

  Args:
    real: [N, T, H, W, 3] in [-1, 1], one clip for each of N conditions.
    drawn: [S, N, T, H, W, 3], S seeds of each.
    context: first frames that were given, which are not judged.

  Returns:
    dict "probe/motion", "probe/motion_real", ... of floats. What cannot be measured is absent:
    diversity with S = 1, spread with N = 1, motion of one frame. Samples that are not finite
    give {"probe/finite": 0.0} alone, others "probe/finite": 1.0 besides.

  Raises:
    ValueError: if the shapes do not fit.
  """
  real, drawn = np.asarray(real), np.asarray(drawn)
  if drawn.ndim != 6 or drawn.shape[1:] != real.shape:
    raise ValueError(
      f"give real [N, T, H, W, 3] and drawn [S, N, T, H, W, 3], got {real.shape}, {drawn.shape}."
    )
  if not np.isfinite(drawn).all():
    return {"probe/finite": 0.0}
  flat = drawn.reshape(-1, *drawn.shape[2:])
  values = {"finite": 1.0}

  def beside(name, of_drawn, of_real):
    values[name], values[f"{name}_real"] = float(np.mean(of_drawn)), float(np.mean(of_real))

  # The seam to what was given is motion only where there is no other.
  start = max(context - 1, 0) if real.shape[1] - context == 1 else context
  if real.shape[1] - start > 1:
    beside("motion", motion_magnitude(flat[:, start:]), motion_magnitude(real[:, start:]))
  real, drawn, flat = real[:, context:], drawn[:, :, context:], flat[:, context:]
  if len(drawn) > 1:
    truth = [diversity(np.stack([seed, real])) for seed in drawn]
    beside("diversity", diversity(drawn), truth)
  if len(real) > 1:
    beside("spread", diversity(drawn.swapaxes(0, 1)), diversity(real[:, None]))
  for name, measure in (("contrast", contrast), ("saturation", saturation), ("clipped", clipped)):
    beside(name, measure(flat), measure(real))
  return {f"probe/{name}": value for name, value in values.items()}
