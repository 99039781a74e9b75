"""Left or right? The mean horizontal optical flow of a clip says which of two keys was held.

Independent of any trained network: a picture moves against the way the view turns (and with the way
a figure walks before a still ground). Which sign belongs to which key is read off real frames.
"""

from typing import NamedTuple

import cv2
import numpy as np

from vidstep.metrics.clips import check_clips, to_bytes

_LUMA = (0.299, 0.587, 0.114)  # BT.601
_HEIGHT = 64  # frames are enlarged to about this: the estimator's patches are 8 pixels wide


def horizontal_flow(video):
  """Mean horizontal displacement from each frame to the next, in widths of the picture.

  Dense inverse search (Kroeger et al. 2016, OpenCV's) on luma.

  Args:
    video: [N, T >= 2, H, W, 3] uint8 or float in [-1, 1].

  Returns:
    float32 [N, T-1]; positive where things move to the right.

  Raises:
    ValueError: on anything that is no video, or a single frame.
  """
  video = check_clips(video, frames=2)
  factor = max(1, round(_HEIGHT / video.shape[2]))
  size = (video.shape[3] * factor, video.shape[2] * factor)
  estimator = cv2.DISOpticalFlow_create(cv2.DISOPTICAL_FLOW_PRESET_MEDIUM)
  out = np.zeros((len(video), video.shape[1] - 1), np.float32)
  for n, clip in enumerate(video):
    luma = np.rint(to_bytes(clip) @ np.array(_LUMA, np.float32)).astype(np.uint8)
    luma = [cv2.resize(frame, size, interpolation=cv2.INTER_LINEAR) for frame in luma]
    for t in range(len(luma) - 1):
      out[n, t] = estimator.calc(luma[t], luma[t + 1], None)[..., 0].mean() / size[0]
  return out


class Turns(NamedTuple):
  """Which side of a threshold the flow lies on under the first of two keys.

  Attributes:
    sign: +1 if things move to the right under the first key, else -1.
    middle: flow halfway between the means of the two keys.
  """

  sign: int
  middle: float

  def first(self, flow):
    """Whether each flow looks like the first key; bool, in the shape of flow."""
    return self.sign * (np.asarray(flow) - self.middle) > 0

  def accuracy(self, first, second):
    """Mean of the shares of flows under the first and under the second key that are told."""
    return float((self.first(first).mean() + (~self.first(second)).mean()) / 2)


def under(flow, actions, key, other):
  """The flows [n] into frames where one key is down and the other is not.

  Args:
    flow: [N, T-1] of `horizontal_flow`.
    actions: [N, T, A]; actions[:, f] leads INTO frame f.
    key: column of the key that is down.
    other: column of the key that is up.
  """
  down = np.asarray(actions)[:, 1:] > 0
  return flow[down[..., key] & ~down[..., other]]


def fit_turns(first, second):
  """Threshold and sign from flows of real frames under each key.

  Args:
    first: flows [n] under the first key.
    second: flows [m] under the second.

  Returns:
    `Turns`.

  Raises:
    ValueError: if there is no frame of either.
  """
  if not len(first) or not len(second):
    raise ValueError("Both keys must be pressed (one without the other) in some real frames.")
  means = float(np.mean(first)), float(np.mean(second))
  return Turns(1 if means[0] > means[1] else -1, (means[0] + means[1]) / 2)
