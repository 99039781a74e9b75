"""What each stage of a tick costs, alone and waited for; in a stream they overlap."""

import math
import time

import jax
import jax.numpy as jnp
import numpy as np

from vidstep.causal.inputs import embed
from vidstep.metrics.streaming import summary
from vidstep.models.cond import Cond


def measure_stages(engine, *, runs=30, warmup=3, text="a prompt") -> dict:
  """Times text, denoise (one step), append, decode and the copy to the host, at full batch.

  It compiles programs of its own: call it before the compilations of a stream are counted. The
  engine's sessions are not touched. "step" is the engine's whole compiled step of one denoising
  step, noise and append included: what fusing them into one program saves is the difference.

  Args:
    engine: an `Engine`.
    runs: samples of each stage.
    warmup: calls before them that are not counted.
    text: prompt for the text stage, which is left out of an engine without text; None to spare it.

  Returns:
    {stage: quantiles in seconds}, see `vidstep.metrics.streaming.summary`.
  """
  network, params, programs = engine.network, engine.params, engine._programs
  batch, (c, *frame) = len(engine._seats), (engine.chunk, *engine.frame_shape)
  samples = {}

  def timed(stage, fn, *args):
    jax.block_until_ready(args)
    begin = time.perf_counter()
    out = jax.block_until_ready(fn(*args))
    samples.setdefault(stage, []).append(time.perf_counter() - begin)
    return out

  x = jax.random.normal(jax.random.key(0), (batch, c, *frame))
  actions = jnp.zeros((batch, *engine.action_shape)) if engine.action_shape else None
  cond, t = Cond(actions=actions), jnp.ones(batch)
  read = jax.jit(lambda params, x, t, cond, cache: network.read(params, x, t, cond, cache))
  append = jax.jit(
    lambda params, cache, x, cond: network.append(params, x, cond, cache), donate_argnums=1
  )
  told, *_ = engine._tell([])
  cache, states = programs.start(params, engine.codec, embed(engine._text, ""))
  for _ in range(math.ceil(engine.max_window / c)):  # a full cache, as in a long stream
    _, cache = programs.generate(params, cache, told)
  for i in range(runs + warmup):
    if engine._text is not None and text is not None:
      timed("text", embed, engine._text, f"{text} {i}")  # a new one each time: encoders remember
    timed("denoise, a step", read, params, x, t, cond, cache)
    cache = timed("append", append, params, cache, x, cond)
    x, cache = timed("step", programs.generate, params, cache, told)
    pixels, _, states = timed("decode", programs.decode, engine.codec, x, states)
    timed("to the host", np.asarray, pixels)
  return {stage: summary(seconds[warmup:]) for stage, seconds in samples.items()}
