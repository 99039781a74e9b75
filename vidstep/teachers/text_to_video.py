"""Prompts, and an image to start from, to latents of Wan: step by step or chunk by chunk."""

import dataclasses
import functools
import time
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
from PIL import Image

from vidstep import samplers
from vidstep.causal import rollout
from vidstep.causal.cached import TEACHER_FORCING, CachedNetwork
from vidstep.causal.guided import Guided
from vidstep.causal.kv_cache import CachePolicy
from vidstep.masks import Window, chunk_index
from vidstep.models.cond import Cond
from vidstep.models.vae import encode
from vidstep.paths import shift_time
from vidstep.teachers.wan import Wan

# What Wan's release asks to be kept away from, at every video: "garish colours, overexposed,
# static, blurred details, subtitles, .." (its public configuration).
NEGATIVE = (
  "色调艳丽，过曝，静态，细节模糊不清，字幕，风格，作品，画作，画面，静止，整体发灰，最差质量，低质量，"
  "JPEG压缩残留，丑陋的，残缺的，多余的手指，画得不好的手部，画得不好的脸部，畸形的，毁容的，"
  "形态畸形的肢体，手指融合，静止不动的画面，杂乱的背景，三条腿，背景人很多，倒着走"
)


def release_times(steps: int, shift: float) -> np.ndarray:
  """The time grid of Wan's release: uniform from 0.999 to 0, shifted; float32 [steps + 1]."""
  return samplers.timesteps(steps, shift=shift, t_max=float(shift_time(0.999, shift)))


def image_condition(wan: Wan, image: np.ndarray, height: int, width: int, frames: int) -> Cond:
  """What image to video is given (arXiv 2503.20314, section 5.1).

  CLIP's states of the picture; and, concatenated to the channels, which pixel frames are given (one
  channel for each frame of a latent) and the latents of a video that is the picture, then grey.

  Args:
    wan: opened with its image encoder.
    image: uint8 [H, W, 3] of any size; squeezed to height x width.
    height: in pixels.
    width: in pixels.
    frames: pixel frames of the video.

  Returns:
    `Cond` with `image` [1, F, h, w, 4 + C] and `image_tokens`.

  Raises:
    ValueError: for a network of text to video, or a size that does not fit.
  """
  if wan.image is None:
    raise ValueError(f"{wan.name} makes video from text alone: drop the image, or open an I2V one.")
  count, h, w, _ = wan.latent_shape(height, width, frames)
  unit = lambda a: np.asarray(a, np.float32) / 127.5 - 1
  fitted = Image.fromarray(image).resize((width, height), Image.Resampling.LANCZOS)
  video = np.zeros((1, frames, height, width, 3), np.float32)
  video[:, 0] = unit(fitted)
  latents = jax.jit(functools.partial(encode, wan.vae))(wan.vae_params, video)
  known = np.zeros((1, count, h, w, wan.factors[0]), np.float32)
  known[:, 0] = 1
  tokens = wan.image(unit(image)[None])
  return Cond(image=jnp.concatenate([known, latents], axis=-1), image_tokens=jnp.asarray(tokens))


@dataclasses.dataclass(frozen=True)
class Setting:
  """How a video is drawn.

  Attributes:
    times: falling times, the last of them 0.
    first_times: those of a causal student's first chunk, likewise; () for the same. Causal-rCM
      makes it in 4 steps where the others have 1 or 2.
    solver: name in `samplers.SOLVERS`.
    guidance: w of v_null + w (v_cond - v_null); 1 is none.
    chunk: latent frames that a causal student makes together, k or (first, k); None: all of them.
    mask: what of the past a causal student sees, a `Window`; None: all of it.
    context: what later chunks read, see `vidstep.causal.rollout`.
  """

  times: tuple[float, ...]
  solver: str = "unipc"
  guidance: float = 5.0
  chunk: int | tuple[int, int] | None = None
  mask: Window | None = None
  context: str = "clean"
  first_times: tuple[float, ...] = ()

  def nfe(self, frames: int) -> int:
    """Network evaluations for a video of so many latent frames; cache writes count."""
    steps = self.times[:-1]
    if self.chunk is None:
      return samplers.nfe(self.solver, len(steps), self.guidance)
    chunks = chunk_index(frames, self.chunk)[-1] + 1
    lists = rollout.schedule(steps, self.first_times[:-1], chunks)
    how = {"solver": self.solver, "context": self.context, "guidance": self.guidance}
    return rollout.forwards(lists, **how)


class Sampler:
  """Draws latents of one Wan in one way; programs are compiled once a shape.

  The host waits for every step but the one that runs, so that progress is true and nothing slows.

  Args:
    wan: its network alone is used.
    setting: how.

  Attributes:
    compile_seconds: spent on compiling so far.
  """

  def __init__(self, wan: Wan, setting: Setting):
    self._model, self._params, self._how = wan.model, wan.params, setting
    self._programs, self.compile_seconds = {}, 0.0

  def __call__(
    self,
    noise: jax.Array,
    cond: Cond,
    null: Cond,
    key: jax.Array,
    progress: Callable[[int, int], None] = lambda done, total: None,
  ) -> jax.Array:
    """Noise to latents.

    Args:
      noise: [B, F, h, w, C], standard normal.
      cond: the condition: text [B, L, Dt], without mask; image and image_tokens.
      null: that of the guidance, of the same shapes; not looked at without guidance.
      key: of the noise that a solver adds.
      progress: called with the steps (chunks of a causal student) that are done, and their number.

    Returns:
      [B, F, h, w, C] float32.
    """
    noise = jnp.asarray(noise, jnp.float32)
    walk = self._steps if self._how.chunk is None else self._chunks
    return walk(noise, cond, null, key, progress)

  def _steps(self, noise, cond, null, key, progress):
    how, model, place = self._how, self._model, noise.sharding

    def step(carry, params, row, cond, null, key):
      field = lambda cond: lambda x, t, **s: model.apply({"params": params}, x, t, cond=cond, **s).v
      velocity = samplers.guided(field(cond), field(null), how.guidance)
      run = samplers.stages(velocity, how.times, solver=how.solver, key=key)
      carry = jax.lax.with_sharding_constraint(run.step(carry, row), place)
      return carry, carry[0].reshape(-1)[0]

    run = samplers.stages(None, how.times, solver=how.solver, key=key)
    carry, total, before = jax.tree.map(jnp.array, run.start(noise)), len(run.rows[0]), None
    for i in range(total):
      row = jax.tree.map(jnp.asarray, run.row(i))
      carry, done = self._run(step, carry, self._params, row, cond, null, key)
      if before is not None:
        jax.block_until_ready(before)
        progress(i, total)
      before = done
    latents = jax.block_until_ready(run.end(carry))
    progress(total, total)
    return latents

  def _chunks(self, noise, cond, null, key, progress):
    how, frames = self._how, noise.shape[1]
    half = self._model.dtype == jnp.bfloat16
    kept = frames if how.mask is None else min(frames, how.mask.size)
    sink = 0 if how.mask is None else how.mask.sink
    policy = CachePolicy(window=kept, sink=sink, dtype="bfloat16" if half else "float32")
    rule = TEACHER_FORCING if how.mask is None else TEACHER_FORCING & how.mask
    network, guided = CachedNetwork(self._model, policy, rule), how.guidance != 1

    def begin(params, noise, cond, null):
      other = lambda cond: cond.replace(text=null.text)  # the image stays
      own = Guided(network, how.guidance, other) if guided else network
      return rollout.begin(own, params, noise, cond)

    def step(cache, params, noise, cond, key, *, times):
      own = Guided(network, how.guidance, lambda cond: cond) if guided else network
      solve = {"times": times, "solver": how.solver, "context": how.context}
      return rollout.next_chunk(own, params, noise, cond, cache, key, **solve)[::-1]

    cache = self._run(begin, self._params, noise, cond, null, donate=())
    sizes = np.bincount(chunk_index(frames, how.chunk)).tolist()
    lists = rollout.schedule(how.times[:-1], how.first_times[:-1], len(sizes))
    parts, first = [], 0
    for i, (size, times) in enumerate(zip(sizes, lists, strict=True)):
      own = slice(first, first + size)
      image = None if cond.image is None else cond.image[:, own]
      inputs = noise[:, own], Cond(image=image), jax.random.fold_in(key, i)
      cache, latents = self._run(step, cache, self._params, *inputs, times=tuple(times))
      if parts:
        jax.block_until_ready(parts[-1])
        progress(i, len(sizes))
      parts, first = [*parts, latents], first + size
    latents = jax.block_until_ready(jnp.concatenate(parts, axis=1))
    progress(len(sizes), len(sizes))
    return latents

  def _run(self, function, *args, donate=(0,), **static):
    """Compiles a function for the shapes of its arguments, once, and calls it."""
    leaves, structure = jax.tree.flatten(args)
    place = lambda a: (a.shape, getattr(a, "sharding", None))
    known = function.__name__, structure, tuple(map(place, leaves)), tuple(static.items())
    if known not in self._programs:
      begin = time.perf_counter()
      function = functools.partial(function, **static)
      self._programs[known] = jax.jit(function, donate_argnums=donate).lower(*args).compile()
      self.compile_seconds += time.perf_counter() - begin
    return self._programs[known](*args)
