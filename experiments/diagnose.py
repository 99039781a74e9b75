"""Draws how a run is doing: one page of curves, samples, and a verdict in words.

  python -m experiments.diagnose --workdir=runs/student
  python -m experiments.diagnose --workdir=runs/student,runs/healthy --out=results/compare

Works on runs that are finished, running, stopped, aborted or resumed. Writes diagnosis.png and
diagnosis.html (with the picture inside, so that it can be sent around) into the run's folder, or
--out with these suffixes. Several runs stand side by side on common scales. What the signals and
warnings mean: docs/diagnosis.md.
"""

import json
import pathlib
from typing import NamedTuple

from experiments import diagnose_page as page
from experiments import flags as shared
from vidstep.files import write_text
from vidstep.training.diagnosis import Diagnosis
from vidstep.training.log import METRICS, read_metrics

WORKDIR = shared.define_workdir("Folder of the run; several, separated by commas, are compared.")
OUT = shared.define_out("Where to write, without suffix; default WORKDIR/diagnosis.")


class Run(NamedTuple):
  """A run as the page shows it.

  Attributes:
    name: the folder's.
    state: where it stands, as half a sentence.
    diagnosis: the `Diagnosis` after its last step.
    picture: the file of its last samples, or None.
    clips: number of clips in it.
  """

  name: str
  state: str
  diagnosis: Diagnosis
  picture: pathlib.Path | None
  clips: int


def main(argv):
  del argv
  if not WORKDIR.value:
    raise ValueError("Which run? Give --workdir=runs/some_name.")
  folders = [pathlib.Path(name) for name in WORKDIR.value.split(",")]
  diagnose(folders, pathlib.Path(OUT.value) if OUT.value else folders[0] / "diagnosis")


def diagnose(folders, out):
  """Prints the verdicts of runs and writes `out`.png and `out`.html. Returns the two paths."""
  runs = [open_run(folder) for folder in folders]
  for run in runs:
    print("\n".join(page.verdict(run)) + "\n")
  picture, html = out.with_name(out.name + ".png"), out.with_name(out.name + ".html")
  out.parent.mkdir(parents=True, exist_ok=True)
  page.draw(runs, picture)
  write_text(html, page.html(runs, picture))
  print(f"{picture}\n{html}")
  return picture, html


def open_run(folder):
  """Reads what a run has logged so far and looks at it.

  Raises:
    FileNotFoundError: if the folder is no run of experiments.train.
    ValueError: if it has not finished a step.
  """
  folder = pathlib.Path(folder)
  if not (folder / METRICS).is_file():
    what = f"has no {METRICS}" if folder.is_dir() else "does not exist"
    raise FileNotFoundError(
      f"{folder} is no run: it {what}. Give the --workdir of experiments.train."
    )
  rows = read_metrics(folder)
  if not rows:
    raise ValueError(f"{folder} has not finished a step yet: {METRICS} is empty.")
  config = _config(folder)
  total = config.get("train", {}).get("steps")
  diagnosis = Diagnosis(rows, total=total)
  diagnosis.look()
  pictures = sorted((folder / "samples").glob("step_*.png"))
  state = _state(folder, rows[-1]["step"], total)
  picture = pictures[-1] if pictures else None
  clips = config.get("eval", {}).get("videos", 1)
  return Run(folder.absolute().name, state, diagnosis, picture, clips)


def _config(folder):
  """The resolved config of a run; empty if it was lost."""
  file = folder / "config.json"
  return json.loads(file.read_text()) if file.is_file() else {}


def _state(folder, step, total):
  dumped = folder / "nonfinite" / "metrics.json"
  if dumped.is_file() and json.loads(dumped.read_text())["step"] == step:
    return f"aborted at step {step}, which was not finite"
  if total is None:
    return f"at step {step}"
  return f"finished {step} steps" if step >= total else f"at step {step} of {total}"


if __name__ == "__main__":
  shared.run(main)
