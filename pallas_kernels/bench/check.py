"""Before anything is timed: every kernel of this device on small problems against float64."""

import dataclasses
import functools
from collections.abc import Callable, Iterator

import jax
import jax.numpy as jnp
import numpy as np

from pallas_kernels.attention import Kernel, conformance
from pallas_kernels.bench import shapes

# Frames of 200 tokens: no multiple of any tile.
MASKS = {
  "dense": shapes.full(512),
  "cross": shapes.full(300, 515),
  "causal": shapes.by_chunk(shapes.causal, 5, 200),
  "window": shapes.by_chunk(shapes.CausalWindow(2, 1), 5, 200),
  "teacher forcing": shapes.packed(4, 200, 1),
}
DIMS = (64, 128)


def check(kernel: Kernel, dtype: jnp.dtype) -> Iterator[dict]:
  """Errors of a kernel on every mask and head dim.

  Yields:
    One record a problem: errors of the outputs, the worst, the bar and whether all is well; or why
    it was not run. Modes that a kernel refuses are named, and the others checked.
  """
  for name, mask in MASKS.items():
    for dim in DIMS:
      record = {"implementation": kernel.name, "mask": name, "dim": dim, "dtype": dtype.name}
      shape = (1, mask.q_len, 2, dim)
      problem = conformance.make_problem(0, shape, mask.k_len, dtype, mask)
      refused = {part: kernel.refuses(part, *problem.x[:2], mask) for part in conformance.PARTS}
      refused = {part: reason for part, reason in refused.items() if reason is not None}
      if refused:
        record["refused"] = refused
      if "forward" in refused:
        yield record | {"not_run": refused["forward"]}
        continue
      parts = [part for part in conformance.PARTS if part not in refused]
      try:
        execute = functools.partial(_execute, parts=parts)
        errors = conformance.relative_errors(kernel, problem, execute=execute)
      except Exception as error:  # the other kernels are still to be checked and timed
        yield record | {"not_run": f"{type(error).__name__}: {str(error)[:300]}", "ok": False}
        continue
      yield record | judge(errors, dtype)


def judge(errors: dict[str, float], dtype: jnp.dtype) -> dict:
  """Errors against the bar of a dtype."""
  worst, bar = max(errors.values()), conformance.BARS[dtype.name]
  return {"errors": errors, "worst": worst, "bar": bar, "ok": worst < bar}


def check_outputs(call: Callable, name: str, dtype: jnp.dtype) -> dict:
  """The same for a function `(x, dx) -> (o, do)` that is no kernel of ours, without a mask."""
  mask = MASKS["dense"]
  problem = conformance.make_problem(0, (1, mask.q_len, 2, 128), mask.k_len, dtype, mask)
  expected = conformance.oracle(problem)
  got = dict(zip(("o", "do"), call(problem.x, problem.dx), strict=True))
  norm = np.linalg.norm
  errors = {n: float(norm(a - expected[n]) / norm(expected[n])) for n, a in got.items()}
  record = {"implementation": name, "mask": "dense", "dim": 128, "dtype": dtype.name}
  return record | judge(errors, dtype)


def _execute(kernel, problem, live, parts):
  """`conformance.run` as one program."""

  def run(x, dx, cotangents):
    inputs = dataclasses.replace(problem, x=x, dx=dx, cotangents=cotangents)
    return conformance.run(kernel, inputs, live, parts)

  return jax.jit(run)(problem.x, problem.dx, problem.cotangents)
