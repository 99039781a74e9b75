"""The least time of a row on a machine: its operations and bytes at the vendor's peaks."""

import dataclasses
import functools

import jax

from experiments.wan_bench_programs import Size, functions
from experiments.wan_bench_rows import Row
from vidstep.metrics.flops import count_flops
from vidstep.metrics.machines import Machine


@dataclasses.dataclass(frozen=True)
class Work:
  """What a stage must do in one call.

  Attributes:
    flops: operations of the matrix units.
    bytes: each argument read once, each result written once.
  """

  flops: float
  bytes: float

  def seconds(self, machine: Machine) -> float:
    """At the peaks: the longer of computing and of moving bytes."""
    return max(self.compute(machine), self.memory(machine))

  def compute(self, machine: Machine) -> float:
    """Of its operations alone."""
    return self.flops / machine.chip.flops

  def memory(self, machine: Machine) -> float:
    """Of its bytes alone."""
    return self.bytes / machine.chip.memory_bandwidth


class Floor:
  """Work of every stage of a row, from shapes alone.

  A forward reads the parameters, and keys and values of the frames that the cache holds; the write
  of a chunk also writes its own. A decoding reads parameters, latents and its state, and writes
  pixels and the state.

  Args:
    size: what is made.
    chunk: latent frames of a chunk.
  """

  def __init__(self, size: Size, chunk: int):
    self.size, self.chunk = size, chunk
    f = size.fields
    self.frame_bytes = 2 * 2 * size.tokens * f["dim"] * f["depth"]  # keys and values, bfloat16
    self.pair_flops = 4.0 * chunk * size.tokens**2 * f["dim"] * f["depth"]
    self._wanted = functions(size, chunk, "xla", noisy=True)
    self._flops = functools.cache(self._count)

  def work(self, stage: str, held: int) -> Work:
    """Of a stage behind so many frames."""
    if stage == "to host":
      return Work(0.0, 0.0)
    function, args, _ = self._wanted[stage]
    if stage.startswith("decode"):
      return Work(self._flops(stage), _tree_bytes(args) + _tree_bytes(_shapes(function, args)))
    flops = self._flops(stage) - (self.size.frames - held) * self.pair_flops
    params = _tree_bytes(args[0])
    written = 0 if stage == "denoise" else self.chunk
    return Work(flops, params + (held + written) * self.frame_bytes)

  def calls(self, row: Row) -> list[tuple[str, int]]:
    """(stage, frames held) of every call of a row."""
    count, made = row.chunks(self.size.frames), []
    for i in range(count):
      held = i * self.chunk
      steps = len(row.steps(i))
      fused = row.noisy and 0 < i < count - 1
      made += [("denoise", held)] * (steps - fused)
      if fused:
        made.append(("denoise + write", held))
      if self.size.vae is not None:
        made.append(("decode" if i else "decode, first", held))
      if row.writes(i, count):
        made.append(("write", held))
    return made

  def seconds(self, row: Row, machine: Machine) -> dict[str, float]:
    """Least seconds of a clip by stage."""
    total = {}
    for stage, held in self.calls(row):
      total[stage] = total.get(stage, 0.0) + self.work(stage, held).seconds(machine)
    return total

  def _count(self, stage):
    function, args, _ = self._wanted[stage]
    return count_flops(function, *args).total


def _shapes(function, args):
  return jax.eval_shape(function, *args)


def _tree_bytes(tree) -> float:
  return float(sum(a.size * a.dtype.itemsize for a in jax.tree.leaves(tree)))
