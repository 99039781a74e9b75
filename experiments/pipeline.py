"""Runs the stages of an experiment one after the other: each is a command you could type yourself.

  python -m experiments.pipeline --config=configs/doom/demo.py --workdir=runs/demo

Every stage reuses or resumes what it finds, so the same command continues after an interruption.
--stages=teacher,sweep runs some of them only; --dry_run prints the commands.
"""

import pathlib
import shlex
import subprocess
import sys
import time

from absl import flags
from tqdm import tqdm

from configs import common
from experiments import flags as shared
from vidstep.files import write_json

CONFIG = shared.define_config(common.pipeline)
WORKDIR = shared.define_workdir("Folder of all stages: {workdir} in the commands.")
STAGES = flags.DEFINE_list("stages", None, "Run these stages only, by name.")
DRY_RUN = flags.DEFINE_bool("dry_run", False, "Print the commands and stop.")


def main(argv):
  del argv
  if CONFIG.value is None or not WORKDIR.value:
    raise ValueError("Give --config=configs/.../demo.py and --workdir=runs/some_name.")
  stages = select(CONFIG.value.stages, STAGES.value)
  commands = {s["name"]: command(s["run"], WORKDIR.value) for s in stages}
  if DRY_RUN.value:
    for name, words in commands.items():
      print(f"{name:10s} python {shlex.join(words)}")
    return
  run(stages, commands, pathlib.Path(WORKDIR.value))


def select(stages, names):
  """The stages called `names`, in the order of the pipeline; all for None."""
  known = [s["name"] for s in stages]
  for name in names or ():
    if name not in known:
      raise ValueError(f"There is no stage {name!r}: this pipeline has {', '.join(known)}.")
  return [s for s in stages if names is None or s["name"] in names]


def command(run, workdir):
  """A stage's words after `python`: {workdir} filled in."""
  return ["-m", *(word.format(workdir=workdir) for word in shlex.split(run))]


def run(stages, commands, workdir):
  """Runs all; stops at the first that fails. Writes what each took to workdir/pipeline.json."""
  workdir.mkdir(parents=True, exist_ok=True)
  begin, taken = time.perf_counter(), {}
  expected = sum(s["minutes"] for s in stages)
  for i, stage in enumerate(stages):
    so_far = (time.perf_counter() - begin) / 60
    left = sum(s["minutes"] for s in stages[i:])
    _banner(
      f"[{i + 1}/{len(stages)}] {stage['title']}",
      f"{so_far:.1f} min so far, about {left:.0f} of {expected:.0f} min to go on two cores",
      "python " + shlex.join(commands[stage["name"]]),
    )
    start = time.perf_counter()
    status = subprocess.run([sys.executable, *commands[stage["name"]]], check=False).returncode
    if status:
      raise ValueError(
        f"Stage {stage['name']!r} ended with status {status}; its message is above. The same "
        "command goes on from here."
      )
    taken[stage["name"]] = round(time.perf_counter() - start, 1)
    write_json(workdir / "pipeline.json", taken)
  minutes = sum(taken.values()) / 60
  each = ", ".join(f"{name} {seconds:.0f} s" for name, seconds in taken.items())
  _banner(f"Done in {minutes:.1f} min", each)


def _banner(*lines):
  tqdm.write("\n" + "-" * 100)
  for line in lines:
    tqdm.write(line)
  tqdm.write("-" * 100)


if __name__ == "__main__":
  shared.run(main)
