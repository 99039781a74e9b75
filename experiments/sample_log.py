"""What sampling took: seconds of every stage, memory, and a bar over the steps."""

import contextlib
import datetime
import resource
import shlex
import sys
import time

import jax
from tqdm import tqdm


class Log:
  """Seconds of named stages, each of which may come once a video."""

  def __init__(self):
    self.seconds = {}  # stage -> list
    self._began = time.perf_counter()

  @contextlib.contextmanager
  def stage(self, name: str):
    """Times what is inside; device work must be awaited there."""
    begin = time.perf_counter()
    yield
    self.add(name, time.perf_counter() - begin)

  def add(self, name: str, seconds: float):
    """Adds a measurement."""
    self.seconds.setdefault(name, []).append(seconds)

  def move(self, source: str, to: str, seconds: float):
    """Takes seconds out of the last of one stage into another."""
    self.seconds[source][-1] -= seconds
    self.add(to, seconds)

  def summary(self) -> dict:
    """Seconds, memory, and what ran where."""
    device = jax.local_devices()[0]
    return {
      "command": shlex.join(["python", "-m", "experiments.sample", *sys.argv[1:]]),
      "date": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
      "device": f"{len(jax.local_devices())} x {device.device_kind} ({device.platform})",
      "jax": jax.__version__,
      "seconds": {k: [round(s, 3) for s in v] for k, v in self.seconds.items()},
      "total_seconds": round(time.perf_counter() - self._began, 3),
      "peak_memory": peak_memory(),
    }

  def table(self) -> str:
    """The same for people: one line."""
    parts = []
    for name, all_ in self.seconds.items():
      first, *later = all_
      more = f" (then {sum(later) / len(later):.1f} on average)" if later else ""
      parts.append(f"{name} {first:.1f} s{more}")
    memory = ", ".join(f"{k} {v / 2**30:.2f} GiB" for k, v in peak_memory().items())
    return f"{'; '.join(parts)}\npeak memory: {memory}"


def peak_memory() -> dict:
  """Bytes: of this process, and of the device that used most where devices tell."""
  unit = 1 if sys.platform == "darwin" else 1024
  out = {"host": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit}
  told = [d.memory_stats() or {} for d in jax.local_devices()]
  most = max((t.get("peak_bytes_in_use", 0) for t in told), default=0)
  return out | ({"device": most} if most else {})


@contextlib.contextmanager
def bar(label: str):
  """A progress bar, as a function (done, total)."""
  with tqdm(desc=label, unit="step", leave=False, disable=None, dynamic_ncols=True) as shown:

    def progress(done, total):
      shown.total = total
      shown.update(done - shown.n)

    yield progress
