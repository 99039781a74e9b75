"""Which attention reads a cache fastest here: every implementation by name, checked, then timed.

  python -m experiments.wan_bench_attention --implementation=pallas_gpu

runs one alone and prints JSON. The bench does so for kernels never run on their hardware: one that
breaks the device breaks its own process.
"""

import json
import time

import jax
import jax.numpy as jnp
import numpy as np
from absl import flags

from experiments import apart
from experiments import flags as shared
from experiments.wan_bench_programs import make_size
from pallas_kernels.attention import KERNELS
from vidstep.attention import attention
from vidstep.masks import Prefix, token_info

IMPLEMENTATION = flags.DEFINE_string("implementation", "cudnn", "Which one.")
CHUNK = flags.DEFINE_integer("chunk", 3, "Latent frames that query.")
TINY = flags.DEFINE_bool("tiny_shape", False, "A small shape, for tests.")

NAMES = ("cudnn", "xla_chunked", "xla")  # tried in this process; the others in one of their own
BAR = 0.02  # relative error against xla from which one is not used: bfloat16 gives 0.005


def candidates() -> list[str]:
  """All names: those that are safe first."""
  return [*NAMES, *sorted({k.name for k in KERNELS} - set(NAMES))]


def problem(size, chunk):
  """q of a chunk, keys of a cache that is half full, and which of its tokens exist."""
  heads = size.fields["heads"]
  tokens, keys = chunk * size.tokens, (size.frames + chunk) * size.tokens
  draw = lambda i, n: jax.random.normal(
    jax.random.key(i), (1, n, heads, size.fields["dim"] // heads), jnp.bfloat16
  )
  exist = (chunk + size.frames // 2) * size.tokens
  return draw(0, tokens), draw(1, keys), draw(2, keys), np.int32(np.arange(keys) < exist)[None]


def run(q, k, v, exist, implementation):
  """Attention to the keys that exist."""
  q_info, k_info = (token_info(np.zeros(a.shape[1], np.int32)) for a in (q, k))
  return attention(
    q, k, v, Prefix(), q_info=q_info, k_info=k_info._replace(valid=exist),
    implementation=implementation,
  )  # fmt: skip


def try_one(size, chunk, name, want=None, calls=5) -> tuple[dict, jax.Array | None]:
  """What comes of one implementation.

  Returns:
    ({"implementation", "seconds", "error", "compile"} or {"implementation", "refused"}, output).
  """
  args = jax.device_put(problem(size, chunk))
  record = {"implementation": name, "chunk": chunk}
  try:
    begin = time.perf_counter()
    program = jax.jit(run, static_argnums=4).lower(*args, name).compile()
    record["compile"] = time.perf_counter() - begin
    out = jax.block_until_ready(program(*args))
    samples = []
    for _ in range(calls):
      begin = time.perf_counter()
      jax.block_until_ready(program(*args))
      samples.append(time.perf_counter() - begin)
  except Exception as error:  # of a compiler or a device: the reason is the result
    return record | {"refused": _sentence(error)}, None
  record["seconds"] = float(np.median(samples))
  if want is not None:
    wide = lambda a: a.astype(jnp.float32)
    gap = jnp.linalg.norm(wide(out) - wide(want)) / jnp.linalg.norm(wide(want))
    record["error"] = float(gap)
  return record, out


def try_all(size, chunk) -> list[dict]:
  """Records of `NAMES`, the fastest of those that agree with xla first, then the refusals."""
  oracle, want = try_one(size, chunk, "xla", calls=2)
  records = [try_one(size, chunk, name, want)[0] for name in NAMES if name != "xla"]
  if want is None:
    records = [r | {"error": None} if "seconds" in r else r for r in records]
  return sorted([*records, oracle | ({"error": 0.0} if want is not None else {})], key=_order)


def best(records) -> str | None:
  """The name of the fastest that is right; None if there is none."""
  return next((r["implementation"] for r in sorted(records, key=_order) if right(r)), None)


def right(record) -> bool:
  """Whether it ran, and agrees with xla where xla ran."""
  error = record.get("error")
  return "seconds" in record and (error is None or error < BAR)


def try_apart(name, chunk, tiny, timeout) -> dict:
  """`try_one` in a process of its own, against xla there."""
  arguments = [f"--implementation={name}", f"--chunk={chunk}", f"--tiny_shape={tiny}"]
  try:
    return apart.run("experiments.wan_bench_attention", arguments, timeout=timeout)
  except ValueError as reason:
    return {"implementation": name, "chunk": chunk, "refused": str(reason)}


def _order(record):
  return (not right(record), record.get("seconds", np.inf))


def _sentence(error):
  lines = str(error).strip().splitlines()
  return f"{type(error).__name__}: {lines[0][:300] if lines else ''}"


def main(argv):
  del argv
  size = make_size("none", TINY.value)
  _, want = try_one(size, CHUNK.value, "xla", calls=1)
  print(json.dumps(try_one(size, CHUNK.value, IMPLEMENTATION.value, want)[0]))


if __name__ == "__main__":
  shared.run(main)
