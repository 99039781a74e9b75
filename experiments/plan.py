"""Says whether a training run fits a machine, and how fast it can be there: before there is one.

  python -m experiments.plan --config=configs/wan/tf_scm.py:14b --machine=v5p-128 \\
    --config.mesh.fsdp=32 --config.mesh.sequence=2 --config.mesh.rules=fsdp_sequence

Compiles the training step that experiments.train would run, without weights, data or the machine,
and prints the memory of one device, its operations, what it sends, and the least time of a step
(docs/plan.md). TPUs need their compiler: `make plan`, or pip install libtpu. --search tries other
meshes and more recomputation until it fits; --out=plan.json keeps the numbers.
"""

import itertools
import os
import re
import sys

from absl import flags

from experiments import apart
from experiments import flags as shared
from experiments.plan_step import CONFIG, LOOPS, MACHINE
from vidstep.files import write_json
from vidstep.metrics.machines import machine as machine_of
from vidstep.parallel.topology import TPU_SETTINGS

SEARCH = flags.DEFINE_bool("search", False, "Try other meshes and remat until the step fits.")
OUT = shared.define_out("File for the numbers, JSON.")
GIB = 2**30
# Matrix multiplies of the GPU compiler: its own are chosen by timing them, which needs the GPU.
_NO_TRITON = "--xla_gpu_enable_triton_gemm=false"


def main(argv):
  del argv
  if CONFIG.value is None:
    raise ValueError("Which experiment? Give --config=configs/....py (see configs/).")
  given = [arg for arg in sys.argv[1:] if re.match(r"--?config\b", arg)]
  given.append(f"--loops={LOOPS.value}")
  tried = []
  for changes in candidates(CONFIG.value, MACHINE.value) if SEARCH.value else [()]:
    try:
      record = plan(given + list(changes), MACHINE.value)
    except ValueError as reason:
      if not changes:
        raise
      print(f"{' '.join(changes)}\n  is refused: {reason}\n", flush=True)
      continue
    tried.append({"changes": list(changes)} | record)
    print(f"{' '.join(changes)}\n{text(record)}\n", flush=True)
    if fits(record):
      break
  if OUT.value:
    write_json(OUT.value, tried)


def plan(arguments, machine):
  """The record of `experiments.plan_step`, made in a process of its own.

  Args:
    arguments: "--config=...", its overrides and other flags.
    machine: a name of `vidstep.metrics.machines`.

  Raises:
    ValueError: with the sentence that it ended with; a compiler that broke says where.
  """
  one = machine_of(machine)
  env = os.environ | TPU_SETTINGS | {"JAX_PLATFORMS": "cpu"}
  count = f"--xla_force_host_platform_device_count={one.devices}"
  env["XLA_FLAGS"] = " ".join([os.environ.get("XLA_FLAGS", ""), count, _NO_TRITON]).strip()
  given = [*arguments, f"--machine={machine}", "--compilation_cache="]
  return apart.run("experiments.plan_step", given, env=env)


def candidates(config, machine):
  """Overrides to try, the given config first; then what costs more time and takes less memory."""
  yield ()
  devices, batch = machine_of(machine).devices, config.data.batch_size
  frugal = [r for r in ("nothing", "offload") if r != config.model.remat]
  for remat, sequence, parts in itertools.product([None, *frugal], (1, 2, 4, 8), (1, 2, 4)):
    samples = devices // sequence
    if devices % sequence or batch % (samples * parts):
      continue
    rules = "fsdp" if sequence == 1 else "fsdp_sequence"
    changes = {
      "mesh.data": 1,
      "mesh.fsdp": samples,
      "mesh.sequence": sequence,
      "mesh.tensor": 1,
      "mesh.rules": rules,
      "train.accumulate": parts,
    }
    changes |= {"model.remat": remat} if remat else {}
    yield tuple(f"--config.{key}={value}" for key, value in changes.items())


# --- reading a record -----------------------------------------------------------------------------
def fits(record):
  """Whether every kind of step does."""
  return all(step["fits"] for step in record["steps"])


def peak(record):
  """Bytes of the largest kind of step on a device; None if a compiler refused without a number."""
  totals = [step.get("total") for step in record["steps"]]
  return None if None in totals else max(totals)


def pace(record):
  """Means over the steps of a run: least seconds a step, model FLOP/s utilisation, what bounds.

  None if a kind of step does not compile.
  """
  steps = record["steps"]
  if any("seconds" not in step for step in steps):
    return None
  mean = lambda value: sum(step["share"] * value(step) for step in steps)
  seconds = mean(lambda step: step["seconds"]["bound"])
  useful, all_of_them = (mean(lambda step, k=k: step[k]) for k in ("model_flops", "flops"))
  flops = machine_of(record["machine"]).chip.flops
  longest = max(steps, key=lambda step: step["share"] * step["seconds"]["bound"])
  return {
    "seconds": seconds,
    "serial": mean(lambda step: step["seconds"]["serial"]),
    "mfu": useful / seconds / flops,
    "hfu": all_of_them / seconds / flops,
    "bound": longest["bound"],
  }


def text(record):
  """A record for people."""
  machine = machine_of(record["machine"])
  mesh = " x ".join(f"{axis} {size}" for axis, size in record["mesh"].items() if size > 1)
  lines = [
    f"{record['machine']}: {machine.devices} devices ({mesh or 'one'}), rules {record['rules']}, "
    f"batch {record['batch']} in {record['accumulate']} part(s), remat {record['remat']}",
    f"attention {record['attention']}; {COMPILERS[record['compiler']]}",
    "held by one device between steps, GiB",
  ]
  lines += [f"  {size / GIB:9.3g}  {name}" for name, size in record["held"].items()]
  lines.append(f"  {sum(record['held'].values()) / GIB:9.3g}  in all")
  for step in record["steps"]:
    lines += _step(step, machine)
  if (mean := pace(record)) is not None:
    lines.append(
      f"a step of the run takes {mean['seconds']:.3g} s or more ({mean['serial']:.3g} s if nothing "
      f"overlaps): bound by {mean['bound']}, at most {mean['mfu']:.1%} of the peak (MFU)"
    )
  verdict = "fits" if fits(record) else "does not fit"
  return "\n".join([*lines, f"{verdict} {machine.chip.memory / GIB:.1f} GiB"])


COMPILERS = {
  "compiler": "compiled by the machine's own compiler",
  "estimate": "an ESTIMATE: compiled for simulated CPU devices",
}


def _step(step, machine):
  """Lines about one kind of step."""
  yield f"step of {', '.join(step['roles'])} ({step['share']:.0%} of the steps)"
  total = f"{step['total'] / GIB:.3g}" if "total" in step else "unknown"
  verdict = "fits" if step["fits"] else "does NOT fit"
  yield f"  {total:>9}  GiB while it runs, of {machine.chip.memory / GIB:.1f}: {verdict}"
  all_of_them, useful = (f"{step[key] / 1e12:.3g}" for key in ("flops", "model_flops"))
  yield f"  {all_of_them:>9}  TFLOP on one device, {useful} without remat"
  if "seconds" not in step:
    yield f"  {step['error']}"
    return
  yield f"  {step['temporary'] / GIB:9.3g}  GiB of it activations and temporaries"
  for kind, size in sorted(step["sent"].items(), key=lambda item: -item[1]):
    yield f"  {size / 1e9:9.3g}  GB sent by {step['collectives'][kind]:.0f} {kind}"
  for name in ("compute", "memory", "links", "network"):
    if seconds := step["seconds"][name]:
      yield f"  {seconds:9.3g}  s {name}{' (bounds)' if name == step['bound'] else ''}"
  yield from (f"  note: {note}" for note in step["notes"])


if __name__ == "__main__":
  shared.run(main)
