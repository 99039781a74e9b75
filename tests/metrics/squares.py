"""Moving squares: small clips with motion and colour that cost nothing."""

import numpy as np


def moving_squares(count, frames, size, seed):
  """uint8 clips [count, frames, size, size, 3]: one coloured square on a coloured ground."""
  rng = np.random.default_rng(seed)
  video = np.empty((count, frames, size, size, 3), np.uint8)
  for n in range(count):
    ground, colour = rng.integers(40, 216, (2, 3))
    video[n] = ground
    y, x, dy, dx = *rng.integers(0, size, 2), *rng.integers(-4, 5, 2)
    for t in range(frames):
      rows, columns = (
        (np.arange(size // 4) + y + t * dy) % size,
        (np.arange(size // 4) + x + t * dx),
      )
      video[n, t][np.ix_(rows, columns % size)] = colour
  return video
