"""Clips on disk: a TFDS dataset in array_record files, written and read without TensorFlow."""

import contextlib
import io
import json
import shutil
from collections.abc import Iterable, Mapping
from itertools import chain
from pathlib import Path

import numpy as np
import tensorflow_datasets as tfds

from vidstep.data.shards import progress
from vidstep.files import write_json

NAME, VERSION = "video_clips", "1.0.0"


class VideoClips(tfds.core.GeneratorBasedBuilder):
  """Fixed-length clips with actions, and where they come from.

  Features: video uint8 [T, H, W, 3]; actions float32 [T, A] (left out where A = 0); episode, start
  and seed int64; scenario, and caption where there are captions, text.
  """

  name = NAME
  VERSION = tfds.core.Version(VERSION)
  pkg_dir_path = None

  def __init__(self, *, splits: Mapping[str, Iterable[dict]], example: dict, meta: dict, **kwargs):
    self._clips, self._example, self._meta = splits, example, meta
    super().__init__(file_format="array_record", **kwargs)

  def _info(self) -> tfds.core.DatasetInfo:
    video, actions = self._example["video"], self._example["actions"]
    zlib = tfds.features.Encoding.ZLIB
    features = {
      "video": tfds.features.Tensor(shape=video.shape, dtype=np.uint8, encoding=zlib),
      "episode": tfds.features.Scalar(np.int64),
      "start": tfds.features.Scalar(np.int64),
      "seed": tfds.features.Scalar(np.int64),
      "scenario": tfds.features.Text(),
    }
    if actions.shape[-1]:
      features["actions"] = tfds.features.Tensor(shape=actions.shape, dtype=np.float32)
    if "caption" in self._example:
      features["caption"] = tfds.features.Text()
    return tfds.core.DatasetInfo(
      builder=self,
      description="Video clips with the actions that lead into their frames.",
      features=tfds.features.FeaturesDict(features),
      metadata=tfds.core.MetadataDict(self._meta),
      disable_shuffling=True,  # the loader shuffles; on disk clips stay in order
    )

  def _split_generators(self, dl_manager):
    return {split: self._generate_examples(clips) for split, clips in self._clips.items()}

  def _generate_examples(self, clips):
    for key, clip in enumerate(clips):
      yield key, {name: clip[name] for name in self.info.features}


def write_dataset(
  path: str | Path, splits: Mapping[str, Iterable[dict]], meta: Mapping, *, overwrite: bool = False
) -> dict:
  """Write clips to a directory that appears only when it is complete.

  Everything goes to `<path>.partial` first and is renamed at the end; an interrupted run leaves
  nothing under `path`, and what is left beside it is swept away by the next run.

  Args:
    path: the directory to make.
    splits: split name -> clips as `episodes.cut` yields them; iterated once, in order, lazily.
      All clips have the same shapes.
    meta: what is worth knowing about them (JSON values): buttons, frame rate, source, policy...
      May gain entries while the clips are iterated.
    overwrite: replace a dataset that is already there.

  Returns:
    `describe(path)`.

  Raises:
    FileExistsError: something is at `path`, and it is no dataset or `overwrite` is False.
    ValueError: a split without clips, or clips of different shapes.
  """
  path = Path(path)
  if path.exists() and not overwrite:
    raise FileExistsError(f"{path} exists: choose another directory or pass overwrite.")
  if path.exists() and not (path / "dataset_info.json").exists():
    raise FileExistsError(f"{path} is no dataset, so it is not replaced: choose another directory.")
  partial = path.with_name(path.name + ".partial")
  shutil.rmtree(partial, ignore_errors=True)
  iterators = {split: iter(clips) for split, clips in splits.items()}
  tfds.disable_progress_bar()
  try:
    first = next(iter(iterators))
    example = _first(first, iterators)
    iterators[first] = chain([example], iterators[first])
    checked = {s: _same_shapes(s, clips, example) for s, clips in iterators.items()}
    builder = VideoClips(data_dir=str(partial), splits=checked, example=example, meta={})
    with contextlib.redirect_stdout(io.StringIO()):  # it announces the partial directory
      builder.download_and_prepare()
    made = partial / NAME / VERSION
    write_json(made / "metadata.json", dict(meta))
    if path.exists():
      shutil.rmtree(path)
    made.rename(path)
  finally:
    shutil.rmtree(partial, ignore_errors=True)
  return describe(path)


def _first(split: str, iterators: Mapping) -> dict:
  clip = next(iterators[split], None)
  if clip is None:
    raise ValueError(
      f"Split {split!r} has no clips: record more or longer episodes, or cut shorter clips."
    )
  return clip


def _same_shapes(split: str, clips: Iterable[dict], example: dict) -> Iterable[dict]:
  count = 0
  for count, clip in enumerate(clips, 1):
    for name in ("video", "actions"):
      if clip[name].shape != example[name].shape:
        raise ValueError(
          f"Clip {count} of {split!r} has {name} {list(clip[name].shape)}, the first one "
          f"{list(example[name].shape)}: all clips of a dataset need the same shapes."
        )
    yield clip
  if not count:
    _first(split, {split: iter(())})


def describe(path: str | Path) -> dict:
  """What a dataset holds, from its directory alone.

  Returns:
    its metadata (buttons, frame_rate, frame_skip, source, policy...) with "clips" (count per split)
    and "shape" ([T, H, W, 3] of a clip; [F, h, w, C] where "kind" is "latents").

  Raises:
    FileNotFoundError: no dataset at `path`, or one that is not finished.
  """
  path = Path(path)
  if not (path / "dataset_info.json").exists():
    if there := progress(path):
      raise FileNotFoundError(
        f"The dataset {path} is half made ({there}): run the command that began it again, it goes "
        "on where it stopped."
      )
    raise FileNotFoundError(
      f"No dataset at {path}: record one with python -m experiments.record --out={path}, or point "
      "data.path to the directory that record printed."
    )
  meta = json.loads((path / "metadata.json").read_text())
  builder = tfds.builder_from_directory(str(path))
  clips = {split: info.num_examples for split, info in builder.info.splits.items()}
  features = builder.info.features
  shape = features["video" if "video" in features else "latents"].shape
  return meta | {"clips": clips, "shape": list(shape)}


def read_split(path: str | Path, split: str):
  """Random access to the clips of one split: `len(source)`, `source[i] -> dict` of NumPy arrays.

  Raises:
    FileNotFoundError: no dataset at `path`, or a file of it is gone.
    ValueError: no such split.
  """
  clips = describe(path)["clips"]
  if split not in clips:
    raise ValueError(f"{path} has no split {split!r}; it has {', '.join(clips)}.")
  return tfds.builder_from_directory(str(path)).as_data_source(split)
