"""Runs commands of `experiments` in forks of one Python, which imports what they share once."""

import json
import os
import pathlib
import subprocess
import sys

ROOT = pathlib.Path(__file__).parents[1]
# Of other processes: one device, and programs that would take longer to optimize than to run.
FLAGS = [flag for flag in os.environ["XLA_FLAGS"].split() if "device_count" not in flag]
FAST = {"XLA_FLAGS": " ".join([*FLAGS, "--xla_backend_optimization_level=0"])}

# The parent starts no backend, and so no threads: a fork is as good as a process of its own.
FORKS = """
import json, os, runpy, sys, tempfile, traceback
import flax.linen, jax, ml_collections, numpy, optax
from experiments import flags

def child(words, files):
  os.dup2(files[0].fileno(), 1), os.dup2(files[1].fileno(), 2)
  sys.argv = words
  try:
    runpy.run_module(words[0], run_name="__main__", alter_sys=True)
  except SystemExit as end:
    return end.code if isinstance(end.code, int) else int(end.code is not None)
  except BaseException:
    traceback.print_exc()
    return 1
  return 0

said = []
for words in json.load(sys.stdin):
  with tempfile.TemporaryFile() as out, tempfile.TemporaryFile() as err:
    if not (pid := os.fork()):
      status = child(words, (out, err))
      sys.stdout.flush(), sys.stderr.flush()
      os._exit(status)
    status = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
    out.seek(0), err.seek(0)
    said.append((status, out.read().decode(), err.read().decode()))
print(json.dumps(said))
"""


def run_all(commands, **env):
  """Runs, on one device, `("sample", "--steps=2", ...)` and so on, one after the other.

  Args:
    commands: sequences of a module of `experiments` and its flags.
    **env: of their environment.

  Returns:
    A list of (exit status, stdout, stderr).
  """
  words = [[f"experiments.{module}", *map(str, flags)] for module, *flags in commands]
  done = subprocess.run(
    [sys.executable, "-c", FORKS], input=json.dumps(words), cwd=ROOT, env=os.environ | FAST | env,
    capture_output=True, text=True, check=False,
  )  # fmt: skip
  assert done.returncode == 0, done.stderr[-3000:]
  return json.loads(done.stdout)
