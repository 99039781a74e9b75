"""Samples a trained network and writes videos: real above generated, side by side.

  python -m experiments.sample --network=runs/demo/student:student:ema --out=samples.mp4
  python -m experiments.sample --network=runs/demo/teacher:model:ema --solver=dpmpp_2m --steps=8

Contexts and actions are those of held-out clips. Solver, steps, shift, guidance and times default
to what the run's own config.eval says. The suffix of --out chooses the form: .mp4, .webp, .gif, or
.png for a film strip of the first video.
"""

import pathlib
import time

import numpy as np
from absl import flags

from experiments import flags as shared
from experiments import generate
from vidstep.data.video_io import grid, save_strip, save_video
from vidstep.samplers import SOLVERS

NETWORK = flags.DEFINE_string("network", None, 'Which network: "workdir:role:ema", or "...@step".')
OUT = shared.define_out("File to write.", "samples.mp4")
VIDEOS = flags.DEFINE_integer("videos", 8, "How many.", lower_bound=1)
SEED = flags.DEFINE_integer("seed", 0, "Of the noise.")
SOLVER = flags.DEFINE_enum("solver", None, sorted(SOLVERS), "ODE solver or consistency sampling.")
STEPS = flags.DEFINE_integer("steps", None, "Steps of the solver.")
SHIFT = flags.DEFINE_float("shift", None, "Time shift of the grid.")
GUIDANCE = flags.DEFINE_float("guidance", None, "v_uncond + w (v_cond - v_uncond): 1 is none.")
SPLIT = flags.DEFINE_string("split", "test", "Whose contexts and actions.")
FORMS = (".mp4", ".webp", ".gif", ".png")


def main(argv):
  del argv
  if not NETWORK.value:
    raise ValueError("Which network? Give --network=workdir:role:ema, such as runs/x:model:ema.")
  out = pathlib.Path(OUT.value)
  if out.suffix not in FORMS:
    raise ValueError(f"--out={out} should end in one of {', '.join(FORMS)}.")
  network = generate.open_network(NETWORK.value)
  setting = network.setting(
    solver=SOLVER.value, steps=STEPS.value, shift=SHIFT.value, guidance=GUIDANCE.value
  )
  clips = generate.held_out(network.config, VIDEOS.value, split=SPLIT.value)

  begin = time.perf_counter()
  batch = min(32, VIDEOS.value)
  new = generate.draw_videos(network, setting, clips, seed=SEED.value, batch_size=batch)
  seconds = time.perf_counter() - begin
  real, context = clips["video"], clips["video"][:, : network.context]
  rows = {"real": real, setting.label: np.concatenate([context, new], axis=1)}
  if out.suffix == ".png":
    save_strip(out, rows)
  else:
    save_video(out, grid(rows, columns=8), generate.frame_rate(network.config))
  print(
    f"{out}: {VIDEOS.value} videos of {network.reference} by {setting.label} "
    f"({network.nfe(setting)} network evaluations), {seconds:.1f} s with compilation"
  )


if __name__ == "__main__":
  shared.run(main)
