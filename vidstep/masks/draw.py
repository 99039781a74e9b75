"""Pictures of masks, for the documentation and for notebooks."""

from typing import Any

import numpy as np

from vidstep.masks.info import CLEAN, TokenInfo
from vidstep.masks.plan import density, kernel_mask
from vidstep.masks.rules import Rule

_PIXELS = 512
_ALLOWED, _EMPTY = "#2f5d8c", "#f3f1ec"


def draw(
  mask: Rule | None,
  q_info: TokenInfo,
  k_info: TokenInfo | None = None,
  *,
  path: str | None = None,
  ax: Any = None,
) -> Any:
  """Draws who attends to whom: queries down, keys across, lines where the chunk or role changes.

  Long sequences are drawn coarsely, a pixel as dark as the share of its pairs that is allowed.

  Args:
    mask: the rule.
    q_info: attributes of the queries, `[N]` or `[B, N]` (the mean over the batch is drawn); one
      entry a frame makes the clearest picture.
    k_info: attributes of the keys; those of the queries when left out.
    path: file to save the picture to.
    ax: matplotlib axes to draw on; a new figure when left out.

  Returns:
    The matplotlib axes.
  """
  import matplotlib.colors
  from matplotlib.figure import Figure

  ax = Figure(figsize=(4, 4), layout="constrained").add_subplot() if ax is None else ax
  k_info = q_info if k_info is None else k_info
  plan = kernel_mask(mask, q_info, k_info)
  block = -(-max(plan.q_len, plan.k_len) // _PIXELS)
  share = plan.coverage(block, block)
  colors = matplotlib.colors.LinearSegmentedColormap.from_list("mask", [_EMPTY, _ALLOWED])
  extent = (0, plan.k_len, plan.q_len, 0)
  ax.imshow(share, cmap=colors, vmin=0, vmax=1, extent=extent, interpolation="nearest")
  for info, line, axis in ((q_info, ax.axhline, ax.yaxis), (k_info, ax.axvline, ax.xaxis)):
    cuts, names = _segments(info)
    for cut in cuts[1:]:
      line(cut, color="white", linewidth=0.5)
    axis.set_ticks(cuts, names, fontsize=7)
  ax.set(xlabel="key", ylabel="query")
  ax.set_title(f"{mask or 'no mask'}\n{density(mask, q_info, k_info):.1%} attended", fontsize=8)
  if path is not None:
    ax.figure.savefig(path, dpi=150)
  return ax


def _segments(info: TokenInfo) -> tuple[np.ndarray, list[str]]:
  """Where chunk or role changes, and what begins there: c2 is clean chunk 2, n2 its noisy copy."""
  chunk, role = (np.atleast_2d(field)[0] for field in (info.chunk, info.role))
  new = (np.diff(chunk, prepend=chunk[0] - 1) != 0) | (np.diff(role, prepend=role[0]) != 0)
  cuts = np.flatnonzero(new)
  return cuts, [f"{'c' if role[i] == CLEAN else 'n'}{chunk[i]}" for i in cuts]
