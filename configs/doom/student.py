"""Doom world model, the student: the teacher distilled to two steps by distribution matching.

  python -m experiments.train --config=configs/doom/student.py --workdir=runs/demo/student

DMD2 without a GAN: generator, fake score and frozen teacher all start from the teacher's averaged
weights (runs/demo/teacher, made by teacher.py). Steps at t = 1 and 2/3; one step in three trains
the generator. `:gpu` belongs to the `:gpu` teacher.

Command above; two CPU cores: about 5 minutes. Expected: results/demo/table.md, where two steps of
the student are closer to real video than two of the teacher, at the motion of the teacher's fifty.
"""

from configs import common
from configs.doom.teacher import doom

TEACHER = "runs/demo/teacher:model:ema"


def get_config(arg="cpu"):
  """arg: "cpu" or "gpu"."""
  if arg not in ("cpu", "gpu"):
    raise ValueError(f'configs/doom/student.py:{arg}: choose "cpu" or "gpu".')
  config = common.base()
  doom(config, arg)
  config.objective = {"name": "dmd2", "times": (1.0, 2 / 3), "ratio": 3, "time": "uniform"}
  config.optim.update(b1=0.0, b2=0.99, warmup=20, schedule="linear", clip=1.0, ema="constant:0.98")
  steps = 900 if arg == "cpu" else 6000
  student, fake = (3e-4, 6e-4) if arg == "cpu" else (2e-5, 4e-5)
  config.nets.teacher = common.net(TEACHER)
  config.nets.student = common.net(TEACHER, optim={"lr": student})
  config.nets.fake = common.net(TEACHER, optim={"lr": fake})
  config.train.update(steps=steps, save_every=steps // 3, sample_every=steps // 3)
  config.eval.update(solver="consistency", steps=2, shift=2.0)  # t = 1, 2/3
  return config
