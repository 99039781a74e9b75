"""Wall-clock time, told honestly: finished work only, compilation apart, every sample kept."""

import time
from dataclasses import dataclass

import jax
import numpy as np


@dataclass(frozen=True)
class Latency:
  """Seconds of repeated calls; `first` is the very first call, which compiles."""

  samples: tuple
  first: float
  device: str

  @property
  def median(self):
    """Median of the samples."""
    return float(np.median(self.samples))

  @property
  def p95(self):
    """95th percentile, linearly interpolated: with few runs, close to the slowest."""
    return float(np.percentile(self.samples, 95))

  @property
  def compile(self):
    """Seconds that the first call took longer than the median: tracing and compiling."""
    return max(self.first - self.median, 0.0)

  def to_dict(self):
    """All of it for JSON, in seconds."""
    return {
      "median": self.median,
      "p95": self.p95,
      "runs": len(self.samples),
      "compile": self.compile,
      "first": self.first,
      "device": self.device,
      "samples": list(self.samples),
    }


def device_name() -> str:
  """What JAX computes on, such as "1x NVIDIA H100"."""
  devices = jax.devices()
  return f"{len(devices)}x {devices[0].device_kind}"


def _timed(fn, *args):
  start = time.perf_counter()
  out = jax.block_until_ready(fn(*args))
  return out, time.perf_counter() - start


def measure(fn, *args, runs=10, warmup=2):
  """Times fn(*args): one first call that compiles, warm-up calls thrown away, then `runs` samples.

  Arguments are ready on their device before the clock starts, results before it stops: dispatch is
  asynchronous, and a clock that does not wait measures Python. Whatever fn leaves out (decoding,
  the copy to the host) is not in the number; `Stopwatch` shows the stages.

  Args:
    fn: any callable; it must not donate its arguments, since it is called many times on them.
    *args: pytrees.
    runs: number of samples kept.
    warmup: calls between the first and the samples, at least 1.

  Returns:
    Latency.

  Raises:
    ValueError: if runs or warmup is below 1.
  """
  if runs < 1 or warmup < 1:
    raise ValueError(f"runs and warmup must be >= 1, got {runs} and {warmup}.")
  jax.block_until_ready(args)
  _, first = _timed(fn, *args)
  for _ in range(warmup):
    _timed(fn, *args)
  return Latency(tuple(_timed(fn, *args)[1] for _ in range(runs)), first, device_name())


class Stopwatch:
  """Stage breakdown of a pipeline: `x = watch.time("denoise", denoise, noise)`.

  A stage is a call that is waited for, so nobody's work is booked on the next stage. Waiting costs
  overlap between stages: the sum is an upper bound for a pipeline that overlaps them, and the
  pipeline as a whole is timed with `measure`. Use `jax.device_get` as the stage "transfer".
  """

  def __init__(self):
    self._samples = {}

  def time(self, stage, fn, *args):
    """Runs fn(*args), waits for it, books the seconds on `stage`, returns the result."""
    jax.block_until_ready(args)
    out, seconds = _timed(fn, *args)
    self._samples.setdefault(stage, []).append(seconds)
    return out

  def breakdown(self, *, skip=1):
    """Per stage: median, p95, runs, the first call (it compiles) and the share of all medians.

    Args:
      skip: leading samples of each stage that are not counted.

    Returns:
      {stage: {"median", "p95", "runs", "first", "share"}}, seconds, in the order of first use.

    Raises:
      ValueError: if a stage was not run more than `skip` times.
    """
    short = [stage for stage, samples in self._samples.items() if len(samples) <= skip]
    if short or not self._samples:
      raise ValueError(
        f"every stage must run more than skip={skip} times; too few: {short or 'no stage ran'}."
      )
    kept = {stage: samples[skip:] for stage, samples in self._samples.items()}
    total = sum(float(np.median(samples)) for samples in kept.values())
    return {
      stage: {
        "median": float(np.median(samples)),
        "p95": float(np.percentile(samples, 95)),
        "runs": len(samples),
        "first": self._samples[stage][0],
        "share": float(np.median(samples)) / total if total else 0.0,
      }
      for stage, samples in kept.items()
    }
