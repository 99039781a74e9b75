"""Judges one network under one setting: distances with floor and intervals, motion, drift, latency.

  python -m experiments.evaluate --network=runs/demo/student:student:ema
  python -m experiments.evaluate --network=runs/demo/teacher:model:ema --steps=50 --features=i3d

Prints a summary and writes every number to --out. Contexts and actions come from the first clips of
the test split; the reference is other clips of it, so a perfect model reaches the floor, not 0.
"""

import dataclasses
import pathlib

from absl import flags

from experiments import flags as shared
from experiments import generate, judge
from vidstep.files import write_json
from vidstep.metrics.summary import DISTANCES
from vidstep.samplers import SOLVERS

NETWORK = flags.DEFINE_string("network", None, 'Which network: "workdir:role:ema", or "...@step".')
OUT = shared.define_out("JSON file to write; default: <workdir>/evaluation.json.")
VIDEOS = flags.DEFINE_integer("videos", 256, "Generated videos of each seed.", lower_bound=2)
SEEDS = flags.DEFINE_list("seeds", ["0"], "Seeds of the noise.")
FEATURES = flags.DEFINE_list("features", ["alexnet"], "alexnet (fast), i3d (FVD, slow) or both.")
RUNS = flags.DEFINE_integer("latency_runs", 10, "Timed runs at batch 1.", lower_bound=1)
SOLVER = flags.DEFINE_enum("solver", None, sorted(SOLVERS), "Default: config.eval of the run.")
STEPS = flags.DEFINE_integer("steps", None, "Steps of the solver.")
SHIFT = flags.DEFINE_float("shift", None, "Time shift of the grid.")
GUIDANCE = flags.DEFINE_float("guidance", None, "v_uncond + w (v_cond - v_uncond): 1 is none.")


def main(argv):
  del argv
  if not NETWORK.value:
    raise ValueError("Which network? Give --network=workdir:role:ema, such as runs/x:model:ema.")
  network = generate.open_network(NETWORK.value)
  setting = network.setting(
    solver=SOLVER.value, steps=STEPS.value, shift=SHIFT.value, guidance=GUIDANCE.value
  )
  bench = judge.make_bench(
    network,
    videos=VIDEOS.value,
    seeds=tuple(int(seed) for seed in SEEDS.value),
    features=tuple(FEATURES.value),
  )
  description, _ = judge.describe_network(network, setting, bench)
  result = judge.judge(description, bench)
  result |= {"latency": judge.time_network(network, setting, bench.clips, runs=RUNS.value)}
  result |= {"network": network.reference, "setting": dataclasses.asdict(setting)}
  workdir = pathlib.Path(NETWORK.value.split(":")[0])
  write_json(OUT.value or workdir / "evaluation.json", result)
  nfe = network.nfe(setting)
  print(f"{network.reference} by {setting.label}, {nfe} network evaluations a clip")
  print(report(result))


def report(result):
  """The numbers that matter, in a few lines."""
  lines = []
  for name in DISTANCES:
    if name in result:
      d = result[name]
      floor = f"real against real {d['floor']['mean']:.4g}" if "floor" in d else "no floor"
      lines.append(f"  {name:22s} {d['value']:9.4g}  [{d['low']:.4g}, {d['high']:.4g}]  {floor}")
  for name in ("motion", "saturation", "contrast"):
    lines.append(f"  {name:22s} {result[name]['value']:9.4g}  real {result[name]['real']:.4g}")
  total = result["latency"]["total"]
  stages = ", ".join(f"{k} {1e3 * v['median']:.1f}" for k, v in result["latency"]["stages"].items())
  lines.append(
    f"  latency (batch 1)      {1e3 * total['median']:9.1f}  ms median, "
    f"p95 {1e3 * total['p95']:.1f} ({stages}); compile {total['compile']:.1f} s; "
    f"{result['latency']['device']}"
  )
  return "\n".join(lines)


if __name__ == "__main__":
  shared.run(main)
