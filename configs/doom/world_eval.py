"""Doom as a world model: does it look like the game, for how long, and does it obey the keys?

  python -m experiments.world --config=configs/doom/world_eval.py --workdir=runs/world/table

Needs the stages of causal_rcm.py in runs/world (or --config.runs=...); --rows=... fills some rows.
Any other recording will do: docs/your_game.md.

Command above; two idle CPU cores: under 5 minutes, with FVD of a few rows at 12 clips (a floor of
hundreds: read it beside `real`). `:gpu`: 256 clips, FVD of every row at 16 and 32 frames.
Expected: results/world/table.md.
"""

from configs import common


def get_config(arg="cpu"):
  """arg: "cpu" or "gpu"."""
  if arg not in ("cpu", "gpu"):
    raise ValueError(f'configs/doom/world_eval.py:{arg}: choose "cpu" or "gpu".')
  config = common.world()
  config.networks = {
    "teacher": "{runs}/teacher:model:ema",
    "tf": "{runs}/tf:model:ema",
    "dcm": "{runs}/dcm:student:ema",
    "student": "{runs}/sf:student:ema",
  }
  few = {"network": "student", "solver": "consistency"}
  four = {"steps": 4, "times": (0.9, 0.75, 0.5)}  # students of two steps know 1 and 0.75
  config.rows = (
    {"name": "teacher 50", "network": "teacher", "solver": "euler", "steps": 50, "i3d": True},
    {"name": "teacher 4", "network": "teacher", "solver": "euler", "steps": 4},
    {"name": "teacher 2", "network": "teacher", "solver": "euler", "steps": 2},
    {"name": "causal teacher 16", "network": "tf", "solver": "euler", "steps": 16},
    {"name": "TF-dCM 2", "network": "dcm", "solver": "consistency", "steps": 2},
    {"name": "student 4", **few, **four},
    {"name": "student 2", **few, "steps": 2, "i3d": True},
    {"name": "student 1", **few, "steps": 1, "i3d": True},
    {"name": "student 2 noisy context", **few, "steps": 2, "context": "last_step"},
    {"name": "student 2 actions shifted by one", **few, "steps": 2, "late": 1},
  )
  config.picture = ("teacher 50", "teacher 2", "student 2")
  if arg == "gpu":
    config.update(clips=256, next_clips=512, long_clips=64, hold_clips=64, batch=64)
    config.update(reader_clips=4000, reader_steps=2000, latency_runs=50, i3d_frames=(16, 32))
    config.rows = tuple({**row, "i3d": True} for row in config.rows)
  return config
