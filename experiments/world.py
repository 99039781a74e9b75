"""A world model on held-out episodes: fidelity, distributions, drift over 10 horizons, obedience.

  python -m experiments.world --config=configs/doom/world_eval.py --workdir=runs/world/table

Every row goes on from the same real frames under the recorded actions, with the same noise, and is
judged by: PSNR and LPIPS of the next frames; Frechet and kernel distances of free rollouts with the
real-against-real floor; drift of a long one; the actions that an inverse-dynamics model (trained on
real frames) reads off; and whether left and right, pressed in the same place, are told by the flow.
Finished rows are kept in workdir/cells, so an interrupted command goes on. Leaves in --workdir:
  table.md   the tables        world.json   every number        idm.npz   the reader of actions
  drift.png  metrics against time    picture.png   film strips with the keys drawn on
"""

import pathlib

from absl import flags

from configs import common
from experiments import flags as shared
from experiments.world_table import evaluate

CONFIG = shared.define_config(common.world)
WORKDIR = shared.define_workdir("Folder of the table; finished rows are reused.")
ROWS = shared.define_rows("Fill these rows only: numbers, from 1, or names.")
SMALL = flags.DEFINE_bool(
  "small", False, "A handful of clips of any length, no FVD: shows that it runs, and nothing else."
)


def main(argv):
  del argv
  if CONFIG.value is None or not WORKDIR.value:
    raise ValueError("Give --config=configs/doom/world_eval.py and --workdir=runs/world/table.")
  config = CONFIG.value.to_dict()
  if SMALL.value:
    config |= {"clips": 4, "next_clips": 8, "long_clips": 2, "latency_runs": 2, "i3d_frames": ()}
    config |= {"reader_steps": 200, "resamples": 50, "small": True}
  evaluate(config, pathlib.Path(WORKDIR.value), rows=ROWS.value or None)


if __name__ == "__main__":
  shared.run(main)
