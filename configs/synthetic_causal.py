"""Smoke test of the causal objectives: moving shapes, a frame at a time, stage after stage.

  python -m experiments.train --config=configs/synthetic.py --workdir=runs/synthetic
  python -m experiments.train --config=configs/synthetic_causal.py:tf --workdir=runs/causal/tf
  python -m experiments.train --config=configs/synthetic_causal.py:dcm --workdir=runs/causal/dcm
  python -m experiments.train --config=configs/synthetic_causal.py:self --workdir=runs/causal/self
  python -m experiments.train --config=configs/synthetic_causal.py:long --workdir=runs/causal/long

A teacher that sees the whole clip, made causal by teacher forcing (tf), distilled to two steps
behind true frames (dcm), then behind the student's own (self, scored by the first), then along
videos that go on (long). Every stage writes runs/causal/<its name>. The recipes, in small:

  Causal-rCM       tf -> dcm or scm -> self; the few-step students of its Table 4 are
    :self4           4 steps, t = 1, 15/16, 5/6, 5/8
    :self2           4 steps in the first chunk, 2 in the others, t = 1, 5/6
    :self2_noisy     the same at t = 1, 5/8, and later chunks read what the last step computed:
                     2 forwards a chunk instead of 3
    :self1           4 steps in the first chunk, 1 in the others
  Causal Forcing   tf -> dcm (causal consistency distillation) or kd (the causal teacher's ODE)
                   -> self
  Self-Forcing     df -> ode (the whole-clip teacher's ODE) -> self
  CausVid          df -> ode -> causvid, distribution matching of jumps from noised data
  LongLive         ... -> self -> long, with a window: --config.causal.window=4 all along

`self` and its like start from runs/causal/dcm, `causvid` from runs/causal/df; another start is
--config.nets.student.init=runs/causal/ode:student:ema. They are frame-wise; chunk-wise is
--config.causal.chunk=2 (and causal.first=1 for a first chunk of one frame) in all stages.

Hardware: two CPU cores. Time: a few minutes a stage, much of it compilation. Expected: the loss of
tf and df falls from 1.0 to about 0.1, pictures show the colours of the scene under grain, as those
of configs/synthetic.py; the losses of the students stay finite (200 steps make no good model).
`:tf,tiny` and so on stop after 8 steps: for tests.
"""

from configs import synthetic
from configs.common import net

TIMES = (1.0, 0.6)
CAUSAL_RCM = (1.0, 15 / 16, 5 / 6, 5 / 8)
# Students of Causal-rCM's Table 4: times of the chunks after the first, what these read.
FEW = {
  "self4": (CAUSAL_RCM, None),
  "self2": ((1.0, 5 / 6), None),
  "self2_noisy": ((1.0, 5 / 8), "last_step"),
  "self1": ((1.0,), None),
}
ADAPTED = ("tf", "df")
BEHIND_DATA = ("dcm", "scm", "kd", "ode")
ON_POLICY = ("self", *FEW, "causvid", "long")
STAGES = (*ADAPTED, *BEHIND_DATA, *ON_POLICY)
OBJECTIVES = {"ode": "kd", "long": "long_tuning", **dict.fromkeys(("self", *FEW), "self_forcing")}


def get_config(arg="tf"):
  """The config of a stage; arg is one of `STAGES`, with ",tiny" for tests."""
  stage, _, size = arg.partition(",")
  if stage not in STAGES:
    raise ValueError(f"configs/synthetic_causal.py:{arg}: choose one of {', '.join(STAGES)}.")
  config = synthetic.get_config(size)
  diffusion = ("df", "ode", "causvid")
  forcing = "diffusion" if stage in diffusion else None if stage in ON_POLICY else "teacher"
  config.causal.update(chunk=1, forcing=forcing)
  if stage in ADAPTED:
    return config

  del config.nets["model"]
  config.eval.update(solver="consistency", steps=2, times=TIMES[1:])
  config.objective = {"name": OBJECTIVES.get(stage, stage)}
  start = "df" if stage in diffusion else "tf"
  if stage in BEHIND_DATA:
    teacher = "runs/synthetic:model:ema" if stage == "ode" else "runs/causal/tf:model:ema"
    config.nets.teacher = net(teacher)
    config.nets.student = net(f"runs/causal/{start}:model:ema")
    times = {"times": TIMES, "steps": 16}
    own = {"dcm": {"steps": 16}, "scm": {"warmup": 50}, "kd": times, "ode": times}
    config.objective.update(own[stage])
    return config

  starts = {"causvid": "df:model", "long": "self:student"}
  config.nets.student = net(
    f"runs/causal/{starts.get(stage, 'dcm:student')}:ema", optim={"lr": 2e-4}
  )
  config.nets.teacher = net("runs/synthetic:model:ema")
  fake = "runs/causal/self:fake:ema" if stage == "long" else "runs/synthetic:model:ema"
  config.nets.fake = net(fake, optim={"lr": 5e-4})
  config.objective.update(times=TIMES, ratio=3, time="uniform")
  if stage == "long":
    config.objective.longest = 21  # three clips of seven frames behind one of context
  if stage in FEW:
    times, context = FEW[stage]
    first = CAUSAL_RCM if times != CAUSAL_RCM else ()
    config.objective.update(times=times, first_times=first)
    config.causal.context = context
    config.eval.update(steps=len(times), times=times[1:], first_times=first[1:])
  return config
