"""What a table is: rows that are trained cell by cell, and claims that are checked over seeds."""

import dataclasses
import datetime
import hashlib
import json
import math
import os
import pathlib
import platform
import time
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import numpy as np
from scipy import stats
from tqdm import tqdm

from vidstep.files import write_json

LEVEL = 0.95


@dataclasses.dataclass(frozen=True)
class Claim:
  """Something that a table is said to show, and how to see whether it does.

  Attributes:
    text: the claim, in words.
    source: where it comes from: a closed form, theory, or a paper.
    obtained: results -> one number a seed.
    low: least value of their expectation under the claim.
    high: largest.
    log: whether the numbers are ratios: interval of their geometric mean.
  """

  text: str
  source: str
  obtained: Callable[[Mapping], Any]
  low: float = -math.inf
  high: float = math.inf
  log: bool = False


@dataclasses.dataclass(frozen=True)
class Column:
  """A column of the table of values: header, metric, decimals (None: two significant digits)."""

  header: str
  metric: str
  digits: int | None = 3


@dataclasses.dataclass(frozen=True)
class Table:
  """A table: what is trained, what is shown, what is claimed.

  Attributes:
    name: as in --table.
    title: one line.
    rows: label -> recipe: everything that the numbers of the row depend on, but the seed; JSON.
    fill: (recipe, seed) -> {metric: number or list of numbers}.
    columns: of the table of values; a row that lacks the metric shows nothing.
    claims: results -> claims. Results are {row: {metric: array [seeds, ...]}}.
    notes: Markdown, what a reader must know.
    paper: Markdown, published numbers with their source; never compared digit by digit.
    draw: (results, path) -> None, the picture.
    seeds: default number of seeds.
  """

  name: str
  title: str
  rows: Mapping[str, dict]
  fill: Callable[[dict, int], dict]
  columns: tuple[Column, ...]
  claims: Callable[[Mapping], list[Claim]]
  notes: str
  paper: str
  draw: Callable[[Mapping, Any], None]
  seeds: int = 4


class Verdict(NamedTuple):
  """Mean and interval of the obtained numbers over `seeds` seeds, and what follows."""

  value: float
  low: float
  high: float
  seeds: int
  verdict: str


# ------------------------------------------------------------------------------------------------
# Cells
# ------------------------------------------------------------------------------------------------


def fill(table, workdir, seeds, rows=None):
  """Fills the cells of a table, those on disk not again.

  A cell is one row under one seed, and one file workdir/TABLE/HASH.json, written whole or not at
  all; the hash is that of recipe and seed, so a changed recipe is trained anew.

  Args:
    table: the `Table`.
    workdir: folder of all tables.
    seeds: number of seeds, 0 .. seeds - 1.
    rows: labels of rows to fill; None for all.

  Returns:
    {row: [cell of each seed]}, cells as `make_cell` leaves them.

  Raises:
    ValueError: for an unknown row or less than one seed.
  """
  if seeds < 1:
    raise ValueError(f"A table needs at least 1 seed, got {seeds}.")
  for row in rows or ():
    if row not in table.rows:
      raise ValueError(f"Table {table.name} has no row {row!r}: there are {', '.join(table.rows)}.")
  chosen = {row: recipe for row, recipe in table.rows.items() if not rows or row in rows}
  cells = {row: [] for row in chosen}
  with tqdm(total=seeds * len(chosen), desc=table.name, unit="cell", dynamic_ncols=True) as bar:
    for row, recipe in chosen.items():
      for seed in range(seeds):
        bar.set_postfix_str(f"{row}, seed {seed}")
        path = cell_path(workdir, table.name, recipe, seed)
        cells[row].append(json.loads(path.read_text()) if path.exists() else None)
        if cells[row][-1] is None:
          cells[row][-1] = make_cell(table, row, recipe, seed)
          write_json(path, cells[row][-1], shared=True)
        bar.update()
  return cells


def cell_path(workdir, name, recipe, seed):
  """The file of a cell."""
  text = json.dumps([recipe, seed], sort_keys=True)
  digest = hashlib.sha256(text.encode()).hexdigest()[:16]
  return pathlib.Path(workdir) / name / f"{digest}.json"


def make_cell(table, row, recipe, seed):
  """Trains and measures one cell; says where and when."""
  start = time.perf_counter()
  values = {k: np.asarray(v, np.float64).tolist() for k, v in table.fill(recipe, seed).items()}
  return {
    "table": table.name,
    "row": row,
    "recipe": recipe,
    "seed": seed,
    "values": values,
    "seconds": round(time.perf_counter() - start, 2),
    "device": device(),
    "date": datetime.date.today().isoformat(),
  }


def results_of(cells):
  """{row: {metric: float64 array [seeds, ...]}}."""
  return {
    row: {m: np.asarray([cell["values"][m] for cell in many]) for m in many[0]["values"]}
    for row, many in cells.items()
  }


def device():
  """The hardware that JAX computes on, in words."""
  kind = jax.devices()[0].device_kind
  if jax.default_backend() != "cpu":
    return kind
  try:
    lines = pathlib.Path("/proc/cpuinfo").read_text().splitlines()
    kind = next(line.split(":")[1].strip() for line in lines if line.startswith("model name"))
  except (OSError, StopIteration):
    kind = platform.processor() or kind
  return f"{os.cpu_count()} CPU cores ({kind})"


# ------------------------------------------------------------------------------------------------
# Claims
# ------------------------------------------------------------------------------------------------


def judge(claim, results):
  """Checks a claim: does the interval over seeds lie in [low, high]?

  Within: reproduced. Apart: not reproduced. Across an end, or one seed only: inconclusive. A run
  that diverged (a number that is not finite) reproduces nothing.

  Returns:
    A `Verdict`.
  """
  values = np.asarray(claim.obtained(results), np.float64)
  with np.errstate(divide="ignore"):  # a ratio of 0 is as far from finite as one can be
    values = np.log(values) if claim.log else values
  if not np.isfinite(values).all():
    return Verdict(math.nan, math.nan, math.nan, len(values), "not reproduced")
  value, low, high = interval(values)
  if claim.log:
    value, low, high = np.exp([value, low, high])
  inside = claim.low <= low and high <= claim.high
  apart = high < claim.low or low > claim.high
  if len(values) < 2 or not (inside or apart):
    verdict = "inconclusive"
  else:
    verdict = "reproduced" if inside else "not reproduced"
  return Verdict(float(value), float(low), float(high), len(values), verdict)


def interval(values, level=LEVEL):
  """Mean of values [n] and Student's interval for their expectation; infinite for n = 1."""
  values = np.asarray(values, np.float64)
  mean, n = values.mean(), len(values)
  if n < 2:
    return mean, -math.inf, math.inf
  half = stats.t.ppf((1 + level) / 2, n - 1) * values.std(ddof=1) / math.sqrt(n)
  return mean, mean - half, mean + half
