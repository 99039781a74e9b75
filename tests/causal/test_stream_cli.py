"""experiments.stream: engines from runs and from architectures, its report, when it fails."""

import dataclasses
import json
import pathlib
import subprocess
import sys

import av
import jax
import numpy as np
import pytest
from entry_point import flags_set, imported_alone

from configs import synthetic_causal
from configs.doom import stream_gpu
from experiments import setup, streams
from vidstep.metrics.streaming import StreamReport, summary
from vidstep.training.checkpoint import Checkpoints

ROOT = pathlib.Path(__file__).parents[2]
stream = imported_alone("experiments.stream")
TIMES = summary([0.01, 0.02])


@pytest.fixture(scope="module")
def source():
  return streams.random_weights(stream_gpu.get_config("tiny").to_dict(), steps=2)


@pytest.fixture(scope="module")
def engine(source):
  return streams.make_engine(source, window=3, sink=1, sessions=2)


def report(**changes):
  times = dict.fromkeys(
    ("chunk_latency", "compute", "to_host", "frame_interval", "amortised_interval", "jitter"), TIMES
  )
  own = StreamReport(
    frame_rate=10.0, frames=100, sessions=1, first_frame={"warm": TIMES}, **times,
    misses={"count": 0, "rate": 0.0}, action_to_photon=None, fps=80.0, fps_p95=50.0,
    real_time_factor=8.0, compilations=0, memory={"first": 1e9, "last": 1e9, "samples": []},
  )  # fmt: skip
  return dataclasses.replace(own, **changes)


def test_the_command_reports_and_fails_where_it_must(tmp_path):
  result = subprocess.run(
    [sys.executable, "-m", "experiments.stream", "--config=configs/doom/stream_gpu.py:tiny",
     "--frames=120", "--sessions=2", "--video=20", "--require_fps=1e9", f"--out={tmp_path}"],
    cwd=ROOT, capture_output=True, text=True, check=False,
  )  # fmt: skip
  assert result.returncode == 1
  assert "but --require_fps=1e+09" in result.stderr and "Traceback" not in result.stderr
  table = (tmp_path / "stream.md").read_text()
  assert table in result.stdout and "compiled after the warm-up | 0" in table
  told = json.loads((tmp_path / "stream.json").read_text())
  assert told["frames"] == 2 * 118 and told["sessions"] == 2
  assert set(told["stages"]) == {"denoise, a step", "append", "step", "decode", "to the host"}
  assert told["first_frame"]["cold"] > told["first_frame"]["warm"]["max"]
  assert (tmp_path / "latency.png").stat().st_size > 5000
  with av.open(str(tmp_path / "stream.mp4")) as video:
    assert len(list(video.decode(video=0))) == 20


def test_recorded_actions_lead_into_their_own_frames(engine, source):
  actions = np.random.default_rng(0).normal(size=(7, 6)).astype(np.float32)
  session = streams.open_session(engine, source)
  chunks = []
  for made in stream.ticks(engine, [session], 10, recorded=actions):
    chunks += made.values()
  session.close()
  assert [c.index for c in chunks] == list(range(10))
  for chunk in chunks:
    np.testing.assert_array_equal(chunk.actions, actions[chunk.index % 7][None])


def test_presses_come_at_random_and_end(engine, source, monkeypatch):
  monkeypatch.setattr(stream, "PRESSES", 500.0)
  session = streams.open_session(engine, source)
  presses = stream.Presses([session], source.actions)
  presses.start()
  chunks = [c for made in stream.ticks(engine, [session], 40) for c in made.values()]
  presses.stop()
  session.close()
  assert not presses.is_alive()
  assert any(c.stamps.arrival is not None for c in chunks)


def test_a_causal_run_streams_from_its_checkpoint(tmp_path):
  config = synthetic_causal.get_config("tf,tiny")
  config.data.path = "synthetic:clips=16,frames=4,size=16"
  built = setup.build(config)
  state = jax.jit(lambda key: built.init(key, {}))(jax.random.key(0))
  checkpoints = Checkpoints(tmp_path)
  checkpoints.save(state, config=built.config)
  checkpoints.close()
  source = streams.trained(f"{tmp_path}:model:ema", steps=2, clips=2)
  assert source.contexts.shape == (2, 1, 16, 16, 3) and source.chunk == 1 and source.frames == 4
  assert source.times == (1.0, 0.5)
  engine = streams.make_engine(source, sessions=1, overlap=False)
  assert engine.network.policy.window == 3
  session = streams.open_session(engine, source, clip=1)
  session.act(source.actions[0])
  (chunk,) = engine.tick().values()
  assert chunk.frames.shape == (1, 16, 16, 3) and chunk.steps == 2


@pytest.mark.parametrize(
  "changes, words",
  [
    ({"compilations": 2}, "2 programs were compiled"),
    ({"memory": {"first": 1e9, "last": 1.1e9, "samples": []}}, "grew by 95.4 MiB"),
  ],
)
def test_a_stream_that_is_not_constant_fails(changes, words):
  stream._judge(report(), [])
  with pytest.raises(ValueError, match=words):
    stream._judge(report(**changes), [])
  with pytest.raises(ValueError, match="Session x"):
    stream._judge(report(), ["Session x was closed: because."])


def test_bad_flags_are_one_sentence(source, tmp_path):
  with pytest.raises(ValueError, match="Give --network"):
    stream._source()
  np.save(tmp_path / "a.npy", np.zeros((5, 2), np.float32))
  for value, error, words in (
    (str(tmp_path / "a.npy"), ValueError, "wants"),
    ("sideways", FileNotFoundError, "recorded or random"),
  ):
    with flags_set(stream, actions=value), pytest.raises(error, match=words):
      stream._recorded(source)
  with flags_set(stream, actions="recorded"):
    assert stream._recorded(source) is source.actions


def test_the_gpu_architecture_is_as_large_as_it_says():
  config = stream_gpu.get_config().to_dict()
  count = jax.eval_shape(lambda: streams.random_weights(config).params)
  parameters = sum(int(np.prod(a.shape)) for a in jax.tree.leaves(count))
  assert 1.0e8 < parameters < 1.3e8
  with pytest.raises(ValueError, match="tiny"):
    stream_gpu.get_config("large")
