"""Attention needs memory O(N): forward, tangent and backward over 64k packed tokens under 2 GB."""

import json
import math
import os
import pathlib
import subprocess
import sys

import memory_run
import pytest
from mutation import assert_caught

from vidstep import masks

BAR = 2e9  # bytes, for 64k packed tokens: 21 frames of 1,560, clean and noisy
WAN, QUARTER, SIXTEENTH = 1560, 390, 98  # tokens of a frame
ROOT = pathlib.Path(__file__).parents[2]


def check_compiled(implementation, **options):
  executable, n = memory_run.compiled(WAN, implementation, **options)
  assert n == 63_960
  assert memory_run.compiled_bytes(executable) < BAR


def check_run(tokens, implementation):
  """The same program for real, in a process of its own, at that share of the bar."""
  command = [sys.executable, str(ROOT / "tests/conformance/memory_run.py"), str(tokens)]
  environment = {**os.environ, "PYTHONPATH": str(ROOT)}
  environment.pop("XLA_FLAGS", None)  # one device
  done = subprocess.run(
    [*command, implementation], capture_output=True, text=True, env=environment, check=True
  )
  record = json.loads(done.stdout)
  assert math.isfinite(record["gradient_norm"]) and record["gradient_norm"] > 0
  assert record["peak_bytes"] < BAR * tokens / WAN
  return record


def test_64k_tokens_compile_to_less_than_2_gb():
  check_compiled("xla_chunked")


def test_dense_attention_does_not():
  assert_caught(lambda: check_compiled("xla", rule=masks.Full()))


needs_proc = pytest.mark.skipif(
  not os.path.exists("/proc/self/status"), reason="peak memory is read from /proc"
)


@needs_proc
def test_16k_tokens_run_in_a_quarter_of_it():
  check_run(QUARTER, "xla_chunked")


@needs_proc
def test_dense_attention_at_4k_does_not_run_in_a_sixteenth():
  assert_caught(lambda: check_run(SIXTEENTH, "xla"))


def test_the_run_at_64k_that_was_committed_stays_under_2_gb():
  record = json.loads((ROOT / "results/attention/memory.json").read_text())
  assert record["packed_tokens"] == 63_960
  assert record["peak_bytes"] < BAR
