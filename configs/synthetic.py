"""Smoke test: flow matching on moving shapes that an action pushes; no data set, no accelerator.

  python -m experiments.train --config=configs/synthetic.py --workdir=runs/synthetic

Hardware: two CPU cores. Time: under a minute, some of it compilation. Expected: the loss falls from
1.0 to about 0.08 in 200 steps; pictures show floor and shapes under grain. `:tiny` is smaller still
and stops after 8 steps: the one for tests.
"""

from configs.common import base, net


def get_config(arg=None):
  """The config; arg is None or "tiny"."""
  if arg not in (None, "", "tiny"):
    raise ValueError(f'configs/synthetic.py knows the argument "tiny", not {arg!r}.')
  config = base()
  config.data.path = "synthetic"
  config.data.batch_size = 8
  config.data.frames = 4
  config.data.context = 1
  config.model.dim = 64
  config.model.depth = 2
  config.model.prediction = "x0"
  # x0-prediction has a velocity error of 1/t: the bell takes the ends of time out of the loss.
  config.objective = {"name": "flow_matching", "weight": "bell"}
  config.optim.warmup = 20
  config.optim.ema = "constant:0.99"
  config.nets.model = net()
  config.train.steps = 200
  config.train.save_every = 100
  config.train.sample_every = 100
  if arg == "tiny":
    config.model.dim = 32
    config.model.heads = 2
    config.model.depth = 1
    config.model.patch = (1, 8, 8)
    config.train.steps = 8
    config.train.save_every = 4
    config.train.sample_every = 0
  return config
