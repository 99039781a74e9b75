"""Token attributes and masks that the Hopper kernels are tested under, tile by tile and whole."""

import numpy as np

from vidstep import masks

PACKED = masks.teacher_forcing_info(masks.chunk_index(3, 1))
PADDED = masks.token_info(
  np.stack([np.arange(3), np.arange(3)]), valid=np.arange(3) < np.array([[3], [1]])
)
NOW, ALONE = masks.token_info(np.full(2, 2)), masks.token_info(np.full(2, 5))
# Four slots of a cache and the chunk that is new: frames out of order, one pinned, some empty.
SLOTS = masks.token_info(
  np.array([[4, 1, 2, 3, 5], [0, 1, 0, 0, 2]]),
  role=np.array([masks.CLEAN] * 4 + [masks.NOISY]),
  valid=np.array([[1, masks.PINNED, 1, 1, 1], [1, 1, 0, 0, 1]]),
)
NEW = masks.token_info(np.array([[5], [2]]))
FILLED = masks.token_info(np.arange(4), valid=np.arange(4) < np.array([[3], [1]]))
WINDOW = masks.TeacherForcing() & masks.Window(2, 1, pinned=True) & masks.Present()

# Rule, attributes of queries and keys an entry a frame, tokens a frame.
CASES = {
  "cross attention": (None, PACKED, NOW, 37),
  "teacher forcing": (masks.TeacherForcing(), PACKED, PACKED, 40),
  "padding": (masks.CausalFrames() & masks.Valid(), PADDED, PADDED, 25),
  "nobody": (masks.Window(1), ALONE, NOW, 9),  # not one tile
}
# What is known only at run time.
TRACED = {
  "cache": (masks.Prefix(), NEW, FILLED, 37),
  "cache in a window": (WINDOW, NEW, SLOTS, 37),
}
