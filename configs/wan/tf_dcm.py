"""Wan in few steps behind true chunks: TF-dCM, the simpler second stage of Causal-rCM.

  python -m experiments.train --config=configs/wan/tf_dcm.py:14b,c3 \\
    --config.data.path=datasets/wan --workdir=runs/wan/dcm

The 1.3B student starts from runs/wan/tf-1.3b, the causal teacher is runs/wan/tf-14b (both of
teacher_forcing.py). Argument: size of the teacher, 14b, 1.3b or tiny, and c1 or c3 (default).
Hyperparameters: Table 3, column TF-dCM: a grid of 48 steps shifted by 3, guidance 3.

Data: as teacher_forcing.py, with the embedded negative prompt beside it. Hardware and memory:
results/plan; the paper shards over 32 devices, 4 of which share a sequence. Expected: a student
that all depths of the next stage can start from. Not run here.
"""

from configs.common import net
from configs.wan import recipe


def get_config(arg=None):
  """The config; arg: see above."""
  size, chunk, _ = recipe.parse(arg, default="14b")
  config = behind_data(size, chunk)
  config.objective = {
    "name": "dcm", "steps": 48, "shift": 3.0, "guidance": 3.0, "scale": 100.0 * config.data.frames,
  }  # fmt: skip
  config.train.steps = 4 if size == "tiny" else 10_000
  return config


def behind_data(size, chunk):
  """What TF-dCM and TF-sCM share; `size` is the causal teacher's."""
  student = "tiny" if size == "tiny" else recipe.STUDENT
  config = recipe.base(student, chunk)
  config.causal.forcing = "teacher"
  made = lambda of: f"{recipe.runs(of)}/tf-{of}:model:ema"
  config.nets.student = net(made(student))
  config.nets.teacher = net(
    made(size), causal=True, model=recipe.fields(size), param_dtype="bfloat16"
  )
  config.optim.update(lr=2e-6, b1=0.0)
  config.eval.update(solver="consistency", steps=4, times=recipe.TIMES[1:])
  if size == "tiny":
    recipe.short(config)
  else:
    config.data.batch_size = 32
  return config
