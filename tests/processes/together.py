"""Python processes that are one run: started, waited for and read in tests."""

import os
import pathlib
import socket
import subprocess
import sys
import time

ROOT = pathlib.Path(__file__).parents[2]


class Together:
  """`count` processes with `devices` simulated devices each, running the same Python.

  Args:
    folder: for what they print.
    cache: folder of compiled programs.
    code: Python source to run; in it `INDEX` is the number of the process.
    words: its arguments, one list for all or one for each.
    count, devices: see above.
  """

  def __init__(self, folder, cache, code, words, *, count=2, devices=1):
    with socket.socket() as free:
      free.bind(("127.0.0.1", 0))
      port = free.getsockname()[1]
    # Optimizing the program would take longer than running it.
    flags = f"--xla_force_host_platform_device_count={devices} --xla_backend_optimization_level=0"
    flags = " ".join([flags, *(f for f in os.environ["XLA_FLAGS"].split() if "emitters" in f)])
    env = dict(os.environ, JAX_PLATFORMS="cpu", XLA_FLAGS=flags, PYTHONPATH=str(ROOT))
    env["JAX_COMPILATION_CACHE_DIR"] = str(cache)
    self.logs, self.running = [], []
    for i in range(count):
      own = words[i] if words and isinstance(words[0], list) else words
      join = [f"--coordinator=127.0.0.1:{port}", f"--processes={count}", f"--process={i}"]
      # tensorboardX would import torch where there is one, which takes as long as a step.
      source = f"import sys\nsys.modules['torch'] = None\nINDEX = {i}\n{code}"
      log = folder / f"{port}_{i}.log"
      with log.open("w") as out:
        self.running.append(
          subprocess.Popen(
            [sys.executable, "-c", source, *map(str, own), *(join if count > 1 else [])],
            cwd=ROOT, env=env, stdout=out, stderr=subprocess.STDOUT,
          )
        )  # fmt: skip
      self.logs.append(log)

  def finish(self, timeout=200):
    """Waits for all; kills what is left after `timeout` seconds.

    Returns:
      (exit statuses, outputs, seconds that passed between the end of the first and of the last).
    """
    ended, give_up = {}, time.monotonic() + timeout
    while len(ended) < len(self.running) and time.monotonic() < give_up:
      for i, process in enumerate(self.running):
        if i not in ended and process.poll() is not None:
          ended[i] = time.monotonic()
      time.sleep(0.05)
    for process in self.running:
      process.kill()
      process.wait()
    texts = [log.read_text().replace("\r", "\n") for log in self.logs]
    assert len(ended) == len(self.running), f"still running after {timeout} s:\n{texts}"
    return [p.returncode for p in self.running], texts, max(ended.values()) - min(ended.values())
