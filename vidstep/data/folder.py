"""A folder of video files as episodes: decoded, cropped to squares, with captions if any."""

import json
from collections.abc import Callable
from itertools import islice
from pathlib import Path

import numpy as np

from vidstep.data.episodes import Episode
from vidstep.data.video_io import fit_square, read_frames

SUFFIXES = {".mp4", ".webm", ".mkv", ".mov", ".avi", ".gif", ".m4v"}


def list_videos(folder: str | Path) -> list[Path]:
  """Every video file below `folder`, sorted.

  Raises:
    FileNotFoundError: no such folder, or no video in it.
  """
  folder = Path(folder)
  if not folder.is_dir():
    raise FileNotFoundError(f"{folder} is no folder: point --folder to one with video files.")
  videos = sorted(p for p in folder.rglob("*") if p.suffix.lower() in SUFFIXES)
  if not videos:
    raise FileNotFoundError(f"No video in {folder}: looked for {', '.join(sorted(SUFFIXES))}.")
  return videos


def read_captions(folder: str | Path, videos: list[Path]) -> dict[Path, str]:
  """Captions of the videos that have one.

  `captions.jsonl` in the folder holds lines {"file": "a/b.mp4", "caption": "..."} with paths
  relative to it; a text file beside a video (`b.txt` for `b.mp4`) wins over it.

  Raises:
    ValueError: a line of captions.jsonl that is no such object.
  """
  folder = Path(folder)
  captions = {}
  listing = folder / "captions.jsonl"
  if listing.exists():
    for number, line in enumerate(listing.read_text().splitlines(), 1):
      if not line.strip():
        continue
      try:
        entry = json.loads(line)
        captions[folder / entry["file"]] = str(entry["caption"]).strip()
      except (json.JSONDecodeError, KeyError, TypeError) as error:
        raise ValueError(
          f'{listing}, line {number}: write {{"file": ..., "caption": ...}} per line ({error}).'
        ) from error
  for video in videos:
    if video.with_suffix(".txt").exists():
      captions[video] = video.with_suffix(".txt").read_text().strip()
  return {video: captions[video] for video in videos if video in captions}


def read_episode(
  video: Path,
  *,
  index: int,
  size: int,
  frame_skip: int = 1,
  frames: int | None = None,
  caption: str | None = None,
  on_frame: Callable[[], None] = lambda: None,
) -> Episode:
  """One video file as an episode without actions (their width is 0).

  Args:
    video: the file.
    index: number of the episode.
    size: the centre square is cut out and resized to size x size.
    frame_skip: keep every n-th frame.
    frames: keep at most this many.
    caption: text that describes it.
    on_frame: called after every kept frame.
  """
  kept = []
  for frame in islice(
    read_frames(video), 0, None if frames is None else frames * frame_skip, frame_skip
  ):
    kept.append(fit_square(frame, size, crop=True))
    on_frame()
  stacked = np.stack(kept) if kept else np.zeros((0, size, size, 3), np.uint8)
  return Episode(stacked, np.zeros((len(kept), 0), np.float32), index, -1, video.name, caption)
