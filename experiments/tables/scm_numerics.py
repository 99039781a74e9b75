"""Table: what path, normalisation, c, warm-up, differences and precision do to sCM."""

import contextlib
import functools

import jax
import jax.numpy as jnp
import numpy as np

from experiments.tables import bench, networks, pictures, videos
from experiments.tables.table import Claim, Column, Table
from vidstep import paths
from vidstep.losses import tangents
from vidstep.losses.scm import PATHS

BASE = {"name": "scm", "path": "rf", "norm": "rms", "power": 1, "c": 0.1, "warmup": 200}
PRECISIONS = ("float32", "bfloat16", "float64")


def variants():
  """label -> (changes of the objective, precision): one change at a time, and path x precision."""
  rows = {}
  for path in ("rf", "trig"):
    for precision in PRECISIONS:
      rows[f"{path} {precision}"] = ({"path": path}, precision)
  for precision in PRECISIONS[:2]:
    for tangent in ("semi", "difference"):
      rows[f"{tangent} {precision}"] = ({"tangent": tangent}, precision)
  changes = {
    "no normalisation": {"norm": "none"},
    "trig, no normalisation": {"path": "trig", "norm": "none"},
    "l2 norm (papers' c)": {"norm": "l2"},
    "power 2": {"power": 2},
    "c 0.01": {"c": 0.01},
    "c 1": {"c": 1.0},
    "c 10": {"c": 10.0},
    "no warm-up": {"warmup": 0},
    "warm-up over all": {"warmup": 1000},
  }
  rows |= {name: (change, "float32") for name, change in changes.items()}
  return rows


def table(small=False):
  """The table; small is a few updates of a few rows."""
  chosen = variants()
  if small:
    kept = ("rf float32", "rf float64", "trig bfloat16")
    chosen = {name: chosen[name] for name in kept}
  rows = {
    label: bench.student(
      "mixture",
      BASE | change,
      steps=4 if small else 1000,
      rates={"student": 1e-3},
      dtype=precision,
      at=[1, 2],
      clips=256 if small else bench.CLIPS,
      pretrain=bench.PRETRAIN | ({"steps": 4} if small else {}),
    )
    for label, (change, precision) in chosen.items()
  }
  return Table(
    name="scm_numerics",
    title="sCM: path, normalisation, warm-up and precision",
    rows=rows,
    fill=fill,
    columns=(
      Column("W2, 1 step", "w2@1"),
      Column("W2, 2 steps", "w2@2"),
      Column("mode coverage, 1 step", "coverage@1"),
      Column("error of the tangent", "tangent_error", None),
      Column("the same, t > 3/4", "tangent_error_t3", None),
      Column("updates", "updates", 0),
    ),
    claims=claims,
    notes=NOTES,
    paper=PAPER,
    draw=draw,
    seeds=2 if small else 4,
  )


def fill(recipe, seed):
  """Trains in the recipe's precision, measures in float32; and the tangent against float64."""
  double = recipe["dtype"] == "float64"
  first = bench.start(recipe, "student", seed)
  with wide_floats() if double else contextlib.nullcontext():
    wide = lambda tree: jax.tree.map(lambda a: jnp.asarray(np.asarray(a), jnp.float64), tree)
    if double:
      fitted = bench.train(recipe, seed, wide(first), wide(bench.data(recipe["video"], seed)))
    else:
      fitted = bench.train(recipe, seed)
    params = jax.tree.map(lambda a: np.asarray(a, np.float32), fitted.nets["student"])
  values = bench.count(recipe) | bench.judge_all(recipe, params, seed)
  return values | tangent_errors(recipe, params, seed)


@contextlib.contextmanager
def wide_floats():
  """float64, and the promotion of float32 times and ramps to it."""
  with jax.enable_x64(True), jax.numpy_dtype_promotion("standard"):
    yield


def tangent_errors(recipe, params, seed):
  """|h - h64| / |h64| of the trained network, over 4096 states, and over those with t > 3/4.

  h64 is the exact derivative in float64, h that of the recipe (precision, and differences if it
  takes any), at the same weights, states and times.
  """
  n = 256 if recipe["steps"] < 100 else 4096
  keys = jax.random.split(jax.random.key(seed), 3)
  x0 = bench.data(recipe["video"], seed)[:n]
  t = jax.random.uniform(keys[0], (n,))
  x = paths.interpolate(x0, jax.random.normal(keys[1], x0.shape), t)
  options = recipe["objective"]
  law = videos.video(recipe["video"]).law
  double = np.dtype("float64")
  with wide_floats():
    wide = jax.tree.map(lambda a: np.asarray(a, double), (params, law, x, t))
    true = np.asarray(_tangent(options | {"tangent": "jvp"}, "float64", *wide))
  got = true
  if recipe["dtype"] != "float64":
    got = np.asarray(_tangent(options, recipe["dtype"], params, law, x, t), double)
  size = lambda a: np.sqrt((a.reshape(n, -1) ** 2).sum(1))
  late = np.asarray(t) > 0.75
  error = lambda rows: float(
    np.sqrt((size(got - true)[rows] ** 2).sum() / (size(true)[rows] ** 2).sum())
  )
  return {"tangent_error": error(slice(None)), "tangent_error_t3": error(late)}


def _tangent(options, dtype, *where):
  """h of the network at (params, law, x, t), compiled once for all rows that share it."""
  chosen = (options["path"], options.get("tangent", "jvp"), options.get("delta", 1e-3), dtype)
  return _compiled(*chosen)(*where)


@functools.cache
def _compiled(path, tangent, delta, dtype):
  velocity = networks.velocity_of(networks.ClipMLP(dtype=jnp.dtype(dtype)))
  along = functools.partial(tangents.derivative, tangent=tangent, delta=delta)

  def run(params, law, x, t):
    v = videos.velocity(law, x, t)
    return PATHS[path](velocity, params, x, t, v, jnp.ones((), t.dtype), along)[1]

  return jax.jit(run)


def claims(results):
  """What theory and the papers say, each as a difference of paired seeds."""
  w2 = lambda r, row, n=1: r[row][f"w2@{n}"]
  less = lambda a, b: lambda r: w2(r, a) - w2(r, b)
  same = 0.02
  precision = Claim(
    "W2 of float32 - W2 of float64: none",
    "theory: rounding is far below the noise of training",
    less("rf float32", "rf float64"),
    -same,
    same,
  )
  if "trig float32" not in results:  # the small table
    return [precision]
  return [
    precision,
    Claim(
      "W2 of rf - W2 of trig, float32: none",
      "theory: the fields are proportional (Causal-rCM, appendix A)",
      less("rf float32", "trig float32"),
      -same,
      same,
    ),
    Claim(
      "W2 of trig - W2 of rf, bfloat16: trig is worse",
      "Causal-rCM, appendix A: TrigFlow-wrapped TF-sCM degraded",
      less("trig bfloat16", "rf bfloat16"),
      low=0,
    ),
    Claim(
      "the same gap in bfloat16 - that in float64, above 0: rounding is the reason",
      "a reading of rCM's code: with unit tangents nothing else is left",
      lambda r: less("trig bfloat16", "rf bfloat16")(r) - less("trig float64", "rf float64")(r),
      low=0,
    ),
    Claim(
      "error of the trig tangent / error of the rf tangent, bfloat16, t > 3/4, above 1",
      "the same; rf is said to be smoother",
      lambda r: r["trig bfloat16"]["tangent_error_t3"] / r["rf bfloat16"]["tangent_error_t3"],
      low=1,
      log=True,
    ),
    Claim(
      "W2 of bfloat16 - W2 of float32, rf, above 0",
      "rCM, figure 11: derivatives in bfloat16 are off by 2.5 to 6 times",
      less("rf bfloat16", "rf float32"),
      low=0,
    ),
    Claim(
      "W2 without warm-up - W2 with: none",
      'rCM, authors: warm-up "is not essential"',
      less("no warm-up", "rf float32"),
      -same,
      same,
    ),
    Claim(
      "W2 without normalisation - W2 with, above 0",
      "sCM, section 4.2: normalised tangents are what makes it stable",
      less("no normalisation", "rf float32"),
      low=0,
    ),
    Claim(
      "W2 of l2 norm (c as printed) - W2 of rms: none",
      "theory: c is small in both once h is of order 1",
      less("l2 norm (papers' c)", "rf float32"),
      -same,
      same,
    ),
    Claim(
      "W2 of c = 10 - W2 of c = 0.1: none",
      "theory: c changes the speed and not the optimum",
      less("c 10", "rf float32"),
      -same,
      same,
    ),
    Claim(
      "W2 of differences - W2 of jvp, rf, float32: none",
      "rCM: semi-continuous training is enough for small models",
      less("difference float32", "rf float32"),
      -same,
      same,
    ),
    Claim(
      "W2 of differences - W2 of jvp, rf, bfloat16, above 0",
      "theory: rounding divided by the step of the difference",
      less("difference bfloat16", "rf bfloat16"),
      low=0,
    ),
  ]


def draw(results, path):
  """Distance and error of the tangent, every row."""
  pick = lambda m: {row: np.where(r[m] > 0, r[m], np.nan) for row, r in results.items()}
  pictures.bars(
    [pick("w2@1"), pick("w2@2"), pick("tangent_error")],
    path,
    panels=("one step", "two steps", "tangent"),
    ylabels=("sliced W2", "sliced W2", "relative error against float64"),
    log=(2,),
  )


NOTES = """
Mixture video, one student of 1000 updates a cell (rate 1e-3 falling as a cosine, batch 256) from
the same flow-matching network. The first row is the base; every other row changes what its name
says. Precision is that of the student's layers; times, losses and weights are float32, and all is
float64 in the float64 rows. W2 is sliced, against as many fresh clips (8192; real against real is
about 0.05 to 0.08). "Error of the tangent" compares h = df/dt of the trained network with the exact
one in float64 at the same weights, states and times: relative root mean square.
"""

PAPER = """
No table of this is published. Causal-rCM (2606.25473, appendix A) calls the rectified-flow form
smoother and its TrigFlow-wrapped TF-sCM "degraded", without numbers. rCM (2510.08431, figure 11):
relative errors of derivatives in bfloat16 up to about 2.5 (0.6B) and 6 (2B). rCM's tangent warm-up:
1000 updates (Wan 1.3B), 200 (14B), 0 elsewhere. sCM (2410.11081): c = 0.1, warm-up 10k.
"""
