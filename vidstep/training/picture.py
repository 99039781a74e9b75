"""Pictures of videos for people who watch a run."""

import numpy as np


def side_by_side(real, drawn, gap=2):
  """Two sets of videos as one picture: frames run to the right, each real clip above its twin.

  Args:
    real: [n, T, H, W, 3] in [-1, 1].
    drawn: the same shape.
    gap: pixels of white between frames and rows.

  Returns:
    uint8 [2 n (H + gap) - gap, T (W + gap) - gap, 3].
  """
  rows = np.stack([real, drawn], axis=1).reshape(-1, *real.shape[1:])
  rows = np.round((np.clip(rows, -1, 1) + 1) * 127.5).astype(np.uint8)
  pad = ((0, 0), (0, 0), (0, gap), (0, gap), (0, 0))
  rows = np.pad(rows, pad, constant_values=255)
  n, t, h, w, c = rows.shape
  return rows.transpose(0, 2, 1, 3, 4).reshape(n * h, t * w, c)[:-gap, :-gap]
