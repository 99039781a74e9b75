"""Table: what self-forcing with distribution matching makes of each initialisation."""

import functools

import jax

from experiments.tables import bench, pictures
from experiments.tables.table import Claim, Column, Table

VIDEO = "mixture"
RATIO = 3  # one update of the student in so many steps
STEPS = 4  # of sampling a frame
NAMES = ("none", "DF", "TF", "DF-KD", "TF-KD", "TF-dCM", "TF-sCM")


def recipes(small):
  """label -> recipe of the self-forcing run, whose `before` is the initialisation."""
  shared = {
    "model": "causal",
    "sampler": "rollout",
    "at": [1, STEPS],
    "clips": 256 if small else bench.CLIPS,
    "pretrain": bench.PRETRAIN | {"steps": 4 if small else 3000},
  }

  def first(objective, rate=1e-3):
    how = {"teacher": "causal", "forcing": "teacher", **shared}
    steps = 4 if small else 1000
    return bench.student(VIDEO, objective, steps=steps, rates={"student": rate}, **how)

  kd = {"name": "kd", "times": bench.TIMES}
  whole = {"teacher": "exact", "forcing": "diffusion"}
  before = {
    "DF-KD": bench.student(
      VIDEO,
      kd | {"chunk": 1},
      steps=4 if small else 1000,
      rates={"student": 1e-3},
      **shared,
      **whole,
    ),
    "TF-KD": first(kd),
    "TF-dCM": first({"name": "dcm"}, 3e-4),  # the best rate of scm_vs_dcm
    "TF-sCM": first({"name": "scm", "warmup": 200}),
  }
  forcing = {"DF": "diffusion", "DF-KD": "diffusion"}
  return {
    name: bench.student(
      VIDEO,
      {"name": "self_forcing", "times": bench.TIMES, "ratio": RATIO, "time": "uniform"},
      steps=8 if small else 500 * RATIO,
      rates={"student": 3e-4, "fake": 1e-3},
      b1=0.0,
      batch=128,
      looks=2 if small else 20,
      init="random" if name == "none" else "flow_matching",
      before=before.get(name),
      forcing=forcing.get(name, "teacher"),
      **shared,
    )
    for name in NAMES
  }


def table(small=False):
  """The table; small is a few updates of three rows."""
  rows = recipes(small)
  if small:
    rows = {name: rows[name] for name in ("none", "TF", "TF-dCM")}
  every = next(iter(rows.values()))
  return Table(
    name="causal_rcm_init",
    title="Initialisation of self-forcing with distribution matching",
    rows=rows,
    fill=fill,
    columns=(
      Column("W2 before", f"init_w2@{STEPS}"),
      Column("coverage before", f"init_coverage@{STEPS}"),
      Column("W2 after a tenth", "early_w2"),
      Column("W2 after", f"w2@{STEPS}"),
      Column("W2 after, 1 step", "w2@1"),
      Column("coverage after", f"coverage@{STEPS}"),
      Column("worst mode after", f"worst@{STEPS}", 2),
      Column("updates before", "updates_before", 0),
      Column("updates", "updates", 0),
    ),
    claims=small_claims if small else claims,
    notes=NOTES,
    paper=PAPER,
    draw=functools.partial(draw, every=every["steps"] // every["looks"] // RATIO),
    seeds=2 if small else 4,
  )


def fill(recipe, seed):
  """Trains the initialisation, measures it, trains on by self-forcing, measures that on the way."""
  values, params = {"updates_before": 0}, None
  if recipe["before"]:
    ((stage, params),) = bench.stages(recipe["before"], seed)
    values["updates_before"] = bench.count(stage)["updates"]
  first = bench.start(recipe, "student", seed) if params is None else params
  looks = range(recipe["looks"])
  fitted = bench.train(recipe, seed, before=first)
  on_the_way = [first, *(jax.tree.map(lambda a, i=i: a[i], fitted.history) for i in looks)]
  curve = [bench.judge(recipe, p, seed, STEPS) for p in on_the_way]
  values |= {f"init_{key}@{STEPS}": value for key, value in curve[0].items()}
  values |= {f"curve_{key}": [c[key] for c in curve] for key in ("w2", "coverage")}
  values["early_w2"] = curve[max(len(looks) // 10, 1)]["w2"]
  return values | bench.count(recipe) | bench.judge_all(recipe, on_the_way[-1], seed)


def small_claims(results):
  """The one claim that needs no training: random weights are far away."""
  return [_less("TF", "none", f"init_w2@{STEPS}", "theory")]


def _less(a, b, metric, source, words="W2 after"):
  return Claim(
    f"{words}: {a} - {b}, below 0", source, lambda r: r[a][metric] - r[b][metric], high=0
  )


def claims(results):
  """The directions of Causal-rCM's table 5, frame-wise."""
  after, early, paper = f"w2@{STEPS}", "early_w2", "Causal-rCM, table 5, frame-wise"
  out = [_less("TF", "none", after, "Self-Forcing: the initialisation is decisive")]
  for name in ("TF-dCM", "TF-sCM"):
    out += [_less(name, other, after, paper) for other in ("DF", "TF", "TF-KD")]
  out += [_less(other, "DF-KD", after, f"{paper}: DF-KD is last") for other in ("DF", "TF")]
  out += [_less("TF-dCM", "TF-sCM", after, f"{paper}: 84.29 against 83.84")]
  out += [
    _less(name, "TF", early, "theory: a few-step student has less to learn", "W2 after a tenth")
    for name in ("TF-dCM", "TF-sCM")
  ]
  before = f"init_w2@{STEPS}"
  out += [
    _less("TF-sCM", "TF-dCM", before, "Causal-rCM, figure 6: sCM starts ahead", "W2 before"),
    _less(
      "TF-KD", "DF-KD", before, "Causal Forcing: KD of a whole-clip teacher blurs", "W2 before"
    ),
  ]
  return out


def draw(results, path, every):
  """W2 of rollouts over self-forcing updates, one curve an initialisation."""
  pictures.curves(
    {row: r["curve_w2"] for row, r in results.items()},
    every,
    path,
    panels=("",),
    ylabel="W2 of 4-step rollouts",
    xlabel="updates of the student by self-forcing",
    log=False,
  )


NOTES = """
Mixture video, frame after frame (chunk 1); 4-step rollouts at t = 1, 3/4, 1/2, 1/4 behind the
student's own frames: NFE 12 a video. Student: one MLP for a frame and the frames before it. DF, TF:
3000 updates of flow matching behind noisy, behind clean past frames; none: random weights. TF-KD,
TF-dCM, TF-sCM: 1000 more from TF, with TF as the teacher (causal; rates 1e-3, TF-dCM 3e-4). DF-KD:
1000 more from DF, with the exact whole-clip teacher. Then, for all alike, self-forcing: 500 updates
of the student and 1000 of the fake score on batches of 128, against the exact whole-clip teacher,
constant rates, moving average of the weights (decay 0.99). Past 100 to 150 updates most curves rise
again (picture), perhaps since one fake score sees the mixture of 1 to 4 steps. Seconds are those of
initialisation and self-forcing together; networks that several rows start from count for the first.
A small student on six numbers has little to drift; what the table can show is the order of
initialisations.
"""

PAPER = """
Causal-rCM (2606.25473), table 5, Wan2.1 1.3B, VBench total after 4-step self-forcing DMD (updates):

| initialisation | frame-wise | chunk-wise |
|---|---|---|
| DF | 83.11 (2000) | 84.80 (1500) |
| TF | 82.62 (1000) | 84.95 (1000) |
| DF-KD | 80.59 (2000) | 83.61 (1500) |
| TF-KD | 83.49 (1250) | 83.79 (1000) |
| TF-dCM | 84.29 (1200) | 84.33 (3200) |
| TF-sCM | 83.84 (1000) | 84.37 (1250) |

One seed, no intervals, checkpoints chosen by the score. There is no row "none".
"""
