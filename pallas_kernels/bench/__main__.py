"""Times attention kernels on named shapes and prints a table.

  python -m pallas_kernels.bench --shapes='small-4k-*' --out=results/attention
  python -m pallas_kernels.bench --check --experimental --shapes='wan-1.3b*' --peer=kernel.py

FLOP/s count attended pairs only, and the matmuls that a mode cannot do without (2 forward, 5
tangent, 6 both, 5 backward, 7 forward and backward), whatever a kernel really computes. Shapes of
one family are timed in turns: "pair / full" is the time of an attended pair over that of the
family's full mask, the median over turns; on a CPU also in processor time ("cpu"), which other work
on the machine disturbs less. What cannot be run is a row that says why.
"""

import os
import sys

from absl import app, flags, logging

from pallas_kernels.bench import programs, run, table
from pallas_kernels.bench.shapes import SHAPES

_DEFAULT = run.Options()
_SHAPES = flags.DEFINE_list(
  "shapes",
  [],
  "Names or patterns, of "
  + ", ".join(SHAPES)
  + "; left out, small-4k-* on a CPU, and wan-* and doom-* elsewhere.",
)
_MODES = flags.DEFINE_list("modes", [*_DEFAULT.modes], f"Of {', '.join(programs.MODES)}.")
_IMPLEMENTATIONS = flags.DEFINE_list(
  "implementations",
  [],
  f"Of {', '.join(programs.NAMES)}; left out, all. Naming one includes it if it is experimental.",
)
_EXPERIMENTAL = flags.DEFINE_bool(
  "experimental", _DEFAULT.experimental, "Include kernels that were never run on their hardware."
)
_DTYPE = flags.DEFINE_enum(
  "dtype",
  _DEFAULT.dtype,
  ["float32", "bfloat16"],
  "Of the arrays; left out, float32 on a CPU and bfloat16 elsewhere.",
)
_SECONDS = flags.DEFINE_float(
  "seconds", _DEFAULT.seconds, "Time for the samples of a row.", lower_bound=0
)
_ROUNDS = flags.DEFINE_integer(
  "rounds", _DEFAULT.rounds, "Samples of a row, at most.", lower_bound=1
)
_MAX_SECONDS = flags.DEFINE_float(
  "max_seconds", _DEFAULT.max_seconds, "Rows whose calls take longer are not run.", lower_bound=0
)
_CHECK = flags.DEFINE_bool(
  "check", _DEFAULT.check, "First hold every kernel to a float64 oracle on small problems."
)
_PEER = flags.DEFINE_string(
  "peer",
  _DEFAULT.peer,
  "rcm/utils/flash_attention_jvp_triton.py of NVlabs/rcm: timed beside ours.",
)
_OUT = flags.DEFINE_string(
  "out", _DEFAULT.out, "Folder for bench.json and table.md; left out, none are written."
)


def main(argv):
  """Runs the benchmark that the flags describe; bad input ends in one sentence."""
  if len(argv) > 1:
    raise app.UsageError(f"Unexpected argument {argv[1]!r}: flags begin with --.")
  logging.set_verbosity(logging.WARNING)
  if _PEER.value:  # torch needs memory beside us
    os.environ.setdefault("XLA_PYTHON_CLIENT_PREALLOCATE", "false")
  options = run.Options(
    shapes=_SHAPES.value,
    modes=_MODES.value,
    implementations=_IMPLEMENTATIONS.value,
    dtype=_DTYPE.value,
    seconds=_SECONDS.value,
    rounds=_ROUNDS.value,
    max_seconds=_MAX_SECONDS.value,
    experimental=_EXPERIMENTAL.value,
    check=_CHECK.value,
    peer=_PEER.value,
    out=_OUT.value,
  )
  try:
    print(table.markdown(run.run(options)))
  except ValueError as error:
    sys.exit(f"error: {error}")


if __name__ == "__main__":
  app.run(main)
