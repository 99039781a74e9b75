"""Doom world model: any objective of the library, ready for a GPU. **Never run at either size.**

  python -m experiments.train --config=configs/doom/objective.py:scm,gpu --workdir=runs/doom/scm

The rows of `experiments.reproduce --table=objectives` and `causal_rcm_init` on real frames and
actions. "name,size": a name of `vidstep.losses.OBJECTIVES`, or a stage of Causal-rCM (`STAGES`
below); size "cpu" or "gpu" as in teacher.py, whose data, codec and network these share. Times and
learning rates are those of teacher.py and student.py where they fit, else the papers'.

Runs read others, in runs/: the teacher runs/demo/teacher (`make demo`, or SIZE=gpu); `tcm` reads
runs/doom/dcm, the causal stages runs/doom/tf and runs/doom/df, `self_forcing` what it starts from
(runs/doom/tf_dcm; --config.nets.student.init=runs/doom/tf:model:ema and so on for the other rows
of causal_rcm_init). Judge them by experiments.evaluate: distance, motion, drift, diversity.
"""

from configs import common
from configs.doom.teacher import doom

TEACHER = "runs/demo/teacher:model:ema"
CAUSAL = "runs/doom/tf:model:ema"
TIMES = (1.0, 0.75, 0.5, 0.25)
FEW = {"times": TIMES}
MATCHING = {**FEW, "ratio": 4, "time": "uniform"}

# name -> (objective, settings): what each objective is given; see `get_config`.
ONE_NETWORK = {
  "flow_matching": {"drop": 0.1},
  "cm": {},
  "sct": {"norm": "none"},
  "mean_flow": {"time": "uniform", "power": 0.0, "equal": 0.5, "zero": 0.25},
}
DISTILLED = {
  "kd": FEW,
  "dcm": {},
  "tcm": {"source": "teacher", "distance": "mse"},
  "scm": {"warmup": 200},
  "flow_map": {"time": "uniform", "power": 0.5, "c": 0.01},
  "shortcut": {"source": "teacher"},
  "progressive": {"steps": 32},
  "ladd": {**FEW, "ratio": 2},
}
MATCHED = {
  "dmd": {"ratio": 4, "time": "uniform"},
  "dmd2": MATCHING,
  "dmd2_gan": MATCHING,
  "f_distill": {**MATCHING, "times": (1.0,)},
  "sid": MATCHING,
  "rcm": {**FEW, "ratio": 4, "warmup": 200},
  "causvid": MATCHING,
  "self_forcing": MATCHING,
  "self_forcing_gan": MATCHING,
  "long_tuning": {**MATCHING, "longest": 120},
}
# Causal-rCM's first stages: label -> (objective, settings, forcing, teacher).
STAGES = {
  "tf": ("flow_matching", {"weight": "bell"}, "teacher", None),
  "df": ("flow_matching", {}, "diffusion", None),
  "df_kd": ("kd", FEW, "diffusion", TEACHER),
  "tf_kd": ("kd", FEW, "teacher", CAUSAL),
  "tf_dcm": ("dcm", {}, "teacher", CAUSAL),
  "tf_scm": ("scm", {"warmup": 200}, "teacher", CAUSAL),
}
TWO_TIMES = ("mean_flow", "flow_map", "shortcut")
CAUSAL_STUDENTS = ("causvid", "self_forcing", "self_forcing_gan", "long_tuning")


def get_config(arg="scm,cpu"):
  """arg: "name,size", a name of an objective or of `STAGES`, and "cpu" or "gpu" (cpu if left out).

  Raises:
    ValueError: for names that do not exist.
  """
  label, _, size = arg.partition(",")
  size = size or "cpu"
  known = [*ONE_NETWORK, *DISTILLED, *MATCHED, *STAGES]
  if label not in known or size not in ("cpu", "gpu"):
    raise ValueError(
      f"configs/doom/objective.py:{arg}: write name,size with a size of cpu or gpu and a name out "
      f"of {', '.join(known)}."
    )
  config = common.base()
  doom(config, size)
  small = size == "cpu"
  if label in STAGES:
    name, options, forcing, teacher = STAGES[label]
    config.causal.update(chunk=1, forcing=forcing)
  else:
    name, options = label, {**ONE_NETWORK, **DISTILLED, **MATCHED}[label]
    teacher, forcing = TEACHER, None
  config.objective = {"name": name, **options}
  if name in CAUSAL_STUDENTS:
    config.causal.update(chunk=1, forcing="diffusion" if name == "causvid" else None)
  if name == "long_tuning":
    config.causal.window = config.data.frames  # a bounded cache, however long the video
  config.model.second_time = name in TWO_TIMES
  _networks(config, label, name, teacher, small)
  _schedule(config, name, small)
  if name == "dmd" or config.objective.get("times") == (1.0,):
    config.eval.update(steps=1, times=())
  return config


def _networks(config, label, name, teacher, small):
  """Who learns at which rate from whose weights, and who is only read."""
  fast, slow = (3e-4, 6e-4) if small else (2e-5, 4e-5)
  if name in ONE_NETWORK:
    config.nets.model = common.net()
    return
  start = {
    "causvid": "runs/doom/df:model:ema",
    "self_forcing": "runs/doom/tf_dcm:student:ema",
    "self_forcing_gan": "runs/doom/tf_dcm:student:ema",
    "long_tuning": "runs/doom/self_forcing:student:ema",
    "tcm": "runs/doom/dcm:student:ema",
    "df_kd": "runs/doom/df:model:ema",
  }.get(label, CAUSAL if label in STAGES else TEACHER)
  # A teacher with one time has no weights for the second: such students start from scratch.
  init = None if name in TWO_TIMES else start
  config.nets.student = common.net(init, optim={"lr": fast})
  config.nets.teacher = common.net(teacher)
  if name == "tcm":
    config.nets.stage_one = common.net(start)
  if name in MATCHED:
    config.nets.fake = common.net(TEACHER, optim={"lr": slow})
  if name in ("dmd2_gan", "f_distill", "self_forcing_gan", "ladd"):
    config.nets.critic = common.net(optim={"lr": slow})


def _schedule(config, name, small):
  """Steps, averages and sampling."""
  from_scratch = name in ONE_NETWORK or name in TWO_TIMES
  steps = 3000 if small else 12_000
  if from_scratch:
    config.optim.update(lr=3e-3 if small else 3e-4, warmup=50 if small else 500, clip=1.0)
    config.optim.update(schedule="linear", ema="power:0.1")
  else:
    steps //= 2
    # Normalised tangents want no clipping (rCM); momentum 0 as in all of the papers.
    config.optim.update(b1=0.0, b2=0.99, warmup=20, schedule="linear", ema="constant:0.98")
    config.optim.clip = 0.0 if name in ("scm", "rcm") else 1.0
  config.train.update(steps=steps, save_every=steps // 3, sample_every=steps // 3)
  if name in TWO_TIMES:
    config.eval.update(solver="flow_map", steps=4)
    if name != "mean_flow":  # distilled: its own rate, as one that starts from scratch
      config.nets.student.optim.lr = config.optim.lr
  elif name in ("flow_matching", "progressive"):
    config.eval.update(solver="euler", steps=50 if name == "flow_matching" else 32)
  else:
    config.eval.update(solver="consistency", steps=4, times=TIMES[1:])
