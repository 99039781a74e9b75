"""Doom: how many steps? Teacher and student, two solvers, on one table.

  python -m experiments.sweep --config=configs/doom/sweep.py --workdir=runs/demo/sweep

Needs the runs of teacher.py and student.py. Two CPU cores: about 5 minutes. Expected: the student
at 2 steps is closer to real video than the teacher at 2 steps, which moves half as much as it
should; the student moves as much as the teacher at 50. Numbers: results/demo/table.md.
"""

from configs import common


def get_config(arg="cpu"):
  """arg: "cpu", or "gpu" for more videos, seeds and FVD."""
  config = common.sweep()
  config.networks = {
    "teacher": "runs/demo/teacher:model:ema",
    "student": "runs/demo/student:student:ema",
  }
  config.grid = (
    {"network": "teacher", "solver": "euler", "steps": (1, 2, 4, 8, 16, 50)},
    {"network": "teacher", "solver": "dpmpp_2m", "steps": (2, 4, 8)},
    {"network": "student", "solver": "consistency", "shift": 2.0, "steps": (1, 2, 4)},
  )
  config.compare = (("student consistency 2, shift 2", "teacher euler 2"),)
  config.picture = (
    "real",
    "teacher euler 50",
    "teacher euler 2",
    "student consistency 2, shift 2",
  )
  if arg == "gpu":
    config.update(videos=1024, seeds=(0, 1, 2), features=("alexnet", "i3d"), latency_runs=50)
  elif arg != "cpu":
    raise ValueError(f'configs/doom/sweep.py:{arg}: choose "cpu" or "gpu".')
  return config
