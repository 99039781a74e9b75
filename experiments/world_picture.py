"""Film strips of a world model: rows under the same keys, and one place under different keys."""

import numpy as np
from PIL import Image, ImageDraw

from vidstep.data.video_io import GAP, PAPER, save_picture, strip
from vidstep.metrics.motion import motion_magnitude

SCALE = 3  # frames are enlarged so that the keys can be drawn on them
FRAMES = 12  # moments in a strip
POINTS = {  # of an arrow in a unit square
  "left": ((0.75, 0.15), (0.75, 0.85), (0.15, 0.5)),
  "right": ((0.25, 0.15), (0.25, 0.85), (0.85, 0.5)),
  "up": ((0.15, 0.75), (0.85, 0.75), (0.5, 0.15)),
  "down": ((0.15, 0.25), (0.85, 0.25), (0.5, 0.85)),
}
WORDS = {"LEFT": "left", "RIGHT": "right", "FORWARD": "up", "UP": "up", "BACKWARD": "down",
         "DOWN": "down"}  # fmt: skip


def draw(cells, bench, path):
  """Writes the picture: film strips of the rows that the config names, then counterfactuals.

  Args:
    cells: row name -> {"rollout" [N, T, ...], "held" {name: [N, hold, ...]}}.
    bench: the `Bench`.
    path: PNG to write.
  """
  named = [name for name in bench.config["picture"] if name in cells]
  named = named or [name for name in cells if cells[name]["held"]][:2]
  n, count = bench.context, bench.config["shown"]
  real = cells["real"]["rollout"]
  frames = min(real.shape[1], FRAMES)
  # Of the clips with counterfactuals, those that move most: others show nothing.
  seen = real[: bench.config["hold_clips"], :frames]
  lively = np.argsort(-motion_magnitude(seen).mean(axis=1))[:count]
  parts = []
  for clip in lively:
    context = bench.conditions["video"][clip : clip + 1, :n]
    keys = bench.conditions["actions"][clip : clip + 1, : n + frames]
    whole = lambda video, c=clip, x=context: np.concatenate([x, video[c : c + 1, :frames]], axis=1)
    rows = {name: whole(cells[name]["rollout"]) for name in ("real", *named)}
    parts.append(_strip(rows, dict.fromkeys(rows, keys), bench.names))
  futures = cells[named[-1]]["held"] if named else {}
  if futures:
    for clip in lively:
      rows, keys = {}, {}
      for name, video in futures.items():
        label = f"{named[-1]}\nholding {name}"
        rows[label] = np.concatenate(
          [bench.conditions["video"][clip : clip + 1, :n], video[clip : clip + 1]], axis=1
        )
        keys[label] = bench.holding(bench.held[name])["actions"][
          clip : clip + 1, : rows[label].shape[1]
        ]
      parts.append(_strip(rows, keys, bench.names))
  save_picture(path, _stack(parts), made_by="vidstep", composite=True)


def _strip(rows, keys, names):
  drawn = {label: with_keys(video, keys[label], names) for label, video in rows.items()}
  return strip(drawn, target=SCALE * next(iter(rows.values())).shape[2])


def _stack(parts):
  """Pictures below each other on paper."""
  width = max(part.shape[1] for part in parts)
  out = []
  for part in parts:
    pad = ((0, 3 * GAP), (0, width - part.shape[1]), (0, 0))
    out.append(np.pad(part, pad, constant_values=PAPER[0]))
  return np.concatenate(out)


def with_keys(video, actions, names):
  """Videos enlarged, with the keys that led into each frame drawn into its corner.

  Args:
    video: uint8 [N, T, H, W, 3].
    actions: [N, T, A].
    names: A button names: arrows where a name says a direction, else its first letters.

  Returns:
    uint8 [N, T, SCALE H, SCALE W, 3].
  """
  large = video.repeat(SCALE, axis=2).repeat(SCALE, axis=3)
  out = np.empty_like(large)
  for n, t in np.ndindex(*video.shape[:2]):
    down = [name for name, value in zip(names, actions[n, t], strict=True) if value > 0]
    out[n, t] = _with_glyphs(large[n, t], down)
  return out


def _with_glyphs(frame, down):
  image = Image.fromarray(frame)
  draw = ImageDraw.Draw(image)
  side = max(12, frame.shape[0] // 6)
  top, left = frame.shape[0] - side - 2, 2
  for name in down:
    parts = name.upper().split("_")
    ways = [way for word, way in WORDS.items() if any(word in part for part in parts)]
    width = side if ways else max(side, 7 * len(name[:4]) + 4)
    draw.rectangle((left, top, left + width, top + side), fill=(0, 0, 0), outline=(255, 255, 255))
    for way in ways[:1]:
      draw.polygon(
        [(left + 1 + x * (side - 2), top + 1 + y * (side - 2)) for x, y in POINTS[way]],
        fill=(255, 255, 255),
      )
    if not ways:
      draw.text((left + 3, top), name[:4], fill=(255, 255, 255))
    left += width + 2
  return np.asarray(image)
