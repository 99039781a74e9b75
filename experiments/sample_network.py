"""Real videos above those that a run's network generates: what `sample --network` does."""

import dataclasses
import pathlib
import time

import jax
import numpy as np

from experiments import generate
from vidstep.data.video_io import grid, save_strip, save_video

FORMS = (".mp4", ".webp", ".gif", ".png")


@dataclasses.dataclass(frozen=True)
class Order:
  """What is asked for; None is what the run's config.eval says.

  Attributes:
    network: "workdir:role:ema".
    out: file to write.
    videos: how many.
    seed: of the noise.
    split: whose contexts and actions.
    solver: name in `vidstep.samplers.SOLVERS`.
    steps: of the solver.
    shift: time shift of the grid.
    guidance: w of v_uncond + w (v_cond - v_uncond).
  """

  network: str
  out: str
  videos: int
  seed: int
  split: str
  solver: str | None
  steps: int | None
  shift: float | None
  guidance: float | None


def draw(order: Order):
  """Makes the videos of an order and writes them, in one file.

  Raises:
    ValueError, FileNotFoundError: for what does not fit or is not there; one sentence.
  """
  out = pathlib.Path(order.out)
  if out.suffix not in FORMS:
    raise ValueError(f"--out={out} should end in one of {', '.join(FORMS)}.")
  if jax.process_count() > 1:
    raise ValueError("--network is for one process: start it once.")
  network = generate.open_network(order.network)
  setting = network.setting(
    solver=order.solver, steps=order.steps, shift=order.shift, guidance=order.guidance
  )
  clips = generate.held_out(network.config, order.videos, split=order.split)

  begin = time.perf_counter()
  batch = min(32, order.videos)
  new = generate.draw_videos(network, setting, clips, seed=order.seed, batch_size=batch)
  seconds = time.perf_counter() - begin
  real, context = clips["video"], clips["video"][:, : network.context]
  rows = {"real": real, setting.label: np.concatenate([context, new], axis=1)}
  label = {"made_by": f"vidstep with {network.reference}", "composite": True}
  if out.suffix == ".png":
    save_strip(out, rows, **label)
  else:
    save_video(out, grid(rows, columns=8), generate.frame_rate(network.config), **label)
  print(
    f"{out}: {order.videos} videos of {network.reference} by {setting.label} "
    f"({network.nfe(setting)} network evaluations), {seconds:.1f} s with compilation"
  )
