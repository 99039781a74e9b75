"""Ways to decode a chunk, timed beside each other: one loan tells which is the best."""

import functools
import time

import jax
import jax.numpy as jnp
import numpy as np

from experiments.wan_bench_programs import Size, decode, moved_bytes, options

# Name, latents of a pass (None: the whole chunk), whether convolutions have channels last.
DECODERS = (
  ("as in the rows", None, True),
  ("latent by latent", 1, True),
  ("in the compiler's own layout", None, False),
)


def time_decode(size: Size, chunk: int, params, at_once: int, channels_last: bool, calls=5) -> dict:
  """Median seconds of decoding a chunk in mid-stream, and bytes that the program moves.

  Args:
    size: what is made.
    chunk: latents.
    params: of the decoder.
    at_once: latents of a pass.
    channels_last: see `wan_bench_programs.GPU_DECODE`.
    calls: how many are timed.
  """
  run = functools.partial(decode, size.vae, at_once)
  x = jax.random.normal(jax.random.key(4), (1, chunk, *size.latent, size.fields["in_channels"]))
  shapes = jax.eval_shape(run, params, x)[1]
  state = jax.tree.map(lambda a: jnp.ones(a.shape, a.dtype), shapes)
  lowered = jax.jit(run, donate_argnums=2).lower(params, x, state)
  compiled = lowered.compile(compiler_options=options(channels_last))
  samples = []
  for _ in range(calls + 1):
    begin = time.perf_counter()
    _, state = jax.block_until_ready(compiled(params, x, state))
    samples.append(time.perf_counter() - begin)
  return {"seconds": float(np.median(samples[1:])), "moved": moved_bytes(compiled)}
