"""Rows of the table: what is known before, the compiled run, and what was measured."""

from collections.abc import Sequence

import jax.numpy as jnp
import numpy as np

from pallas_kernels.attention import Kernel
from pallas_kernels.bench import programs, timing
from pallas_kernels.bench.shapes import SHAPES, Shape
from pallas_kernels.bench.timing import NotRun, Run


def describe(shape: Shape, mode: str, implementation: str, dtype: jnp.dtype) -> dict:
  """What is known of a row before it is run."""
  return {
    "shape": shape.name,
    "family": shape.family,
    "mode": mode,
    "implementation": implementation,
    "dtype": dtype.name,
    "batch": shape.batch,
    "heads": shape.heads,
    "dim": shape.dim,
    "q_len": shape.mask.q_len,
    "k_len": shape.mask.k_len,
    "pairs": shape.pairs,
    "density": shape.density,
  }


def prepare(kernel: Kernel, shape: Shape, mode: str, dtype: jnp.dtype, inputs: dict) -> Run:
  """Compiles a mode of a kernel and gives it its arguments, which `inputs` keeps by shape.

  Raises:
    NotRun: with the kernel's own words, if it refuses; if it needs too much memory.
  """
  reason = programs.refusal(kernel, mode, shape, dtype)
  if reason is not None:
    raise NotRun(reason)
  function = programs.program(kernel, mode, shape.mask, shape.dim**-0.5)
  run, executable = timing.compiled(function, programs.arguments(shape, dtype))
  if shape.name not in inputs:
    inputs[shape.name] = programs.draw(shape, dtype)
  run.call = lambda x=inputs[shape.name]: executable(x)
  return run


def sample(runs: Sequence[tuple[dict, Run]], matmul: Run, seconds: float, rounds: int):
  """Samples all runs and a matmul in turns; one that fails says so, and the others go on."""
  alive = list(runs)
  while alive:
    for _, run in alive:
      run.samples.clear()
      run.processor.clear()
    try:
      timing.in_turns([run for _, run in alive] + [matmul], seconds, rounds)
      break
    except timing.Failed as error:
      row = next(row for row, run in alive if run is error.run)
      row["not_run"] = explain(error.__cause__)
      alive = [(row, run) for row, run in alive if run is not error.run]
  for row, run in alive:
    row |= _measured(row, run)
    same = next((x for r, x in alive if _is_full(r, row)), None)
    if same is not None:
      pairs = SHAPES[_full_of(row)].pairs / row["pairs"]
      row["pair_time_of_full"] = _ratio(run.samples, same.samples) * pairs
      if programs.platform() == "cpu":
        row["pair_processor_time_of_full"] = _ratio(run.processor, same.processor) * pairs


def explain(error: BaseException) -> str:
  """Why a row was not run, in one line."""
  text = " ".join(str(error).split())
  return text if isinstance(error, NotRun) else f"{type(error).__name__}: {text[:300]}"


def _measured(row: dict, run: Run) -> dict:
  seconds = float(np.median(run.samples))
  return {
    "seconds": seconds,
    "quartiles": [float(x) for x in np.percentile(run.samples, [25, 75])],
    "processor_seconds": float(np.median(run.processor)),  # of the host
    "fastest": min(run.samples),
    "samples": len(run.samples),
    "loops": run.loops,
    "flops_per_second": programs.flops(SHAPES[row["shape"]], row["mode"]) / seconds,
    "temp_bytes": run.memory,
    "process_peak_bytes": timing.peak_bytes(),
  }


def _full_of(row: dict) -> str | None:
  """The shape that a row's family is compared with."""
  names = (f"{row['family']}-full", row["family"])
  return next((name for name in names if name in SHAPES), None)


def _is_full(other: dict, row: dict) -> bool:
  same = other["implementation"] == row["implementation"]
  return same and other["shape"] == _full_of(row)


def _ratio(samples: Sequence[float], others: Sequence[float]) -> float:
  """The median over turns: what slows the machine for a while slows both."""
  return float(np.median([a / b for a, b in zip(samples, others, strict=False)]))
