"""Text, or a picture and text, to videos by Wan 2.1 or a student: what `sample --model` does."""

import dataclasses
import pathlib
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from PIL import Image

from experiments import networks
from experiments.sample_files import plan_jobs, still_to_do
from experiments.sample_log import Log, bar
from vidstep import samplers
from vidstep.data.video_io import save_picture, save_strip, save_video
from vidstep.files import write_json
from vidstep.masks import Window
from vidstep.models.cond import Cond
from vidstep.teachers.text_to_video import (
  NEGATIVE,
  Sampler,
  Setting,
  image_condition,
  release_times,
)
from vidstep.teachers.wan import Wan, open_wan
from vidstep.training.checkpoint import load_network, parse_reference, resolve_reference

PICTURES = 8  # of a film strip
GROUP = 128  # videos whose prompts are embedded together


@dataclasses.dataclass(frozen=True)
class Order:
  """What is asked for; None is the release's own number.

  Attributes:
    model: name of a release, hub repository or folder; see `open_wan`.
    prompts: one video each, or `videos`.
    out: file or folder; see `plan_jobs`.
    layout, names, videos: see `plan_jobs`.
    negative: prompt of the guidance; None: Wan's own.
    seed: of the noise; see `Job.key`.
    size: (height, width) in pixels.
    frames: pixel frames, 1 + 4 n.
    steps: steps of the grid, or how many of `times`.
    times: name or intermediate times of a few-step list (`samplers.timestep_list`); None: a grid.
    first_times: those of a causal student's first chunk, all of them; None: as the others.
    shift: time shift of the grid.
    solver: name in `samplers.SOLVERS`; None: "unipc", of a few-step list "consistency".
    guidance: w; None: the release's, of a few-step list 1.
    chunk: latent frames that a causal student makes together; None: not causal.
    window: latent frames that a causal student sees; None: all.
    sink: first frames that it always sees.
    image: file of the picture to start from.
    transformer: file or folder of another transformer, or "workdir:role:ema" of a run.
    lora: (file, weight) of factors to merge.
    tiny_decoder: file of TAEHV.
    dtype: "bfloat16" or "float32"; of the networks but the VAE.
    report: file to write what it took to.
  """

  model: str
  prompts: tuple[str, ...]
  out: str
  layout: str = "plain"
  names: tuple[str, ...] | None = None
  videos: int | None = None
  negative: str | None = None
  seed: int = 0
  size: tuple[int, int] | None = None
  frames: int | None = None
  steps: int | None = None
  times: str | tuple[float, ...] | None = None
  first_times: str | tuple[float, ...] | None = None
  shift: float | None = None
  solver: str | None = None
  guidance: float | None = None
  chunk: int | None = None
  window: int | None = None
  sink: int = 0
  image: str | None = None
  transformer: str | None = None
  lora: tuple[str, float] | None = None
  tiny_decoder: str | None = None
  dtype: str = "bfloat16"
  report: str | None = None


def draw(order: Order) -> dict:
  """Makes the videos of an order, but those of VBench's layout that are there already.

  Several processes share the videos, each on its own devices.

  Returns:
    The report: settings, seconds of every stage, memory, files.

  Raises:
    ValueError, FileNotFoundError: for what does not fit or is not there; one sentence.
  """
  log = Log()
  how = {"layout": order.layout, "videos": order.videos, "names": order.names}
  jobs = plan_jobs(order.prompts, order.out, **how)
  picture = None if order.image is None else read_picture(order.image)
  with log.stage("load"):
    wan, run = open_network(order)
  if wan.release.image and picture is None:
    raise ValueError(f"{wan.name} continues a picture: give --image=file.")
  setting = setting_of(order, wan.release, run)
  height, width = size_of(order, wan, picture)
  frames = order.frames or wan.release.frames
  shape = wan.latent_shape(height, width, frames)
  negative = NEGATIVE if order.negative is None else order.negative
  told = settings(order, wan, setting) | {"size": [height, width], "frames": frames}
  own = jobs[jax.process_index() :: jax.process_count()]  # whatever others finish meanwhile
  if order.layout == "vbench":
    missing = set(still_to_do(jobs, order.out, told | {"negative": negative}))
    own = [job for job in own if job in missing]
  jobs = own

  image = Cond()
  if picture is not None:
    with log.stage("image"):
      image = jax.block_until_ready(image_condition(wan, picture, height, width, frames))
  sampler, others = Sampler(wan, setting), [negative] if setting.guidance != 1 else []
  for i, job in enumerate(jobs):
    if i % GROUP == 0:
      with log.stage("text"):
        wan.text.remember([*others, *(j.prompt for j in jobs[i : i + GROUP])])
    text = wan.embed([job.prompt, *others])
    cond, null = (image.replace(text=jnp.asarray(part)) for part in (text[:1], text[-1:]))
    noise_key, key = jax.random.split(job.key(order.seed))
    compiled = sampler.compile_seconds
    with log.stage("denoise"), bar(f"{i + 1}/{len(jobs)} {job.path.name[:40]}") as progress:
      latents = sampler(draw_noise(noise_key, shape), cond, null, key, progress)
    if sampler.compile_seconds > compiled:
      log.move("denoise", "compile", sampler.compile_seconds - compiled)
    with log.stage("decode"):
      video = wan.decode(latents)[0]
    with log.stage("write"):
      write(job.path, video, wan.release.frame_rate, made_by(order, wan))
    print(f"{job.path}: {len(video)} frames of {height} x {width}, {job.prompt[:60]!r}", flush=True)
  report = log.summary() | told
  report["nfe"] = setting.nfe(shape[0])
  report["files"] = [str(job.path) for job in jobs]
  if order.report:
    write_json(order.report, report)
  print(f"{len(jobs)} videos, {report['nfe']} network evaluations each; {log.table()}")
  return report


def open_network(order: Order):
  """(`Wan`, the `Run` that its transformer comes from, or None)."""
  if order.dtype not in ("bfloat16", "float32"):
    raise ValueError(f"--dtype={order.dtype}: choose bfloat16 or float32.")
  dtype, run, transformer = jnp.dtype(order.dtype), None, order.transformer
  if transformer is not None and not pathlib.Path(transformer).exists() and ":" in transformer:
    reference = resolve_reference(transformer)
    config, params = load_network(reference)
    role = parse_reference(reference)[1]
    model = networks.make_model(config, role).clone(dtype=dtype)
    run = Run(networks.causal_of(config, role, model), config["eval"])
    transformer = model, params
  files = {"lora": order.lora, "tiny_decoder": order.tiny_decoder}
  return open_wan(order.model, dtype=dtype, transformer=transformer, **files), run


class Run(NamedTuple):
  """What a run says of its network: how it sees a video, and `config.eval`."""

  causal: networks.Causal
  eval: dict


def setting_of(order: Order, release, run: Run | None = None) -> Setting:
  """How videos are drawn: what is asked for, else what the run says, else what the release says."""
  if run is not None:
    order = _as_run(order, run.eval)
  few = order.times is not None
  steps = order.steps or 50
  if few:
    times = samplers.timestep_list(order.times, order.steps)
  else:
    times = release_times(steps, release.shift if order.shift is None else order.shift)
  usual = 1.0 if few else release.guidance
  chunk, mask, context = order.chunk, None, "clean"
  if run is not None and run.causal.chunk is not None:
    chunk = run.causal.chunk if chunk is None else chunk
    mask, context = run.causal.mask, run.causal.context
  if order.window is not None:
    mask = Window(order.window, order.sink)
  for name in ("window", "first_times"):
    if chunk is None and getattr(order, name):
      raise ValueError(f"--{name} is of a causal student: give its --chunk as well.")
  first = samplers.timestep_list(order.first_times).tolist() if order.first_times else ()
  return Setting(
    times=tuple(times.tolist()),
    solver=order.solver or ("consistency" if few else "unipc"),
    guidance=usual if order.guidance is None else order.guidance,
    chunk=chunk,
    mask=mask,
    context=context,
    first_times=tuple(first),
  )


def _as_run(order, said):
  """The order with what `config.eval` says where nothing is asked for."""
  other = lambda name: said[name] if getattr(order, name) is None else getattr(order, name)
  own = {name: other(name) for name in ("solver", "shift", "guidance")}
  if order.times is None:
    own |= {"times": tuple(said["times"]) or None, "steps": other("steps")}
    if order.first_times is None:
      own["first_times"] = tuple(said.get("first_times", ())) or None
  return dataclasses.replace(order, **own)


def size_of(order: Order, wan: Wan, picture) -> tuple[int, int]:
  """(height, width): as asked for, or the release's; with a picture, of its shape and that area."""
  if order.size is not None or picture is None:
    return order.size or wan.release.size
  area, (height, width) = np.prod(wan.release.size), picture.shape[:2]
  units = [wan.factors[1] * p for p in wan.model.patch[1:]]
  ideal = np.sqrt(area * height / width), np.sqrt(area * width / height)
  return tuple(max(1, int(n // u)) * u for n, u in zip(ideal, units, strict=True))


def settings(order: Order, wan: Wan, setting: Setting) -> dict:
  """What the videos depend on, beside their prompts; for reports, as JSON has it."""
  files = {k: getattr(order, k) for k in ("transformer", "lora", "tiny_decoder", "image")}
  drawn = dataclasses.asdict(setting)
  drawn["mask"] = str(setting.mask) if setting.mask else None
  return {"model": wan.name, "dtype": order.dtype, "seed": order.seed} | files | drawn


def made_by(order: Order, wan: Wan) -> str:
  """The label of the files: names, without folders."""
  name = lambda path: pathlib.PurePath(str(path)).name
  parts = [name(wan.name)]
  parts += [name(order.transformer)] if order.transformer else []
  parts += [f"LoRA {name(order.lora[0])}"] if order.lora else []
  return f"vidstep with {', '.join(parts)}"


def read_picture(path) -> np.ndarray:
  """uint8 [H, W, 3] of an image file.

  Raises:
    FileNotFoundError: if there is none.
    ValueError: if it cannot be read.
  """
  path = pathlib.Path(path)
  if not path.is_file():
    raise FileNotFoundError(f"There is no picture {path}.")
  try:
    with Image.open(path) as image:
      return np.asarray(image.convert("RGB"))
  except OSError as error:
    raise ValueError(f"{path} cannot be read as a picture ({error}).") from error


def draw_noise(key, shape) -> jax.Array:
  """[1, *shape] standard normal."""
  return jax.random.normal(key, (1, *shape))


def write(path, video, frame_rate, label):
  """A video; or as .png a film strip of it, its only frame as it is."""
  if path.suffix != ".png":
    save_video(path, video, frame_rate, made_by=label)
  elif len(video) == 1:
    save_picture(path, video[0], made_by=label)
  else:
    every = -(-len(video) // PICTURES)
    save_strip(path, {"": video[None]}, every=every, made_by=label)
