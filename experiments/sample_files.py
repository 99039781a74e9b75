"""Which videos are asked for, in which files: one, a folder of several, or VBench's layout."""

import dataclasses
import json
import pathlib
import re
import zlib

import jax

from vidstep.files import write_json

VBENCH = 5  # videos of a prompt that its evaluation reads
LAYOUTS = ("plain", "vbench")


@dataclasses.dataclass(frozen=True)
class Job:
  """One video.

  Attributes:
    prompt: what it shows.
    index: which of the videos of its prompt.
    path: the file.
  """

  prompt: str
  index: int
  path: pathlib.Path

  def key(self, seed: int) -> jax.Array:
    """Of its noise: of the seed, the prompt and the index alone, in whatever order, by whomever."""
    key = jax.random.fold_in(jax.random.key(seed), zlib.crc32(self.prompt.encode()))
    return jax.random.fold_in(key, self.index)


def plan_jobs(prompts, out, *, layout="plain", videos=None, names=None) -> list[Job]:
  """The videos that are asked for.

  plain: one video is the file `out`; several are `out` without its suffix as a folder, with
  number, words of the prompt and index: "x/002-a-red-ball-0.mp4".

  vbench: `out`/"<prompt>-<index>.mp4", five of each prompt: what VBench looks for when it evaluates
  its own prompt lists (Vchitect/VBench, prompts/README.md; its list for temporal flickering wants
  25). Lists of enhanced prompts go with the names of the original ones.

  Args:
    prompts: list of them.
    out: file or folder.
    layout: one of `LAYOUTS`.
    videos: of each prompt; default 1, VBench's 5.
    names: what files are named by instead of the prompts, as many.

  Raises:
    ValueError: for names that cannot be file names, or of another number than the prompts.
  """
  out = pathlib.Path(out)
  names = list(prompts) if names is None else names
  if len(names) != len(prompts):
    raise ValueError(f"{len(names)} names do not fit {len(prompts)} prompts: give one for each.")
  pairs = list(dict(zip(prompts, names, strict=True)).items())
  if layout == "vbench":
    count = videos or VBENCH
    for _, name in pairs:
      if "/" in name or len(f"{name}-{count}.mp4".encode()) > 255:
        raise ValueError(f"{name!r} cannot be a file name, as VBench wants: shorten it.")
    return [Job(p, i, out / f"{name}-{i}.mp4") for p, name in pairs for i in range(count)]
  count = videos or 1
  suffix = out.suffix or ".mp4"
  if len(pairs) * count == 1:
    return [Job(pairs[0][0], 0, out.with_suffix(suffix))]
  folder = out.with_suffix("")
  stem = lambda name: re.sub(r"\W+", "-", name.lower()).strip("-")[:48].rstrip("-") or "video"
  return [
    Job(prompt, i, folder / f"{number:03d}-{stem(name)}-{i}{suffix}")
    for number, (prompt, name) in enumerate(pairs)
    for i in range(count)
  ]


def still_to_do(jobs, out, settings: dict) -> list[Job]:
  """Those whose files are not there yet: a run that was cut short goes on.

  How the videos are made is kept beside the folder, in "<out>.json".

  Raises:
    ValueError: if the folder holds videos that were made in another way.
  """
  record = pathlib.Path(f"{out}.json")
  kept = json.loads(record.read_text()) if record.is_file() else settings
  settings = json.loads(json.dumps(settings))
  other = sorted(k for k in {*kept, *settings} if kept.get(k) != settings.get(k))
  if other and any(job.path.is_file() for job in jobs):
    raise ValueError(
      f"{out} holds videos made with another {', '.join(other)} (see {record}): choose another "
      "--out, or remove them."
    )
  write_json(record, settings)
  return [job for job in jobs if not job.path.is_file()]
