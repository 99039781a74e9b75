"""Clips whose pixels and actions tell where they come from."""

import numpy as np

from vidstep.data.episodes import Episode, cut

SIZE, LENGTH, CLIP = 8, 13, 6


def telling_episode(index: int, caption: str | None = None) -> Episode:
  """Frame f of episode e has the value (e, f, 0) in every pixel; actions[f] = [e, f]."""
  video = np.zeros((LENGTH, SIZE, SIZE, 3), np.uint8)
  video[..., 0], video[..., 1] = index, np.arange(LENGTH)[:, None, None]
  actions = np.stack([np.full(LENGTH, index), np.arange(LENGTH)], axis=1).astype(np.float32)
  return Episode(video, actions, index, 100 + index, "telling", caption)


def telling_clips(indices) -> list[dict]:
  return [clip for i in indices for clip in cut(telling_episode(i), CLIP)]
