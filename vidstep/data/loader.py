"""Batches of clip windows: deterministic, sharded over processes, resumable at any position."""

from collections.abc import Callable, Sequence

import grain
import numpy as np

from vidstep.data import latents
from vidstep.data.builder import describe, read_split
from vidstep.data.synthetic import synthetic_clips


class Loader:
  """An iterator of batches, NumPy on the host.

  Each item is {"video": uint8 [B, T, H, W, 3], "actions": float32 [B, T, A]} and, where the clips
  have them, "caption": str [B]. T is `frames`; A is 0 where there are no actions. With `embed`
  there are "text": float32 [B, L, D] and "text_mask": bool [B, L] as well.

  Of a dataset of latents (see `latents`) an item is {"latents": float32 [B, F, h, w, C], "text":
  float32 [B, L, Dt], "caption"}: the first `frames` latents of each clip, with the text embeddings
  it was stored with, padded by zeros to `text_tokens`.

  "train" never ends: every epoch is shuffled anew by (seed, epoch), and each clip gives a window of
  `frames` at a random start, drawn from (seed, position). Any other split is one pass in stored
  order over the first `frames` of each clip; `iter(loader)` starts the pass again.

  Everything follows from (seed, position), so that a restored loader continues with the very
  batches that the interrupted one would have drawn. The position counts *global* batches: process
  `index` of `count` takes rows [index * batch_size, (index + 1) * batch_size) of each, hence what a
  step sees does not depend on how many processes share it.

  Args:
    path: directory of a dataset (see `builder`), "synthetic" or "synthetic:size=32,frames=16"
      (see `synthetic.synthetic_clips`), or a sequence of clip dicts.
    split: "train" or "test".
    batch_size: clips per batch and per process; the global batch is batch_size * shard count.
    frames: frames per window; at most the clip length.
    seed: of the order and the windows.
    shard: (index, count) of this process, usually (jax.process_index(), jax.process_count()).
    drop_remainder: drop the last, smaller batch of a pass. Not for "train", whose batches are
      always full.
    prefetch: batches prepared ahead by a background thread pool; 0 reads when asked.
    embed: captions -> (embeddings, mask), such as a `models.text.TextEncoder`; None: no "text".
    text_tokens: L of stored text embeddings; None: what the dataset was made for. Only for latents.

  Attributes:
    frames_per_clip, num_clips, num_actions: what the dataset holds.
    size: side of a frame in pixels; of latents None.
    latent_shape: (F, h, w, C) of a clip of latents, else None.
    text_shape: (L, Dt) of "text" that comes from a dataset of latents, else None.

  Raises:
    FileNotFoundError: no dataset at `path`.
    ValueError: unknown split, more frames than a clip has, fewer clips than a global batch, or
      `embed` for clips without captions.
  """

  def __init__(
    self,
    path: str | Sequence[dict],
    split: str,
    *,
    batch_size: int,
    frames: int,
    seed: int = 0,
    shard: tuple[int, int] = (0, 1),
    drop_remainder: bool = False,
    prefetch: int = 2,
    embed: Callable[[Sequence[str]], tuple[np.ndarray, np.ndarray]] | None = None,
    text_tokens: int | None = None,
  ):
    index, count = shard
    if not 0 <= index < count or batch_size < 1:
      raise ValueError(
        f"shard={shard} must be (index, count) with 0 <= index < count, and batch_size="
        f"{batch_size} at least 1."
      )
    source = open_source(path, split)
    where = f"split {split!r} of {path if isinstance(path, str) else 'the given clips'}"
    endless = split == "train"
    if not len(source) or (len(source) < batch_size * count and (endless or drop_remainder)):
      raise ValueError(
        f"{where} has {len(source)} clips, fewer than one batch of {batch_size} x {count} "
        "process(es): lower the batch size or record more episodes."
      )
    source = _Checked(source, where)
    first = source[0]
    stored = latents.KIND in first
    video, actions = first[latents.KIND if stored else "video"], first.get("actions")
    if not 1 <= frames <= len(video):
      raise ValueError(
        f"{where} holds clips of {len(video)} {'latent ' if stored else ''}frames, so windows of "
        f"{frames} cannot be cut: lower data.frames or record with a larger --clip_frames."
      )
    if embed is not None and "caption" not in first:
      raise ValueError(
        f"{where} has no captions, so there is no text to give: record it again, "
        "or set data.text to False."
      )
    self._embed = embed
    self.num_clips, self.frames_per_clip = len(source), len(video)
    self.size = None if stored else video.shape[1]
    self.latent_shape = video.shape if stored else None
    self.text_shape = None
    self.num_actions = 0 if actions is None else actions.shape[-1]
    self._identity = {"clips": self.num_clips, "batch": batch_size * count, "seed": seed}
    self._endless = endless

    clips = grain.MapDataset.source(source)
    if endless:
      clips = clips.seed(seed).shuffle().repeat()
    if stored:
      tokens = text_tokens or _stored_tokens(path)
      self.text_shape = tokens, first["text"].shape[-1]
      windows = clips.map(lambda clip: latents.read(clip, frames, tokens))
    elif endless:
      windows = clips.random_map(_random_window(frames))
    else:
      windows = clips.map(_window(frames, 0))
    if not endless:
      # Whole global batches first, so that every process sees as many of them.
      rows = len(clips) // (batch_size * count) * batch_size * count if drop_remainder else None
      windows = windows[:rows]
    batches = windows.batch(batch_size, drop_remainder=drop_remainder)[index::count]
    options = grain.ReadOptions(num_threads=min(prefetch, 4), prefetch_buffer_size=prefetch)
    self._length = None if endless else len(batches)
    self._dataset = batches.to_iter_dataset(options)
    self._iterator = iter(self._dataset)

  def __len__(self) -> int:
    """Batches in one pass (not for "train", which has no end)."""
    if self._endless:
      raise TypeError("The train split is endless: it has no len(); see num_clips.")
    return self._length

  def __iter__(self):
    if not self._endless:
      self._iterator = iter(self._dataset)
    return self

  def __next__(self) -> dict[str, np.ndarray]:
    batch = next(self._iterator)
    if self._embed is not None:
      batch["text"], batch["text_mask"] = self._embed(batch["caption"])
    return batch

  def state(self) -> dict:
    """The position, as a dict for JSON. Taken between batches, it points to the next one."""
    return self._identity | {"position": self._iterator.get_state()}

  def restore(self, state: dict) -> None:
    """Go to a position that `state` gave.

    Raises:
      ValueError: the state is of a loader with other clips, another global batch or seed.
    """
    differ = [f"{k} {state.get(k)} -> {v}" for k, v in self._identity.items() if state.get(k) != v]
    if differ:
      raise ValueError(
        f"The saved data position belongs to another stream ({', '.join(differ)}): resume with the "
        "data, global batch size and seed of the run, or start a new workdir."
      )
    self._iterator = iter(self._dataset)
    self._iterator.set_state(state["position"])


def open_source(path: str | Sequence[dict], split: str):
  """Random access to single clips (dicts of NumPy arrays) of a dataset, by path or as they are."""
  if not isinstance(path, str):
    return path
  if path.partition(":")[0] == "synthetic":
    return synthetic_clips(path, split)
  return read_split(path, split)


def data_info(path: str) -> dict:
  """`builder.describe` of a dataset, or the same entries for a synthetic one."""
  if path.partition(":")[0] != "synthetic":
    return describe(path)
  sources = {split: synthetic_clips(path, split) for split in ("train", "test")}
  return sources["train"].info | {"clips": {split: len(s) for split, s in sources.items()}}


class _Checked:
  """A source whose unreadable records say which one and what to do."""

  def __init__(self, source, where: str):
    self._source, self._where = source, where

  def __len__(self) -> int:
    return len(self._source)

  def __getitem__(self, index) -> dict:
    try:
      return self._source[int(index)]
    except Exception as error:  # array_record, zlib and protobuf each raise their own
      reason = " ".join(str(error).split())[:200]
      raise ValueError(
        f"Clip {int(index)} in {self._where} cannot be read ({reason}): the file is damaged or "
        "gone; record the dataset again with --overwrite."
      ) from error


def _stored_tokens(path) -> int:
  if not isinstance(path, str):
    raise ValueError("Clips of latents that are given one by one need text_tokens.")
  return data_info(path)["text_tokens"]


def _window(frames: int, start: int):
  def cut(clip: dict) -> dict:
    video = clip["video"][start : start + frames]
    actions = clip.get("actions", np.zeros((len(clip["video"]), 0), np.float32))
    item = {"video": video, "actions": actions[start : start + frames]}
    if "caption" in clip:
      text = clip["caption"]
      item["caption"] = text.decode() if isinstance(text, bytes) else str(text)
    return item

  return cut


def _random_window(frames: int):
  def cut(clip: dict, rng: np.random.Generator) -> dict:
    return _window(frames, int(rng.integers(len(clip["video"]) - frames + 1)))(clip)

  return cut
