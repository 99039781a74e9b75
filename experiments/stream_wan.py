"""A causal student of Wan 2.1 as a source of streams, and prompts that change on the way."""

import bisect
import dataclasses
import itertools
import pathlib

import jax.numpy as jnp
import numpy as np

from experiments.streams import Source
from vidstep import samplers
from vidstep.models.vae import VAECodec
from vidstep.teachers.wan import open_wan

STEPS = 4


@dataclasses.dataclass(frozen=True)
class Script:
  """Prompts by the pixel frame from which they hold; the first holds from frame 0.

  Attributes:
    frames: rising numbers of pixel frames.
    prompts: as many.
  """

  frames: tuple[int, ...]
  prompts: tuple[str, ...]

  def at(self, frame: int) -> str:
    """The prompt of a chunk that begins at a pixel frame."""
    return self.prompts[bisect.bisect_right(self.frames, frame) - 1]


def read_script(path) -> Script:
  """Reads lines of "frame<TAB>prompt"; empty ones do not count.

  Raises:
    FileNotFoundError: if there is no such file.
    ValueError: naming the line that is none, or if frames do not rise from 0.
  """
  path = pathlib.Path(path)
  if not path.is_file():
    raise FileNotFoundError(f"There is no file of prompts {path}.")
  frames, prompts = [], []
  for number, line in enumerate(path.read_text().splitlines(), start=1):
    if line.strip():
      frame, tab, prompt = line.partition("\t")
      if not tab or not frame.strip().isdigit() or not prompt.strip():
        raise ValueError(f'{path}, line {number} is not "frame<TAB>prompt": {line!r}.')
      frames.append(int(frame))
      prompts.append(prompt.strip())
  if frames[:1] != [0] or any(a >= b for a, b in itertools.pairwise(frames)):
    raise ValueError(f"The frames of {path} must begin with 0 and rise, not {frames}.")
  return Script(tuple(frames), tuple(prompts))


def wan(
  path, script, *, transformer=None, lora=None, tiny_decoder=None, size=None, chunk=3, times=(),
  first_times=(), steps=None, shift=None, dtype="bfloat16", vae_dtype="float32",
) -> Source:  # fmt: skip
  """A causal student of Wan.

  Args:
    path, transformer, lora, tiny_decoder, dtype, vae_dtype: see `vidstep.teachers.wan.open_wan`.
    script: `Script`; all its prompts are embedded at once, before anything streams.
    size: (height, width) in pixels; None: what the release was made for.
    chunk: latent frames made together, k or (first, k).
    times: falling times of the denoising steps, the first being 1; () for `steps` and `shift`.
    first_times: those of the first chunk; () for the same.
    steps: how many steps a shifted grid has; None: 4.
    shift: of that grid; None: the release's.

  Returns:
    A `Source`; a prompt has no mask, as Wan attends to its padding.

  Raises:
    NotImplementedError: for image to video.
    ValueError, FileNotFoundError: as `open_wan` does, and for a size that does not fit.
  """
  files = {"transformer": transformer, "lora": lora, "tiny_decoder": tiny_decoder}
  student = open_wan(path, dtype=jnp.dtype(dtype), vae_dtype=jnp.dtype(vae_dtype), **files)
  release = student.release
  if release.image:
    raise NotImplementedError(
      f"{student.name} continues images, which streams do not take yet: stream a text-to-video one."
    )
  frames, *shape = student.latent_shape(*(size or release.size), release.frames)
  if not times:
    shift = release.shift if shift is None else shift
    times = np.asarray(samplers.timesteps(steps or STEPS, shift=shift))[:-1].tolist()
  student.embed(["", *script.prompts])
  own = student.decoder is student.vae
  decoder = () if own else (student.decoder, student.decoder_params)
  return Source(
    name=" ".join(str(p) for p in (student.name, transformer, lora) if p is not None),
    model=student.model,
    params=student.params,
    codec=VAECodec(student.vae, student.vae_params, *decoder),
    frame_shape=tuple(shape),
    frame_rate=release.frame_rate,
    chunk=chunk,
    frames=frames,
    times=tuple(map(float, times)),
    first_times=tuple(map(float, first_times)),
    solver="consistency",
    mask=None,
    context="clean",
    embed=lambda prompts: (student.embed(prompts), None),
    contexts=np.zeros((1, 0, 1, 1, 3), np.uint8),
    context_actions=None,
    captions=script.prompts[:1],
    actions=None,
  )
