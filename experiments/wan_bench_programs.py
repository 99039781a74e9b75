"""What a clip of Wan is made of: compiled programs, random weights, counted operations."""

import concurrent.futures
import dataclasses
import functools
import time
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from vidstep import paths
from vidstep.causal.cached import CachedNetwork
from vidstep.causal.denoise import jump
from vidstep.causal.kv_cache import CachePolicy
from vidstep.metrics.hlo import read_traffic
from vidstep.models.cond import Cond
from vidstep.models.dit import VideoDiT
from vidstep.models.vae import TinyDecoder, WanVAE, decode_chunk
from vidstep.releases import WAN

# 3-D convolutions in the order of axes that arrays have (channels last). Left alone, XLA for GPUs
# brings channels to the front and back around each of them.
GPU_DECODE = {"xla_gpu_force_conv_nhwc": True}
POOL = 1_048_573  # a prime


@dataclasses.dataclass(frozen=True)
class Size:
  """What is timed.

  Attributes:
    fields: of `VideoDiT`.
    latent: (h, w) of a latent frame.
    frames: latent frames of a clip.
    text: tokens of a prompt, all of them attended to.
    vae: decodes; None for no decoding.
  """

  fields: dict
  latent: tuple[int, int]
  frames: int
  text: int
  vae: WanVAE | TinyDecoder | None

  @property
  def tokens(self) -> int:
    """Of a latent frame."""
    return self.latent[0] * self.latent[1] // 4

  @property
  def pixel_frames(self) -> int:
    """Of a clip."""
    return 1 + 4 * (self.frames - 1)

  def model(self, attention: str | None = None) -> VideoDiT:
    """The network, computed in bfloat16."""
    return VideoDiT(**self.fields, dtype=jnp.bfloat16, scan=True, attention=attention)

  def network(self, attention: str | None = None) -> CachedNetwork:
    """The network behind a cache that holds the whole clip."""
    policy = CachePolicy(self.frames, dtype="bfloat16", whole=True)
    return CachedNetwork(self.model(attention), policy)


def make_size(decoder: str = "wan", tiny: bool = False) -> Size:
  """Wan 1.3B at 832 x 480 and 81 frames, or something small of its shape.

  Args:
    decoder: "wan", "tiny" (TAEHV's architecture) or "none".
    tiny: for tests: 48 x 32 pixels and 21 frames.
  """
  small = {"base": 2, "depth": 1} if tiny else {}
  narrow = {"widths": (4, 4, 4, 4), "depth": 1} if tiny else {}
  vae = {
    "wan": WanVAE(dtype=jnp.bfloat16, **small),
    "tiny": TinyDecoder(dtype=jnp.bfloat16, **narrow),
    "none": None,
  }[decoder]
  fields = dict(WAN["wan2.1-t2v-1.3b"].fields)
  if not tiny:
    return Size(fields, (60, 104), 21, 512, vae)
  fields |= {"dim": 48, "heads": 2, "depth": 2, "ffn_dim": 64, "text_dim": 8}
  return Size(fields, (4, 6), 6, 5, vae)


@dataclasses.dataclass(frozen=True)
class Program:
  """A compiled function.

  Attributes:
    run: it.
    moved: bytes that the compiled program reads and writes; None where its text cannot be read.
    seconds: that compiling took.
  """

  run: Callable
  moved: float | None
  seconds: float


class Programs:
  """Everything that rows of one chunk size run, compiled for this device.

  Args:
    size: what is timed.
    chunk: latent frames of a chunk.
    attention: implementation of it.
    noisy: also what a noisy context needs.

  Attributes:
    stages: name -> `Program`.
  """

  def __init__(self, size: Size, chunk: int, attention: str | None, *, noisy: bool = False):
    self.size, self.chunk, self.attention = size, chunk, attention
    self.stages = {}
    self.add(functions(size, chunk, attention, noisy=noisy))

  def add(self, wanted: dict):
    """Compiles what is not there yet, all at once: tracing takes turns, compiling does not."""
    lowered = {}
    for name, (function, args, donate) in wanted.items():
      if name not in self.stages:
        jitted = jax.jit(function, donate_argnums=donate)
        lowered[name] = jitted.lower(*args)
    with concurrent.futures.ThreadPoolExecutor(4) as pool:
      done = {name: pool.submit(_compile, name, low) for name, low in lowered.items()}
    for name, future in done.items():
      compiled, seconds = future.result()
      self.stages[name] = Program(compiled, moved_bytes(compiled), seconds)


def functions(size: Size, chunk: int, attention: str | None, *, noisy: bool = False) -> dict:
  """name -> (function, arguments as shapes, which of them are donated) of every stage."""
  network = size.network(attention)
  shape = (1, chunk, *size.latent, size.fields["in_channels"])
  x, t = jax.ShapeDtypeStruct(shape, jnp.float32), jax.ShapeDtypeStruct((1,), jnp.float32)
  params = dit_shapes(size)
  cache = jax.eval_shape(functools.partial(start, size, attention), params)

  def denoise(params, cache, x, t, below, noise):
    """One step of the consistency sampler: to x0, and up again to `below`."""
    x0 = jump(network.read(params, x, t, Cond(), cache), x, t)
    return paths.interpolate(x0, noise, below)

  def write(params, cache, x):
    return network.append(params, x, Cond(), cache)

  def both(params, cache, x, t):
    v, cache = network.read_append(params, x, t, Cond(), cache)
    return jump(v, x, t), cache

  wanted = {
    "denoise": (denoise, (params, cache, x, t, t, x), ()),
    "write": (write, (params, cache, x), 1),
  }
  if noisy:
    wanted["denoise + write"] = both, (params, cache, x, t), 1
  if size.vae is not None:
    run = functools.partial(decode, size.vae, chunk)
    vae = vae_shapes(size)
    state = jax.eval_shape(run, vae, x)[1]
    wanted["decode, first"] = run, (vae, x), ()
    wanted["decode"] = run, (vae, x, state), 2
  return wanted


def start(size: Size, attention: str | None, params: Any):
  """An empty cache with a prompt of noise."""
  like = jax.ShapeDtypeStruct((1, 1, *size.latent, size.fields["in_channels"]), jnp.float32)
  text = jax.random.normal(jax.random.key(1), (1, size.text, size.fields["text_dim"]))
  return size.network(attention).start(params, like, Cond(text=text))


def dit_shapes(size: Size) -> Any:
  """Parameters of the network as shapes: matrices in bfloat16, the rest in float32."""
  model, f = size.model("xla"), size.fields
  x = jnp.zeros((1, 1, *size.latent, f["in_channels"]))
  cond = Cond(text=jnp.zeros((1, size.text, f["text_dim"])))
  params = jax.eval_shape(lambda: model.init(jax.random.key(0), x, jnp.zeros(1), cond=cond))
  return jax.tree_util.tree_map_with_path(_stored, params["params"])


def vae_shapes(size: Size) -> Any:
  """Parameters of the decoder as shapes, bfloat16."""
  wan = isinstance(size.vae, WanVAE)
  blank = jnp.zeros((1, 1, 16, 16, 3) if wan else (1, 1, 4, 4, 16))
  params = jax.eval_shape(lambda: size.vae.init(jax.random.key(0), blank))["params"]
  return jax.tree.map(lambda a: jax.ShapeDtypeStruct(a.shape, jnp.bfloat16), params)


def draw(shapes: Any, seed: int = 0) -> Any:
  """Random parameters, made on the device: kernels of variance 1 / fan_in, none zero.

  They are taken in turn from one pool of normal numbers, whose length no width divides: drawing
  each by itself takes minutes to compile.
  """

  @jax.jit
  def make(pool):
    leaves, tree = jax.tree.flatten(shapes)
    scale = lambda a: a.shape[-2] ** -0.5 if len(a.shape) > 1 else 0.1
    one = lambda a: (scale(a) * jnp.resize(pool, a.shape)).astype(a.dtype)
    return jax.tree.unflatten(tree, map(one, leaves))

  return make(jax.random.normal(jax.random.key(seed), (POOL,)))


def decode(vae, at_once: int, params, latents: jax.Array, state=None):
  """Latents -> pixels uint8, and the state of the decoder; see `decode_chunk`."""
  video, state = decode_chunk(vae, params, latents, state, at_once=at_once)
  return jnp.clip(jnp.round((video + 1) * 127.5), 0, 255).astype(jnp.uint8), state


def _stored(path, a):
  names = [p.key for p in path]
  matrix = names[-1] == "kernel" and not names[0].startswith("time_")
  return jax.ShapeDtypeStruct(a.shape, jnp.bfloat16 if matrix else jnp.float32)


def _compile(name, lowered):
  begin = time.perf_counter()
  compiled = lowered.compile(compiler_options=options(name.startswith("decode")))
  return compiled, time.perf_counter() - begin


def options(channels_last: bool) -> dict | None:
  """Compiler options of a program."""
  return GPU_DECODE if channels_last and jax.default_backend() == "gpu" else None


def moved_bytes(compiled) -> float | None:
  """What a compiled program reads and writes; None where its text cannot be read."""
  try:
    return read_traffic(compiled.as_text(), devices=1).memory
  except Exception:  # a way of writing programs that the reader does not know: the clock goes on
    return None
