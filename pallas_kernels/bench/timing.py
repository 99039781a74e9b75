"""Times programs in turns: compiled ahead, warmed up, many calls a sample, medians with spread."""

import dataclasses
import os
import time
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from pallas_kernels.bench import programs

PEAK_SIZE = {"cpu": 1024}  # of the matmul that measures the peak; 8,192 elsewhere


class NotRun(Exception):
  """Why there is no measurement."""


@dataclasses.dataclass
class Run:
  """Something to time.

  Attributes:
    call: starts it, and returns what `wait` waits for.
    wait: returns when that is done.
    memory: bytes the compiler sets aside beside arguments and results; None if it does not say.
    loops: calls in a sample.
    samples: seconds of a call, one for each sample.
    processor: the same in seconds of processor time, of all threads of this process.
  """

  call: Callable[[], Any]
  wait: Callable[[Any], Any] = jax.block_until_ready
  memory: int | None = None
  loops: int = 1
  samples: list[float] = dataclasses.field(default_factory=list)
  processor: list[float] = dataclasses.field(default_factory=list)

  def sample(self) -> tuple[float, float]:
    """Seconds a call, by the clock and of processors, over `loops` calls queued one by one."""
    start, busy = time.perf_counter(), time.process_time()
    for _ in range(self.loops):
      out = self.call()
    self.wait(out)
    return (
      (time.perf_counter() - start) / self.loops,
      (time.process_time() - busy) / self.loops,
    )


class Failed(Exception):
  """A run broke while it was timed; its cause says how."""

  def __init__(self, run: "Run"):
    super().__init__()
    self.run = run


def compiled(function: Callable, *args: Any) -> tuple[Run, Callable]:
  """Compiles `function` for shapes and dtypes: a run that still lacks its call, and the program.

  Raises:
    NotRun: if the device has too little memory for it.
  """
  executable = jax.jit(function).lower(*args).compile()
  memory = executable.memory_analysis()
  needed = None
  if memory is not None:
    needed = memory.temp_size_in_bytes
    total, free = needed + memory.output_size_in_bytes, free_bytes()
    if total > free:
      raise NotRun(f"it needs {total / 2**30:.1f} GiB of memory, {free / 2**30:.1f} are free")
  return Run(executable, memory=needed), executable


def warm_up(run: Run, seconds: float, rounds: int, limit: float):
  """Runs it twice, and chooses `loops` so that `rounds` samples take about `seconds`.

  What is so slow that a single call exceeds a sample's share is called once a sample.

  Raises:
    NotRun: if the first call takes more than `limit` seconds.
  """
  first, _ = run.sample()
  if first > limit:
    raise NotRun(f"a call took {first:.3g} s, past --max_seconds={limit:g}")
  run.loops = max(int(seconds / rounds / run.sample()[0]), 1)


def in_turns(runs: Sequence[Run], seconds: float, rounds: int):
  """Takes `rounds` samples of each run, one after the other, so that all see the same machine.

  A run whose calls are long gets fewer samples: as many as fit in `seconds`, three at the least.
  """
  for turn in range(rounds):
    for run in runs:
      if turn < 3 or sum(run.samples) * run.loops < seconds:
        try:
          clock, processor = run.sample()
        except Exception as error:
          raise Failed(run) from error
        run.samples.append(clock)
        run.processor.append(processor)


def free_bytes() -> float:
  """Memory that a program may still take on the default device."""
  stats = jax.devices()[0].memory_stats() or {}
  if "bytes_limit" in stats:
    return stats["bytes_limit"] - stats["bytes_in_use"]
  if jax.default_backend() == "cpu" and hasattr(os, "sysconf"):
    return 0.8 * os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
  return float("inf")


def peak_bytes() -> int | None:
  """The most memory this process has held on the device so far, where the device keeps count."""
  return (jax.devices()[0].memory_stats() or {}).get("peak_bytes_in_use")


def matmul_run(dtype: jnp.dtype) -> tuple[Run, float]:
  """A matmul big enough to reach the chip's peak, and its floating point operations."""
  size = PEAK_SIZE.get(jax.default_backend(), 8192)
  keys = jax.random.split(jax.random.key(1))
  a, b = (jax.random.normal(key, (size, size), dtype) for key in keys)
  executable = jax.jit(programs.matmul).lower(a, b).compile()
  return Run(lambda: executable(a, b)), 2.0 * size**3


def dispatch_seconds() -> float:
  """What a call of an empty program costs: shorter kernels than this cannot be timed so."""
  x = jnp.zeros(8)
  executable = jax.jit(lambda x: x + 1).lower(x).compile()
  run = Run(lambda: executable(x), loops=200)
  return float(np.median([run.sample()[0] for _ in range(5)]))
