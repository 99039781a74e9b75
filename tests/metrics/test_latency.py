"""Clocks wait for the work, and compilation is not latency."""

import time

import jax
import jax.numpy as jnp
import pytest

from vidstep.metrics.latency import Latency, Stopwatch, measure


class Pending:
  """A result that is ready only once it has been waited for, like any array in flight."""

  def __init__(self, seconds):
    self.seconds = seconds

  def block_until_ready(self):
    time.sleep(self.seconds)
    return self


def test_measure_waits_for_results_that_are_still_in_flight():
  found = measure(lambda: {"video": Pending(0.01)}, runs=3, warmup=1)
  assert min(found.samples) >= 0.01
  assert len(found.samples) == 3 and found.p95 >= found.median


def test_arguments_in_flight_are_not_booked_on_the_function():
  assert measure(lambda x: None, Pending(0.2), runs=1, warmup=1).first < 0.1


def test_compilation_stands_apart():
  calls = []

  def compiles_at_first():
    calls.append(None)
    time.sleep(0.05 if len(calls) == 1 else 0.001)

  found = measure(compiles_at_first, runs=3, warmup=2)
  assert len(calls) == 6
  assert found.compile >= 0.03 and found.p95 < 0.05 <= found.first


def test_a_jitted_function_is_traced_once():
  traces = []

  @jax.jit
  def fn(x):
    traces.append(None)
    return x + 1

  found = measure(fn, jnp.zeros(4), runs=4)
  assert len(traces) == 1 and len(found.samples) == 4
  assert found.to_dict()["runs"] == 4 and found.to_dict()["device"]


def test_median_and_p95_are_of_the_samples():
  found = Latency(samples=(1.0, 2.0, 3.0, 4.0, 105.0), first=10.0, device="x")
  assert found.median == 3.0 and found.compile == 7.0
  assert found.p95 == pytest.approx(4.0 + 0.8 * 101.0)


def test_stopwatch_books_each_stage_on_itself():
  watch = Stopwatch()
  for _ in range(3):
    x = watch.time("denoise", lambda: Pending(0.02))
    watch.time("decode", lambda x: 5, x.seconds)
  found = watch.breakdown()
  assert list(found) == ["denoise", "decode"]
  assert found["denoise"]["median"] >= 0.02 and found["denoise"]["runs"] == 2
  assert found["denoise"]["share"] > 0.5
  assert sum(stage["share"] for stage in found.values()) == pytest.approx(1.0)


def test_too_few_runs_raise():
  with pytest.raises(ValueError, match=">= 1"):
    measure(lambda: None, runs=0)
  watch = Stopwatch()
  with pytest.raises(ValueError, match="no stage ran"):
    watch.breakdown()
  watch.time("decode", lambda: 1)
  with pytest.raises(ValueError, match="decode"):
    watch.breakdown()
