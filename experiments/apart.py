"""An entry point in a process of its own: what it sets, fills or breaks is not ours."""

import json
import re
import subprocess
import sys


def run(module, arguments, *, env=None, timeout=None):
  """What `python -m module` prints last: a line of JSON.

  Args:
    module: an entry point, such as "experiments.plan_step".
    arguments: its flags.
    env: its environment; None for ours.
    timeout: seconds that it may take.

  Raises:
    ValueError: with the sentence that it ended with; of what broke, where; if it takes longer.
  """
  command = [sys.executable, "-m", module, *arguments]
  how = {"capture_output": True, "text": True, "check": False}
  try:
    done = subprocess.run(command, env=env, timeout=timeout, **how)
  except subprocess.TimeoutExpired:
    raise ValueError(f"{module} was not done within {timeout:.0f} s.") from None
  if done.returncode or not done.stdout.strip():
    raise ValueError(_why(module, done.stderr, done.returncode))
  return json.loads(done.stdout.splitlines()[-1])


def _why(module, stderr, status):
  """One sentence for a process that ended badly."""
  if said := re.search(r"^error: (.*)", stderr, re.MULTILINE):
    return said[1]
  if broke := re.search(r"Check failed: (.*)", stderr):
    return f"The compiler broke: {broke[1][:200]}"
  last = (stderr.strip().splitlines() or ["it said nothing"])[-1]
  return f"{module} ended with status {status}: {last[:200]}"
