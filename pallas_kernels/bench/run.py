"""One benchmark: checks kernels if asked, times every row, keeps the result on disk as it grows."""

import dataclasses
import fnmatch
import sys
from collections.abc import Iterable, Sequence
from typing import Any

import jax.numpy as jnp
from tqdm import tqdm

from pallas_kernels.attention import Kernel
from pallas_kernels.bench import check, peer, programs, rows, table, timing
from pallas_kernels.bench.shapes import SHAPES, Shape
from pallas_kernels.bench.timing import NotRun, Run


@dataclasses.dataclass(frozen=True)
class Options:
  """What is run; the flags of `__main__.py` say what each is.

  An empty list of shapes or implementations stands for the default; dtype None too.
  """

  shapes: Sequence[str] = ()
  modes: Sequence[str] = ("*",)
  implementations: Sequence[str] = ()
  dtype: str | None = None
  seconds: float = 2.0
  rounds: int = 15
  max_seconds: float = 20.0
  experimental: bool = False
  check: bool = False
  peer: str | None = None
  out: str | None = None


def run(options: Options) -> dict:
  """Runs the benchmark and returns what goes into bench.json.

  Raises:
    ValueError: for names that do not exist.
  """
  cpu = programs.platform() == "cpu"
  shapes = choose("shapes", options.shapes or _default_shapes(cpu), SHAPES)
  modes = choose("modes", options.modes, programs.MODES)
  names = choose("implementations", options.implementations or ["*"], programs.NAMES)
  dtype = jnp.dtype(options.dtype or ("float32" if cpu else "bfloat16"))
  result = {**table.header(sys.argv), "dtype": dtype.name, "rows": []}
  module = _load_peer(options)
  if options.check:
    result["check"] = _check(names, module, options)
    table.write(result, options.out)
  result["dispatch_seconds"] = timing.dispatch_seconds()
  matmul, operations = timing.matmul_run(dtype)
  timing.warm_up(matmul, options.seconds, options.rounds, float("inf"))
  timing.in_turns([matmul], options.seconds, options.rounds)
  result["peak"] = operations / min(matmul.samples)

  families = {}
  for name in shapes:
    families.setdefault(SHAPES[name].family, []).append(SHAPES[name])
  names = [*names, *([peer.NAME] if options.peer else [])]
  with tqdm(total=len(shapes) * len(modes) * len(names), unit="row", dynamic_ncols=True) as bar:
    for family in families.values():
      inputs = {}
      for mode in modes:
        described, runs = [], []
        for shape in family:
          for name in names:
            bar.set_description(f"{shape.name} {mode} {name}")
            row = rows.describe(shape, mode, name, dtype)
            try:
              if name == peer.NAME:
                one = _peer_run(module, shape, mode, dtype)
              else:
                kernel = _kernel(name, options)
                _affordable(shape, mode, result["peak"], options.max_seconds)
                one = rows.prepare(kernel, shape, mode, dtype, inputs)
              timing.warm_up(one, options.seconds, options.rounds, options.max_seconds)
              runs.append((row, one))
            except Exception as error:  # one row never takes the others with it
              row["not_run"] = rows.explain(error)
            described.append(row)
            bar.update()
        rows.sample(runs, matmul, options.seconds, options.rounds)
        result["peak"] = operations / min(matmul.samples)
        result["rows"] += described
        for row in described:
          bar.write(table.one_line(row))
        table.write(result, options.out)  # what comes next may take the process with it
  return result


def choose(flag: str, patterns: Sequence[str], known: Iterable[str]) -> list[str]:
  """The known names that match, in their own order.

  Raises:
    ValueError: for a pattern that matches nothing, with the choices.
  """
  for pattern in patterns:
    if not fnmatch.filter(known, pattern):
      raise ValueError(f"--{flag}={pattern} matches nothing: choose from {', '.join(known)}.")
  return [name for name in known if any(fnmatch.fnmatchcase(name, p) for p in patterns)]


def _default_shapes(cpu: bool) -> list[str]:
  return ["small-4k-*"] if cpu else ["wan-*", "doom-*"]


def _kernel(name: str, options: Options) -> Kernel:
  kernel = programs.find(name)
  if isinstance(kernel, str):
    raise NotRun(kernel)
  if kernel.experimental and not (options.experimental or name in options.implementations):
    raise NotRun("never run on its hardware: name it, or give --experimental")
  return kernel


def _affordable(shape: Shape, mode: str, peak: float, limit: float):
  if programs.flops(shape, mode) > peak * limit:
    raise NotRun(f"longer than --max_seconds={limit:g} even at the matmul's peak")


def _load_peer(options: Options) -> Any:
  """The peer's module; or, as an exception, why there is none; None if it is not asked for."""
  if not options.peer:
    return None
  try:
    return peer.load(options.peer)
  except Exception as error:
    return error


def _peer_run(module: Any, shape: Shape, mode: str, dtype: jnp.dtype) -> Run:
  if isinstance(module, Exception):
    raise module
  return peer.run(module, shape, mode, dtype)


def _check(names: Sequence[str], module: Any, options: Options) -> list[dict]:
  """Records of `check` for all kernels in both dtypes, and for the peer."""
  records = []
  for name in names:
    for dtype in (jnp.dtype("float32"), jnp.dtype("bfloat16")):
      try:
        records += check.check(_kernel(name, options), dtype)
      except NotRun as error:
        records.append({"implementation": name, "dtype": dtype.name, "not_run": str(error)})
  if module is not None:
    dtype = jnp.dtype("bfloat16")
    try:
      call = lambda x, dx: peer.outputs(module, x, dx)
      records.append(check.check_outputs(call, peer.NAME, dtype))
    except Exception as error:
      not_run = rows.explain(module if isinstance(module, Exception) else error)
      records.append({"implementation": peer.NAME, "dtype": dtype.name, "not_run": not_run})
  return records
