"""Doom world model, the teacher: flow matching given two frames and the actions.

  python -m experiments.train --config=configs/doom/teacher.py --workdir=runs/demo/teacher

ViZDoom health_gathering at 32 x 32 and 17.5 frames a second: 2 frames and 8 actions in, 6 frames
out. Latents of the linear codec (4 x 4 pixels -> 24 channels), a 3M-parameter DiT.

Command above; two CPU cores: about 6 minutes. Expected: validation frames that continue the context
and turn with the keys; see results/demo for the table.

  --config=configs/doom/teacher.py:gpu is the one for a GPU: 64 x 64, 14 of 16 frames, 59M
parameters, bfloat16, batch 64. Not run yet.
"""

from configs import common


def get_config(arg="cpu"):
  """arg: "cpu" or "gpu"."""
  if arg not in ("cpu", "gpu"):
    raise ValueError(f'configs/doom/teacher.py:{arg}: choose "cpu" or "gpu".')
  config = common.base()
  doom(config, arg)
  config.objective = {"name": "flow_matching", "drop": 0.1}
  config.optim.update(schedule="linear", ema="power:0.1", clip=1.0)
  if arg == "cpu":
    config.optim.update(lr=3e-3, warmup=50)
    config.train.update(steps=3000, save_every=1000, sample_every=1000)
  else:
    config.optim.update(lr=3e-4, warmup=500)
    config.train.update(steps=12_000, save_every=3000, sample_every=3000)
  config.eval.update(solver="euler", steps=50)
  return config


def doom(config, arg):
  """Data and model, which teacher and students share."""
  config.data.update(path="runs/demo/data", codec="runs/demo/codec.npz", context=2)
  if arg == "cpu":
    config.data.update(batch_size=8, frames=8)
    config.model.update(dim=192, depth=6, heads=3, patch=(1, 2, 2))
  else:
    config.data.update(batch_size=64, frames=16)
    config.model.update(dim=640, depth=12, heads=10, patch=(1, 2, 2), dtype="bfloat16")
