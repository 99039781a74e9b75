"""Wan made causal, stage 1 of Causal-rCM: each chunk is denoised behind the true ones before it.

  python -m experiments.train --config=configs/wan/teacher_forcing.py:1.3b,c3 \\
    --config.data.path=datasets/wan --workdir=runs/wan/tf-1.3b
  python -m experiments.train --config=configs/wan/teacher_forcing.py:14b,c3 \\
    --config.data.path=datasets/wan --workdir=runs/wan/tf-14b

Argument: a size, 1.3b, 14b or tiny (for tests), and c1 (frame-wise) or c3 (three latent frames a
chunk, the default), with a comma between. Hyperparameters: Table 3 of Causal-rCM, columns S1, with
its weight exp(-2 (t - 0.5)^2) - exp(-0.5). The prompt is never dropped. Diffusion forcing is
--config.causal.forcing=diffusion --config.objective.weight=None.

Data: latents that Wan 14B generates, 250,000 clips in the paper (experiments.synthesize). Hardware
and memory: results/plan; the paper shards weights over 4 (1.3b) and 32 devices (14b). Expected: a
network that streams in 50 steps, the teacher and the start of the next stage. Not run here.
"""

from configs.common import net
from configs.wan import recipe


def get_config(arg=None):
  """The config; arg: see above."""
  size, chunk, _ = recipe.parse(arg, default="1.3b")
  config = recipe.base(size, chunk)
  config.causal.forcing = "teacher"
  config.objective = {"name": "flow_matching", "time": "uniform:5", "weight": "bell"}
  config.nets.model = net(recipe.release(size))
  config.optim.lr = 1e-5
  config.train.steps = 30_000
  if size == "tiny":
    recipe.short(config)
  else:
    config.data.batch_size = {"1.3b": 256, "14b": 64}[size]
  return config
