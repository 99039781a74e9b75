"""The report of a stream against numbers worked out by hand."""

import dataclasses
import json
import types

import numpy as np
import pytest

from vidstep.causal.session import Chunk, Stamps
from vidstep.metrics.compilations import compilations
from vidstep.metrics.streaming import Memory, Recorder, plot, resident_bytes


def record(hosts, *, frames=1, rate=10.0, arrivals=(), latency=0.02, **options):
  """A recorder of one session opened at 0, whose chunks are on the host at the given times."""
  recorder = Recorder(rate, **options)
  session = types.SimpleNamespace(name="a", opened=0.0)
  for i, host in enumerate(hosts):
    stamps = Stamps(dict(arrivals).get(i), host - latency, host - latency / 4, host)
    pixels = np.zeros((frames, 2, 2, 3), np.uint8)
    recorder.add(session, Chunk(pixels, frames * i, None, 1, stamps, frames * i))
  return recorder


def test_intervals_jitter_and_misses_of_single_frames():
  hosts = [1.0, 1.1, 1.2, 1.35, 1.4, 1.5]
  report = record(hosts, skip=0).report()
  np.testing.assert_allclose(report.frame_interval["max"], 0.15)
  np.testing.assert_allclose(report.frame_interval["mean"], 0.1)
  np.testing.assert_allclose(report.jitter["max"], 0.1)  # 150 ms, then 50
  np.testing.assert_allclose(report.jitter["mean"], (0 + 0.05 + 0.1 + 0.05) / 4, atol=1e-12)
  assert report.misses == {"count": 1, "rate": 0.2}
  np.testing.assert_allclose(report.fps, 5 / 0.5)
  np.testing.assert_allclose(report.real_time_factor, 1.0)
  np.testing.assert_allclose(report.chunk_latency["p50"], 0.02)
  np.testing.assert_allclose(report.compute["p50"] + report.to_host["p50"], 0.02)
  np.testing.assert_allclose(report.first_frame["warm"]["max"], 1.0)
  assert report.action_to_photon is None


def test_chunks_of_several_frames_are_bursts_that_amortise():
  report = record([1.0, 1.4, 1.8, 2.2], frames=4, skip=0).report()
  np.testing.assert_allclose(report.fps, 10.0)  # 12 frames in 1.2 s
  np.testing.assert_allclose(report.amortised_interval["max"], 0.1)
  np.testing.assert_allclose(report.frame_interval["max"], 0.4)
  assert report.frame_interval["p50"] == 0
  assert report.misses["count"] == 0  # each chunk comes when the one before has been played
  np.testing.assert_allclose(report.jitter["max"], 0.4)


def test_actions_are_timed_from_their_arrival():
  report = record([1.0, 1.1, 1.2, 1.3], arrivals={1: 1.0, 3: 1.27}, skip=0).report()
  assert report.action_to_photon["count"] == 2
  np.testing.assert_allclose(report.action_to_photon["max"], 0.1)


def test_first_chunks_are_skipped_and_old_ones_forgotten():
  recorder = record(np.cumsum([5.0, 3.0, *[0.1] * 20]), skip=2, keep=6)
  assert recorder.report().frames == 6
  np.testing.assert_allclose(recorder.report().frame_interval["max"], 0.1)
  np.testing.assert_allclose(recorder.report().first_frame["warm"]["max"], 5.0)


def test_sessions_are_not_mixed():
  recorder = Recorder(10.0, skip=0)
  for name, offset in (("a", 0.0), ("b", 0.01)):
    session = types.SimpleNamespace(name=name, opened=0.0)
    for i in range(5):
      host = 1 + 0.2 * i + offset
      pixels = np.zeros((1, 2, 2, 3), np.uint8)
      recorder.add(session, Chunk(pixels, i, None, 1, Stamps(None, host - 0.02, host, host), i))
  report = recorder.report()
  assert (report.sessions, report.frames, report.misses["count"]) == (2, 10, 8)
  np.testing.assert_allclose(report.fps, 5.0)


def test_a_report_needs_chunks():
  with pytest.raises(ValueError, match="three chunks"):
    record([1.0, 2.0], skip=0).report()


def test_the_table_and_the_json_hold_everything(tmp_path):
  memory = Memory()
  for _ in range(20):
    memory.sample()
  report = record(np.arange(1, 9) / 10, arrivals={2: 0.25}, skip=0).report(
    memory=memory.summary(),
    compilations=0,
    cache_bytes=2**20,
    stages={"decode": {"p50": 0.001, "p95": 0.002, "p99": 0.002, "max": 0.003, "mean": 0.001}},
    about={"steps": 1},
  )
  table = report.table()
  for words in ("action-to-photon", "stage alone: decode", "1.00 MiB", "resident memory", "steps"):
    assert words in table, words
  assert json.loads(json.dumps(dataclasses.asdict(report)))["fps"] == report.fps
  plot(record(np.arange(1, 9) / 10).series(), tmp_path / "a.png", frame_rate=10, title="x")
  assert (tmp_path / "a.png").stat().st_size > 5000


def test_memory_is_that_of_this_process():
  before = resident_bytes()
  block = np.ones(64 * 2**20, np.uint8)
  assert 0.8 * block.nbytes < resident_bytes() - before < 1.5 * block.nbytes


def test_compilations_count_new_programs_only():
  import jax

  double = jax.jit(lambda x: 2 * x)
  double(np.float32(1))
  count = compilations()
  double(np.float32(2))
  assert compilations() == count
  double(np.ones(3, np.float32))
  assert compilations() == count + 1
