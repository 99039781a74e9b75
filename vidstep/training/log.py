"""The metrics log: JSON lines always, TensorBoard events beside them, Weights & Biases if asked."""

import json
import pathlib

import numpy as np
from tensorboardX import SummaryWriter

from vidstep.files import write_text

METRICS = "metrics.jsonl"


class MetricsLog:
  """Writes one JSON object a step to `workdir/metrics.jsonl` and thins the rest.

  A resumed run cuts what an interrupted one wrote beyond `start`, so that every step is there once.

  Args:
    workdir: the run's folder.
    start: finished steps when this process begins.
    every: TensorBoard and W&B get every `every`-th step.
    wandb: W&B project name; None for none.
    config: the resolved config, for W&B.

  Raises:
    ValueError: if W&B is asked for and not installed.
  """

  def __init__(self, workdir, *, start=0, every=1, wandb=None, config=None):
    workdir = pathlib.Path(workdir)
    self._wandb = _start_wandb(wandb, workdir, config)
    path, self.every = workdir / METRICS, every
    if path.exists():
      kept = [line for line in read_metrics(workdir) if line["step"] <= start]
      write_text(path, "".join(json.dumps(line) + "\n" for line in kept))
    self._file = path.open("a", buffering=1)
    self._events = SummaryWriter(str(workdir / "events"), purge_step=start + 1)

  def write(self, step, values):
    """Records scalars of one step: floats, or anything that `float` takes.

    NaN and infinity are written as the strings "nan", "inf", "-inf": JSON has no word for them.
    """
    values = {name: float(value) for name, value in values.items()}
    plain = {k: v if np.isfinite(v) else str(v) for k, v in values.items()}
    self._file.write(json.dumps({"step": step, **plain}) + "\n")
    if step % self.every == 0:
      for name, value in values.items():
        self._events.add_scalar(name, value, step)
      if self._wandb:
        self._wandb.log(values, step=step)

  def image(self, step, name, pixels):
    """Records a picture, uint8 [H, W, 3]."""
    self._events.add_image(name, pixels, step, dataformats="HWC")
    if self._wandb:
      import wandb

      self._wandb.log({name: wandb.Image(pixels)}, step=step)

  def close(self):
    """Flushes and closes everything."""
    self._file.close()
    self._events.close()
    if self._wandb:
      self._wandb.finish()


def read_metrics(workdir):
  """The log as a list of dicts, one a step. A last line that a kill cut short is dropped."""
  lines = []
  with (pathlib.Path(workdir) / METRICS).open() as file:
    for line in file:
      try:
        lines.append(json.loads(line))
      except json.JSONDecodeError:
        break
  return lines


def _start_wandb(project, workdir, config):
  if not project:
    return None
  try:
    import wandb
  except ImportError as e:
    raise ValueError("--wandb needs Weights & Biases: `pip install wandb`, or drop --wandb.") from e
  name = workdir.absolute().name
  return wandb.init(project=project, name=name, dir=str(workdir), config=config, resume="allow")
