"""Runs the gradient of a consistency loss over packed teacher forcing and prints its peak memory.

  python tests/conformance/memory_run.py 1560 xla_chunked results/attention/memory.json

Forward, tangent and backward of one head of 128, float32, in one jitted program; 21 frames of that
many tokens, clean and noisy, the last clean one dropped. Compile time and inputs are in the peak.
"""

import datetime
import json
import pathlib
import sys
import time

import jax
import jax.numpy as jnp
import numpy as np

from vidstep import masks
from vidstep.attention import attention

FRAMES, DIM = 21, 128


def program(tokens, implementation, rule=masks.TeacherForcing()):  # noqa: B008  (frozen)
  """A function `x, dx -> loss, gradient` and the number of packed tokens."""
  info = masks.teacher_forcing_info(masks.chunk_index(FRAMES, 1))
  keep = (info.role == masks.NOISY) | (info.chunk < FRAMES - 1)
  info = masks.TokenInfo(*(field[keep] for field in info)).tokens(tokens)

  def loss(x, dx):
    attend = lambda x: attention(*x, rule, q_info=info, implementation=implementation)
    o, do = jax.jvp(attend, (x,), (dx,))
    return ((o - jax.lax.stop_gradient(o + do)) ** 2).mean()

  return jax.value_and_grad(loss), len(info.frame)


def compiled(tokens, implementation, **options):
  """The program compiled, and the number of packed tokens."""
  function, n = program(tokens, implementation, **options)
  x = (jax.ShapeDtypeStruct((1, n, 1, DIM), jnp.float32),) * 3
  return jax.jit(function).lower(x, x).compile(), n


def compiled_bytes(executable):
  """Arguments, results and everything in between."""
  memory = executable.memory_analysis()
  of = (memory.argument_size_in_bytes, memory.output_size_in_bytes, memory.temp_size_in_bytes)
  return sum(of)


def resident(field):
  """Memory of this process in bytes: "VmRSS" now, "VmHWM" at its peak.

  `getrusage` will not do: its peak is at least that of the process that started this one.
  """
  lines = pathlib.Path("/proc/self/status").read_text().splitlines()
  return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(field))


def main(tokens, implementation, out=None):
  """Prints the record as JSON, and writes it to a file."""
  jax.block_until_ready(jnp.zeros(1))
  before = resident("VmRSS")
  executable, n = compiled(tokens, implementation)
  draws = np.random.default_rng(0).standard_normal((6, 1, n, 1, DIM), np.float32)
  x = [jnp.asarray(draw) for draw in draws]
  del draws
  start = time.perf_counter()
  loss, grads = jax.block_until_ready(executable(tuple(x[:3]), tuple(x[3:])))
  record = {
    "command": f"python tests/conformance/memory_run.py {tokens} {implementation}",
    "date": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
    "jax": jax.__version__,
    "device": jax.devices()[0].device_kind,
    "packed_tokens": n,
    "peak_bytes": resident("VmHWM") - before,
    "compiled_bytes": compiled_bytes(executable),
    "seconds": time.perf_counter() - start,
    "loss": float(loss),
    "gradient_norm": float(jnp.sqrt(sum((g**2).sum() for g in grads))),
  }
  text = json.dumps(record, indent=1)
  print(text)
  if out:
    pathlib.Path(out).write_text(text + "\n")


if __name__ == "__main__":
  main(int(sys.argv[1]), *sys.argv[2:])
