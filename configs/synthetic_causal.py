"""Smoke test of the causal objectives: moving shapes, a frame at a time, stage after stage.

  python -m experiments.train --config=configs/synthetic.py --workdir=runs/synthetic
  python -m experiments.train --config=configs/synthetic_causal.py:tf --workdir=runs/causal/tf
  python -m experiments.train --config=configs/synthetic_causal.py:dcm --workdir=runs/causal/dcm
  python -m experiments.train --config=configs/synthetic_causal.py:self --workdir=runs/causal/self

That is Causal-rCM and Causal Forcing in small: a teacher that sees the whole clip, made causal by
teacher forcing (tf), distilled to two steps behind true frames (dcm), then behind the student's own
(self, scored by the first). The others:

  :df       diffusion forcing instead of tf
  :scm      continuous-time instead of discrete consistency, from tf
  :causvid  distribution matching of jumps from noised data, from df

Hardware: two CPU cores. Time: a few minutes a stage, much of it compilation. Expected: the loss of
tf and df falls from 1.0 to about 0.1, pictures show the colours of the scene under grain, as those
of configs/synthetic.py; the losses of the students stay finite (200 steps make no good model).
`:tf,tiny` and so on stop after 8 steps: for tests.
"""

from configs import synthetic
from configs.common import net

STAGES = ("tf", "df", "dcm", "scm", "self", "causvid")
TIMES = (1.0, 0.6)


def get_config(arg="tf"):
  """The config of a stage; arg is one of `STAGES`, with ",tiny" for tests."""
  stage, _, size = arg.partition(",")
  if stage not in STAGES:
    raise ValueError(f"configs/synthetic_causal.py:{arg}: choose one of {', '.join(STAGES)}.")
  config = synthetic.get_config(size)
  config.causal.chunk = 1
  config.causal.forcing = {"df": "diffusion", "causvid": "diffusion", "self": None}.get(
    stage, "teacher"
  )
  if stage in ("tf", "df"):
    return config

  del config.nets["model"]
  config.eval.update(solver="consistency", steps=2, times=TIMES[1:])
  if stage in ("dcm", "scm"):
    config.nets.teacher = net("runs/causal/tf:model:ema")
    config.nets.student = net("runs/causal/tf:model:ema")
    config.objective = {"name": stage, **({"steps": 16} if stage == "dcm" else {"warmup": 50})}
    return config

  start = "runs/causal/dcm:student:ema" if stage == "self" else "runs/causal/df:model:ema"
  config.nets.teacher = net("runs/synthetic:model:ema")
  config.nets.fake = net("runs/synthetic:model:ema", optim={"lr": 5e-4})
  config.nets.student = net(start, optim={"lr": 2e-4})
  name = "self_forcing" if stage == "self" else stage
  config.objective = {"name": name, "times": TIMES, "ratio": 3, "time": "uniform"}
  return config
