"""Which network to play: the one that was named, or a pipeline's student, trained if need be."""

import json
import pathlib
import subprocess
import sys

STAGE = "sf"  # of the pipeline: its student is what is played


def find(network, workdir, train=None):
  """The reference of the network to play; trains it if it is missing and `train` says how.

  Raises:
    ValueError: neither network nor workdir was given.
    FileNotFoundError: the network is not there.
  """
  if network:
    return network
  if not workdir:
    raise ValueError("Which world? Give --workdir=runs/world or --network=workdir:role:ema.")
  stage = pathlib.Path(workdir) / STAGE
  if not finished(stage):
    if not train:
      raise FileNotFoundError(
        f"There is no trained student in {stage}: `make play` trains one, or run python -m "
        f"experiments.pipeline --config=configs/doom/causal_rcm.py --workdir={workdir}"
      )
    make(train, workdir)
  return f"{stage}:student:ema"


def finished(stage):
  """Whether a run in this folder has come to the end of its steps."""
  config = stage / "config.json"
  if not config.exists():
    return False
  steps = json.loads(config.read_text())["train"]["steps"]
  saved = [int(path.name) for path in (stage / "checkpoints").glob("*") if path.name.isdigit()]
  return max(saved, default=0) >= steps


def make(config, workdir):
  """Runs a pipeline in a process of its own."""
  line = "=" * 100
  print(
    f"\n{line}\nThere is no world in {workdir} yet: it is trained now, once ({config}).\n"
    "On two CPU cores that takes about 20 minutes; if you interrupt it, the same command goes on.\n"
    f"{line}",
    flush=True,
  )
  words = ["-m", "experiments.pipeline", f"--config={config}", f"--workdir={workdir}"]
  if subprocess.run([sys.executable, *words], check=False).returncode:
    raise ValueError("The world was not trained: the message is above. The same command goes on.")
