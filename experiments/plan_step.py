"""Compiles the training step of a config for a machine that need not be there, and measures it.

  python -m experiments.plan_step --config=... --machine=v5p-128     prints one JSON object

What experiments.plan runs, in a process of its own: a compiler that runs out of memory, or breaks,
takes nothing with it. Weights, data and devices are shapes and descriptions; the step is the one
that experiments.train compiles, with its shardings.
"""

import contextlib
import dataclasses
import functools
import json
import math
import pathlib
import re
import resource
import time
from unittest import mock

import jax
import numpy as np
from absl import flags

from experiments import flags as shared
from experiments import setup as build
from pallas_kernels.attention import KERNELS
from vidstep.attention.dispatch import Spec, pick
from vidstep.metrics.flops import count_flops
from vidstep.metrics.hlo import read_traffic
from vidstep.metrics.machines import machine as machine_of
from vidstep.metrics.rooflines import roofline, utilization
from vidstep.parallel.mesh import AXES, make_mesh
from vidstep.parallel.sharding import check_batch, frame_shardings, replicated, state_sharding
from vidstep.parallel.topology import devices_of
from vidstep.training.step import make_step

CONFIG = shared.define_config()
MACHINE = flags.DEFINE_string("machine", "v5p-128", "Where the step shall run.")
LOOPS = flags.DEFINE_float(
  "loops", 1.0, "How often loops of unknown length run: a rollout of 1 to 4 steps, in the mean 1.5."
)
HLO = flags.DEFINE_string("hlo", None, "Folder where the compiled programs are kept as text.")


def main(argv):
  del argv
  print(json.dumps(plan_step(CONFIG.value, MACHINE.value, loops=LOOPS.value, hlo=HLO.value)))


def plan_step(config, machine, *, loops=1.0, hlo=None):
  """Compiles every kind of step that a run of the config alternates between.

  Args:
    config: a `ConfigDict`; neither its data nor the runs it starts from are opened.
    machine: a name of `vidstep.metrics.machines`.
    loops: how often loops run whose length the program does not say, in the mean.
    hlo: folder where the compiled programs are kept as text, step_<roles>.txt.

  Returns:
    A dict, see `docs/plan.md`: what lies on one device, and for each kind of step what the compiler
    says of its memory, its operations, traffic and least time. Bytes, seconds, operations.

  Raises:
    ValueError: for what does not fit together, one sentence each.
  """
  machine = machine_of(machine)
  devices, how = devices_of(machine)
  platform = {"gpu": "cuda"}.get(machine.chip.platform, machine.chip.platform)
  mesh = make_mesh(*(config["mesh"][axis] for axis in AXES), devices=devices)
  with _as_on(platform):
    run = build.build(config, mesh, data=False)
    plain = build.build(without_remat(config), mesh, data=False)
    parts, kinds = Parts.of(run, mesh), kinds_of(run)
    held = parts.held()
    total = sum(held.values())
    steps = []
    for roles, share in kinds.items():
      begin = time.perf_counter()
      lowered, flops = parts.lower(run, roles, loops)
      useful = parts.lower(plain, roles, loops)[1]
      step = {
        "roles": list(roles),
        "share": share,
        "flops": flops.total / mesh.size,
        "model_flops": useful.total / mesh.size,
        "notes": sorted(flops.notes),
      }
      keep = pathlib.Path(hlo) / f"step_{'_'.join(roles)}.txt" if hlo else None
      steps.append(step | compiled(lowered, step, machine, total, loops, keep))
      step["compile_seconds"] = time.perf_counter() - begin
  return {
    "machine": machine.name,
    "mesh": {axis: int(size) for axis, size in mesh.shape.items()},
    "rules": run.config["mesh"]["rules"],
    "batch": run.config["data"]["batch_size"],
    "accumulate": run.config["train"]["accumulate"],
    "remat": run.config["model"]["remat"],
    "loops": loops,
    "attention": attention_of(run.config, platform),
    "compiler": how,
    "held": held,
    "steps": steps,
    "host_memory": 1024 * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss,
  }


@dataclasses.dataclass(frozen=True)
class Parts:
  """What a step is called with: shapes and where they lie.

  Attributes:
    state: the `State`.
    frozen: frozen networks.
    batch: one prepared batch.
    mesh: the devices.
    shardings: of the three.
  """

  state: object
  frozen: dict
  batch: object
  mesh: jax.sharding.Mesh
  shardings: tuple

  @classmethod
  def of(cls, run, mesh):
    """Those of a `Setup`, as experiments.train makes them."""
    config = run.config
    check_batch(config["data"]["batch_size"], mesh, config["train"]["accumulate"])
    spread = functools.partial(state_sharding, mesh=mesh, preset=config["mesh"]["rules"])
    state = jax.eval_shape(lambda key: run.init(key, {}), jax.random.key(0))
    frozen = {name: spread(like) for name, like in run.frozen.items()}
    shardings = spread(state), frozen, frame_shardings(run.example, mesh)
    return cls(state, run.frozen, run.example, mesh, shardings)

  def lower(self, run, roles, loops):
    """What lowers the step that updates these roles for the mesh, and the step's operations."""
    accumulate = run.config["train"]["accumulate"]
    how = {"accumulate": accumulate, "adapters": run.adapters}
    step = make_step(run.objective, run.optimizers, run.emas, roles, **how)
    jitted = jax.jit(
      step,
      in_shardings=self.shardings,
      out_shardings=(self.shardings[0], replicated(self.mesh)),
      donate_argnums=0,
    )
    inputs = self.state, self.frozen, self.batch
    return functools.partial(jitted.lower, *inputs), count_flops(step, *inputs, loops=loops)

  def held(self):
    """Bytes on one device between steps, by network and kind."""
    state, frozen, batch = self.shardings
    held = {}
    for role, net in self.state.nets.items():
      where = state.nets[role]
      held[f"{role} weights"] = shard_bytes(net.params, where.params)
      held[f"{role} EMA"] = shard_bytes(net.ema, where.ema)
      held[f"{role} optimizer"] = shard_bytes(net.opt, where.opt)
    held["objective"] = shard_bytes(self.state.aux, state.aux)
    held |= {f"{k} frozen": shard_bytes(v, frozen[k]) for k, v in self.frozen.items()}
    held["batch"] = shard_bytes(self.batch, batch)
    return {name: size for name, size in held.items() if size}


def shard_bytes(tree, shardings):
  """Bytes of one device's parts of arrays, without what a compiler pads."""

  def leaf(x, sharding):
    if jax.dtypes.issubdtype(x.dtype, jax.dtypes.prng_key):
      return 0
    return math.prod(sharding.shard_shape(x.shape)) * np.dtype(x.dtype).itemsize

  return sum(jax.tree.leaves(jax.tree.map(leaf, tree, shardings)))


def kinds_of(run):
  """Sets of roles that are due together -> the share of the steps at which they are."""
  steps = range(run.config["train"]["steps"])
  due = [tuple(run.objective.due(step)) for step in steps]
  return {roles: due.count(roles) / len(due) for roles in dict.fromkeys(due)}


def compiled(lower, step, machine, held, loops, keep=None):
  """Memory, traffic and least time by the compiler, or why it refuses.

  Args:
    lower: makes the lowered program.
    step: its "flops", "model_flops" and "notes".
    machine: a `Machine`.
    held: bytes on one device between steps.
    loops: see `plan_step`.
    keep: file for the compiled program's text, or None.
  """
  try:
    program = lower().compile()
  except jax.errors.JaxRuntimeError as error:
    if "RESOURCE_EXHAUSTED" not in str(error):
      raise ValueError(f"The compiler broke: {_sentence(str(error))}") from error
    return {"fits": False, "error": _sentence(str(error)), **_needed(str(error), held)}
  memory = program.memory_analysis()
  total = (
    memory.argument_size_in_bytes
    + memory.output_size_in_bytes
    - memory.alias_size_in_bytes
    + memory.temp_size_in_bytes
    + memory.generated_code_size_in_bytes
  )
  text = program.as_text()
  if keep is not None:
    keep.parent.mkdir(parents=True, exist_ok=True)
    keep.write_text(text)
  traffic = read_traffic(text, devices=machine.devices, node=machine.node, loops=loops)
  line = roofline(step["flops"], traffic, machine)
  return {
    "fits": bool(total <= machine.chip.memory),
    "total": total,
    "arguments": memory.argument_size_in_bytes,
    "temporary": memory.temp_size_in_bytes,
    "code": memory.generated_code_size_in_bytes,
    "sent": traffic.sent,
    "collectives": traffic.counts,
    "far": traffic.far,
    "memory_bytes": traffic.memory,
    "seconds": dataclasses.asdict(line) | {"bound": line.seconds, "serial": line.serial},
    "bound": line.bound,
    "mfu": utilization(step["model_flops"], line.seconds, machine),
    "hfu": utilization(step["flops"], line.seconds, machine),
    "notes": sorted({*step["notes"], *traffic.notes}),
  }


def attention_of(config, platform):
  """The implementation that runs: the config's, or what None picks on that platform."""
  named = config["model"]["attention"]
  if named:
    untried = any(kernel.name == named and kernel.experimental for kernel in KERNELS)
    return f"{named} (never run on its hardware)" if untried else named
  fields = config["model"]
  head = fields["dim"] // fields["heads"]
  q = jax.ShapeDtypeStruct((1, 256, fields["heads"], head), fields["dtype"])
  return f"{pick('forward', platform, Spec(None, None, None, 1.0, None), [q, q, q]).name} (picked)"


def without_remat(config):
  """The config with nothing computed twice: whose operations are the model's own."""
  config = config.to_dict()
  config["model"]["remat"] = None
  for net in config["nets"].values():
    net["model"]["remat"] = None
  return config


@contextlib.contextmanager
def _as_on(platform):
  """Traces what the platform would run: some layers ask which one it is."""
  with mock.patch.object(jax, "default_backend", lambda: platform):
    yield


def _sentence(error):
  """The first line of a compiler's error that says something."""
  lines = [line.strip() for line in error.splitlines() if line.strip()]
  return next((line for line in lines if "Used " in line or "exceeded" in line), lines[0])[:300]


def _needed(error, held):
  """Bytes that a program would have needed, where the compiler says so.

  Args:
    error: its message.
    held: bytes between steps, which the message may leave out.
  """
  unit = {"K": 2**10, "M": 2**20, "G": 2**30, "T": 2**40}
  size = lambda found: float(found[1]) * unit[found[2]]
  if found := re.search(r"Used ([\d.]+)([KMGT]) of [\d.]+[KMGT] hbm", error):
    return {"total": size(found)}
  if found := re.search(r"required for HLO temporaries \(([\d.]+)([KMGT])\)", error):
    return {"total": held + size(found), "temporary": size(found)}
  return {}


if __name__ == "__main__":
  shared.run(main)
