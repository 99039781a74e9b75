"""Datasets written shard by shard: any interruption can be resumed, any number of processes share.

A dataset is `splits` of numbered items, and `make` turns items into examples (one, several, or
none of a damaged file). What lies in the folder while it grows:

    latents-train.array_record-00003-of-00016  a sealed shard: appears whole and stays as it is
    unfinished/request.json                    what is being made; who resumes must want the same
    unfinished/train-00003.json                of a sealed shard: examples, bytes, items left out
    unfinished/items/train-00000192            a finished item of a shard that is not sealed yet

At the end come features.json, metadata.json and, last, dataset_info.json (the layout of TFDS), and
`unfinished` goes. All files appear by renaming, so a process may be killed anywhere: what is there
is whole, and a batch of items is the most that is made again.
"""

import contextlib
import json
import os
import shutil
import uuid
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import tensorflow_datasets as tfds
from array_record.python import array_record_module
from tensorflow_datasets.core.dataset_info import DatasetIdentity
from tensorflow_datasets.core.example_serializer import ExampleSerializer
from tensorflow_datasets.core.naming import ShardedFileTemplate

from vidstep import files

UNFINISHED = "unfinished"


class Item(NamedTuple):
  """What became of one item: its examples, and why there are none if it was left out."""

  examples: Sequence[dict]
  skipped: str | None = None


def write_shards(
  path: str | Path,
  name: str,
  make: Callable[[Sequence[int]], Sequence[Item]],
  *,
  features: tfds.features.FeaturesDict,
  splits: Mapping[str, int],
  request: Mapping,
  meta: Mapping,
  batch: int,
  shard_items: int = 64,
  part: tuple[int, int] = (0, 1),
  on_items: Callable[[int, int], None] = lambda done, total: None,
) -> bool:
  """Writes this process's shards of a dataset, those that are not there yet.

  Item numbers count through the splits in order. The items of a batch are always the same ones of
  one shard, whoever makes them and after whatever interruption: if `make` depends on nothing but
  the numbers, so does every byte of the shards.

  Args:
    path: folder of the dataset.
    name: of the dataset, in the names of its files.
    make: numbers of at most `batch` items -> an `Item` each, in order.
    features: of an example.
    splits: split name -> number of items.
    request: JSON values that decide what is made; kept as metadata "request".
    meta: JSON values worth knowing beside them.
    batch: items made together.
    shard_items: items in a shard.
    part: (index, count) of this process: it makes every count-th shard.
    on_items: told (items finished, items in all) of this process, before the first batch and after
      each; what it raises stops the run before anything is made.

  Returns:
    whether the dataset is complete: False as long as other processes are at work.

  Raises:
    FileExistsError: `path` holds something else, or what another request makes.
    ValueError: no items, or a part that does not exist.
  """
  path, (index, count) = Path(path), part
  if not 0 <= index < count:
    raise ValueError(f"part {index} of {count} does not exist: parts count from 0.")
  if batch < 1 or shard_items < 1 or not splits or any(n < 1 for n in splits.values()):
    raise ValueError(
      f"Every split needs items, not {dict(splits)}; batch={batch} and shard_items={shard_items} "
      "are at least 1."
    )
  if is_made(path, request, splits, shard_items):
    shutil.rmtree(path / UNFINISHED, ignore_errors=True)  # of a process killed at the very end
    return True
  request = _full_request(request, splits, shard_items)
  meta = _begin(path, request, dict(meta))
  shards = _plan(path, name, splits, shard_items)
  mine = shards[index::count]
  serializer = ExampleSerializer(features.get_serialized_info())

  def serialize(example):
    proto = serializer.get_tf_example(features.encode_example(example))
    return proto.SerializeToString(deterministic=True)

  done, total = sum(shard.finished() for shard in mine), sum(len(shard.items) for shard in mine)
  on_items(done, total)

  def fill(shard):
    nonlocal done
    for start in range(shard.items.start, shard.items.stop, batch):
      items = range(start, min(start + batch, shard.items.stop))
      missing = [item for item in items if not shard.item(item).exists()]
      if not missing:
        continue
      for item, made in zip(items, make(items), strict=True):
        if item in missing:
          _write_item(shard.item(item), [serialize(e) for e in made.examples], made.skipped)
      done += len(missing)
      on_items(done, total)
    shard.seal()

  for shard in mine:
    try:
      if not shard.file.exists():
        fill(shard)
    except FileNotFoundError:  # two processes made the same shard, and the other one was faster
      if not shard.file.exists():
        raise
  return _finish(path, name, features, splits, shards, {**meta, "request": request})


def is_made(path: str | Path, request: Mapping, splits: Mapping, shard_items: int) -> bool:
  """Whether `write_shards` with these arguments has nothing left to do.

  Raises:
    FileExistsError: `path` holds a dataset that another request made.
  """
  path = Path(path)
  if not (path / "dataset_info.json").exists():
    return False
  meta = json.loads((path / "metadata.json").read_text())
  _same_request(path, meta.get("request", {}), _full_request(request, splits, shard_items))
  return True


def progress(path: str | Path) -> str:
  """How far an unfinished dataset is, such as "3 of 8 shards"; "" if there is none at `path`."""
  unfinished = Path(path) / UNFINISHED
  try:
    request = json.loads((unfinished / "request.json").read_text())["request"]
  except FileNotFoundError:
    return ""
  wanted = sum(-(-items // request["shard_items"]) for items in request["splits"].values())
  return f"{len(list(Path(path).glob('*.array_record-*-of-*')))} of {wanted} shards"


def check_space(path: str | Path, needed: int) -> None:
  """Refuses to begin what will not fit on the disk of `path`.

  Raises:
    ValueError: if fewer than `needed` bytes are free.
  """
  folder = next(p for p in (Path(path).absolute(), *Path(path).absolute().parents) if p.exists())
  free = shutil.disk_usage(folder).free
  if free < needed:
    raise ValueError(
      f"{path} needs about {needed / 1e9:.3g} GB more and its disk has {free / 1e9:.3g} GB free: "
      "make room, choose another disk, or ask for fewer examples."
    )


class _Shard(NamedTuple):
  """One file of the dataset and the items in it."""

  path: Path
  name: str
  split: str
  number: int
  of: int
  items: range
  first: int  # item of its split

  @property
  def file(self) -> Path:
    return self.path / (f"{self.name}-{self.split}.array_record-{self.number:05d}-of-{self.of:05d}")

  @property
  def note(self) -> Path:
    return self.path / UNFINISHED / f"{self.split}-{self.number:05d}.json"

  def item(self, number: int) -> Path:
    return self.path / UNFINISHED / "items" / f"{self.split}-{number - self.first:08d}"

  def finished(self) -> int:
    """Items that need not be made any more."""
    if self.file.exists():
      return len(self.items)
    return sum(self.item(item).exists() for item in self.items)

  def seal(self) -> None:
    """Gathers the finished items in the file of the shard."""
    items = {str(item): _read_item(self.item(item)) for item in self.items}
    records = [record for own, _ in items.values() for record in own]
    skipped = {item: reason for item, (_, reason) in items.items() if reason is not None}
    note = {"examples": len(records), "bytes": sum(map(len, records)), "skipped": skipped}
    with whole(self.note) as partial:  # first: a shard that is there has its note
      partial.write_text(json.dumps(note))
    with whole(self.file) as partial:
      writer = array_record_module.ArrayRecordWriter(str(partial), "group_size:1")
      for record in records:
        writer.write(record)
      writer.close()
    for item in self.items:
      self.item(item).unlink(missing_ok=True)


def _plan(path, name, splits, shard_items) -> list[_Shard]:
  """All shards of all splits, in the order of their items."""
  shards, first = [], 0
  for split, items in splits.items():
    starts = range(first, first + items, shard_items)
    for number, start in enumerate(starts):
      inside = range(start, min(start + shard_items, first + items))
      shards.append(_Shard(path, name, split, number, len(starts), inside, first))
    first += items
  return shards


def _begin(path: Path, request: dict, meta: dict) -> dict:
  """Opens the folder, or goes on in it; returns the metadata that it was begun with."""
  begun = path / UNFINISHED / "request.json"
  if not begun.exists():
    if path.exists() and any(p.name != UNFINISHED for p in path.iterdir()):
      raise FileExistsError(f"{path} holds something else: choose another directory.")
    (path / UNFINISHED / "items").mkdir(parents=True, exist_ok=True)
    _write_first(begun, json.dumps({"request": request, "meta": meta}, indent=2))
  there = json.loads(begun.read_text())
  _same_request(path, there["request"], request)
  return there["meta"]


def _full_request(request: Mapping, splits: Mapping, shard_items: int) -> dict:
  """All that decides what is made, as JSON gives it back."""
  return json.loads(json.dumps({**request, "splits": splits, "shard_items": shard_items}))


def _same_request(path: Path, there: dict, wanted: dict) -> None:
  differ = [
    f"{k}={there.get(k)!r}, now {wanted.get(k)!r}"
    for k in sorted(wanted | there)
    if there.get(k) != wanted.get(k)
  ]
  if differ:
    raise FileExistsError(
      f"{path} was begun with other settings ({'; '.join(differ)}): go on with those, or choose "
      "another directory."
    )


def _finish(path, name, features, splits, shards, meta) -> bool:
  """Describes the dataset if every shard is there."""
  if not all(shard.file.exists() for shard in shards):
    return False
  try:
    notes = [json.loads(shard.note.read_text()) for shard in shards]
    infos = []
    for split in splits:
      of_split = [n for s, n in zip(shards, notes, strict=True) if s.split == split]
      lengths = [note["examples"] for note in of_split]
      if not sum(lengths):
        raise ValueError(f"No item of split {split!r} could be used: see {path / UNFINISHED}.")
      infos.append(
        tfds.core.SplitInfo(
          name=split,
          shard_lengths=lengths,
          num_bytes=sum(note["bytes"] for note in of_split),
          filename_template=ShardedFileTemplate(
            data_dir=path, dataset_name=name, split=split, filetype_suffix="array_record"
          ),
        )
      )
    skipped = {}
    for note in notes:
      skipped |= note["skipped"]
    _describe(path, name, features, infos, {**meta, "skipped": skipped})
  except FileNotFoundError:  # another process finished at the same moment
    if not (path / "dataset_info.json").exists():
      raise
  shutil.rmtree(path / UNFINISHED, ignore_errors=True)
  return True


def _describe(path, name, features, splits, meta):
  made = path / UNFINISHED / f"info-{uuid.uuid4().hex}"
  made.mkdir()
  info = tfds.core.DatasetInfo(
    builder=DatasetIdentity(name, tfds.core.Version("1.0.0"), str(path), ""),
    description="Latents of videos and the embedded text that they follow.",
    features=features,
  )
  info.set_file_format("array_record")
  info.set_splits(tfds.core.splits.SplitDict(splits))
  info.write_to_directory(str(made))
  files.write_json(made / "metadata.json", meta)
  for file in ("features.json", "metadata.json", "dataset_info.json"):  # the last says: complete
    os.replace(made / file, path / file)


def _write_item(file: Path, records: Sequence[bytes], skipped: str | None) -> None:
  header = json.dumps({"lengths": [len(r) for r in records], "skipped": skipped})
  with whole(file) as partial:
    partial.write_bytes(header.encode() + b"\n" + b"".join(records))


def _read_item(file: Path) -> tuple[list[bytes], str | None]:
  header, _, content = file.read_bytes().partition(b"\n")
  header, records, at = json.loads(header), [], 0
  for length in header["lengths"]:
    records.append(content[at : at + length])
    at += length
  return records, header["skipped"]


def whole(file: Path) -> contextlib.AbstractContextManager[Path]:
  """`files.whole` in a dataset that several processes may be making.

  What they write lies in its folder `unfinished`, if there is one, until it is whole: with that
  goes what a killed one has left.
  """
  unfinished = (p / UNFINISHED for p in file.parents)
  folder = next((p for p in unfinished if p.is_dir()), file.parent)
  return files.whole(file, folder=folder, shared=True, sync=True)


def _write_first(file: Path, content: str) -> None:
  """Writes a file unless another process has done so."""
  own = file.with_name(f"{file.name}.{uuid.uuid4().hex[:8]}")
  own.write_text(content)
  try:
    os.link(own, file)
  except FileExistsError:
    pass
  except OSError:  # a disk without hard links
    os.replace(own, file)
  finally:
    own.unlink(missing_ok=True)
