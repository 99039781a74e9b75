"""Wan in few steps behind true chunks: TF-sCM, the continuous-time second stage of Causal-rCM.

  python -m experiments.train --config=configs/wan/tf_scm.py:14b,c3 \\
    --config.data.path=datasets/wan --workdir=runs/wan/scm

As tf_dcm.py, with the derivative along the teacher's trajectory in place of its steps: a tenth of
the updates. Argument: size of the causal teacher, 14b (default), 1.3b or tiny, and c1 or c3
(default). Hyperparameters: Table 3, column TF-sCM: log sigma ~ N(-0.8, 1.6^2), guidance 3, the
derivative faded in over 1000 steps, the tangent of unit norm over all elements.

Data, hardware and memory: as tf_dcm.py; a step costs a tangent more. Not run here.
"""

from configs.wan import recipe
from configs.wan.tf_dcm import behind_data


def get_config(arg=None):
  """The config; arg: see above."""
  size, chunk, _ = recipe.parse(arg, default="14b")
  config = behind_data(size, chunk)
  config.objective = {
    "name": "scm", "time": "lognormal:-0.8,1.6", "guidance": 3.0, "warmup": 1000, "norm": "l2",
    "scale": 100.0 * recipe.elements(config),
  }  # fmt: skip
  config.train.steps = 4 if size == "tiny" else 1000
  return config
