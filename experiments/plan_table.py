"""The table of presets in results/plan: what fits where, row by row, and a picture of the memory.

  python -m experiments.plan_table                the rows that are missing, then the page
  python -m experiments.plan_table --rows=a,b     these anew
  python -m experiments.plan_table --page         the page alone

Rows are made one at a time (one compiles for minutes) and kept in plan.json, refusals too. Those of
TPUs are made where libtpu is installed, those of GPUs elsewhere: by the GPU's own compiler where
the CUDA plugin of jax is, else as an estimate.
"""

import importlib.util
import json
import pathlib
import time

from absl import flags

from experiments import flags as shared
from experiments import markdown, plan
from experiments.plan_picture import draw
from vidstep.files import write_json, write_text
from vidstep.metrics.machines import machine as machine_of

OUT = shared.define_out("Folder of plan.json, plan.md and plan.png.")
FOLDER = "results/plan"
ROWS = shared.define_rows("Rows to compile anew; without it those that are missing.")
PAGE = flags.DEFINE_bool("page", False, "Write the page from the rows there are, compile nothing.")

_TF, _SCM, _SF = (f"configs/wan/{name}.py" for name in ("teacher_forcing", "tf_scm", "sf_dmd"))
_TPU, _GPU = (f"--config.model.attention=pallas_{name}" for name in ("tpu", "gpu"))
_ROLLOUT = "--loops=1.5"  # 1 to 4 steps in turn, of which the last is no part of the loop
_PARTS = "--config.train.accumulate="
# Pixels in patches of the size of its codec's stand for latents: as many tokens.
_DOOM = (
  "--config.data.codec=pixel", "--config.data.latent_size=(64,64)", "--config.model.patch=(1,8,8)",
  "--config.model.action_dim=3",
)  # fmt: skip

# name -> (config, machine, further flags)
PRESETS = {
  "TF-sCM 14B v5p-64": (f"{_SCM}:14b", "v5p-64", (_TPU,)),
  "SF-DMD 14B v5p-128": (f"{_SF}:14b", "v5p-128", (_TPU, _ROLLOUT)),
  "TF 14B v5p-128": (f"{_TF}:14b", "v5p-128", (_TPU,)),
  "TF 1.3B v5p-128": (f"{_TF}:1.3b", "v5p-128", (_TPU,)),
  "TF-sCM 14B h200-32": (f"{_SCM}:14b", "h200-32", (_GPU,)),
  "TF-sCM 14B h200-32 plain": (f"{_SCM}:14b", "h200-32", ()),
  "SF-DMD 14B h200-64": (f"{_SF}:14b", "h200-64", (_ROLLOUT,)),
  "SF-DMD 14B h200-64 pallas": (f"{_SF}:14b", "h200-64", (_GPU, _ROLLOUT)),
  "SF-DMD 14B LoRA h200-8": (f"{_SF}:14b,lora", "h200-8", (_ROLLOUT, _PARTS + "8")),
  "TF 14B h100-64": (f"{_TF}:14b", "h100-64", (_GPU,)),
  "TF 14B h200-8": (f"{_TF}:14b", "h200-8", (_GPU, _PARTS + "8")),
  "TF 1.3B h100-32": (f"{_TF}:1.3b", "h100-32", (_GPU,)),
  "Doom DMD2 h100-1": ("configs/doom/student.py:gpu", "h100-1", _DOOM),
}


def main(argv):
  del argv
  out = pathlib.Path(OUT.value or FOLDER)
  kept = out / "plan.json"
  rows = json.loads(kept.read_text()) if kept.exists() else {}
  here = "tpu" if importlib.util.find_spec("libtpu") else "gpu"
  missing = [n for n, preset in PRESETS.items() if n not in rows and platform(preset) == here]
  wanted = ROWS.value or missing
  for name in [] if PAGE.value else wanted:
    if name not in PRESETS:
      raise ValueError(f"There is no row {name!r}: there are {', '.join(PRESETS)}.")
    rows[name] = fill(name)
    write_json(kept, rows)
    print(f"{name}: {rows[name].get('refused') or plan.text(rows[name])}\n", flush=True)
  rows = {name: rows[name] for name in PRESETS if name in rows}
  write_text(out / "plan.md", page(rows))
  draw(rows, out / "plan.png")


def platform(preset):
  """Of the preset's machine."""
  return machine_of(preset[1]).chip.platform


def fill(name):
  """The record of a preset, or {"refused": why}; with its command and the time it took."""
  config, machine, more = PRESETS[name]
  arguments = [f"--config={config}", *more]
  begin = time.perf_counter()
  try:
    record = plan.plan(arguments, machine)
  except ValueError as reason:
    record = {"refused": str(reason), "machine": machine}
  words = ["python -m experiments.plan", *arguments, f"--machine={machine}"]
  return record | {"command": " ".join(words), "minutes": (time.perf_counter() - begin) / 60}


# --- the page -------------------------------------------------------------------------------------
HEAD = """# What fits where

Training steps compiled for machines that were not there: `make plan`, read by
[docs/plan.md](../../docs/plan.md). Nothing here was run. "compiler" is the machine's own,
"estimate" the one for CPUs. Memory is that of one device and of the largest kind of step; "least
time" is a mean over the kinds of steps of a run, everything at its peak and overlapping.

![memory by part](plan.png)

"""
COLUMNS = (
  "preset", "machine", "mesh, batch", "attention", "by", "memory, GiB", "fits",
  "TFLOP a device (model's own)", "GB sent", "least time, s", "bound by", "MFU at most",
)  # fmt: skip


def page(rows):
  """The table for people: rows by name, then commands and what has to be known."""
  commands = [
    f"- {name} ({row['minutes']:.0f} min): `{row['command']}`" for name, row in rows.items()
  ]
  notes = [f"- {name}: {row['refused']}" for name, row in rows.items() if "refused" in row]
  for name, row in rows.items():
    steps = row.get("steps", [])
    notes += [f"- {name}: {s['error']}" for s in steps if "error" in s]
    notes += [f"- {name}: {note}." for note in sorted({n for s in steps for n in s["notes"]})]
  table = markdown.table(COLUMNS, [cells(name, row) for name, row in rows.items()])
  parts = [table, "Commands, and how long they took beside other work:", *commands]
  text = HEAD + parts[0] + "\n\n" + parts[1] + "\n\n" + "\n".join(parts[2:]) + "\n"
  if missing := [name for name in PRESETS if name not in rows]:
    text += f"\nNot compiled yet: {', '.join(missing)}.\n"
  return text + ("\nWhat to know:\n\n" + "\n".join(notes) + "\n" if notes else "")


def cells(name, row):
  """One line of the table."""
  if "refused" in row:
    return [name, row["machine"], *["-"] * 4, "refused", *["-"] * 5]
  mesh = " x ".join(f"{axis} {size}" for axis, size in row["mesh"].items() if size > 1)
  limit, taken = machine_of(row["machine"]).chip.memory, plan.peak(row)
  mean = lambda key: sum(step["share"] * key(step) for step in row["steps"])
  flops = [mean(lambda step, k=k: step[k]) / 1e12 for k in ("flops", "model_flops")]
  pace = plan.pace(row)
  sent = f"{mean(lambda step: sum(step['sent'].values())) / 1e9:.1f}" if pace else "-"
  return [
    name,
    row["machine"],
    f"{mesh or 'one device'}; {row['batch']}",
    row["attention"],
    row["compiler"],
    f"{taken / plan.GIB:.1f} of {limit / plan.GIB:.1f}" if taken else "unknown",
    "yes" if plan.fits(row) else "**no**",
    f"{flops[0]:.3g} ({flops[1]:.3g})",
    sent,
    *((f"{pace['seconds']:.3g}", pace["bound"], f"{pace['mfu']:.0%}") if pace else ("-",) * 3),
  ]


if __name__ == "__main__":
  shared.run(main)
