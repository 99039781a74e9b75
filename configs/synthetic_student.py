"""Moving shapes, one step: the smoke test distilled by distribution matching, easy to break.

  python -m experiments.train --config=configs/synthetic_student.py:teacher \
      --workdir=runs/shapes/teacher
  python -m experiments.train --config=configs/synthetic_student.py --workdir=runs/shapes/healthy
  python -m experiments.train --config=configs/synthetic_student.py \
      --workdir=runs/shapes/fake_stops \
      --config.nets.fake.optim.schedule=linear --config.nets.fake.optim.steps=60

Hardware: two CPU cores. Time: a minute each, some of it compilation. Expected: results/diagnosis,
where the second run is healthy and the third, whose fake score stops learning, collapses.
"""

from configs import common

TEACHER = "runs/shapes/teacher:model:ema"


def get_config(arg="student"):
  """arg: "teacher" or "student"."""
  if arg not in ("teacher", "student"):
    raise ValueError(f'configs/synthetic_student.py:{arg}: choose "teacher" or "student".')
  config = common.base()
  config.data.update(path="synthetic:clips=256,frames=4,size=16", batch_size=8, frames=4, context=1)
  config.model.update(dim=64, depth=2, prediction="x0")
  config.diagnose.every = 25
  if arg == "teacher":
    config.objective = {"name": "flow_matching", "weight": "bell"}
    config.optim.update(lr=2e-3, warmup=20, schedule="cosine", ema="constant:0.99")
    config.nets.model = common.net()
    config.train.update(steps=1500, save_every=500, sample_every=500)
    config.diagnose.every = 100
    return config
  config.objective = {"name": "dmd2", "times": (1.0,), "ratio": 3, "time": "uniform"}
  config.optim.update(b1=0.0, b2=0.99, warmup=20, ema="constant:0.95")
  config.nets.teacher = common.net(TEACHER)
  config.nets.student = common.net(TEACHER, optim={"lr": 3e-4})
  config.nets.fake = common.net(TEACHER, optim={"lr": 1e-3})
  config.train.update(steps=600, save_every=300, sample_every=200)
  config.eval.update(solver="consistency", steps=1)
  return config
