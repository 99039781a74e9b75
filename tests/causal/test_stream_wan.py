"""Wan through experiments.stream: prompts on the way, its video, what is refused."""

import json

import av
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from entry_point import flags_set, imported_alone
from wan_release import make_release

from experiments import stream_wan, streams
from vidstep.causal.rollout import rollout
from vidstep.models.cond import Cond

pytestmark = pytest.mark.usefixtures("unoptimized")
stream = imported_alone("experiments.stream")


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
  return make_release(tmp_path_factory.mktemp("wan"))


@pytest.fixture
def script(tmp_path):
  path = tmp_path / "prompts.tsv"
  path.write_text("0\ta cat\n\n20\tthe dog\n45\ta cat\n")
  return path


def test_the_command_writes_a_video_while_it_streams(folder, script, tmp_path, capsys):
  with flags_set(
    stream, model=str(folder), prompts=str(script), size="16x32", frames=70, steps=1, window=4,
    sink=2, stages=0, dtype="float32", out=str(tmp_path / "out"),
  ):  # fmt: skip
    stream.main([])
  table = (tmp_path / "out/stream.md").read_text()
  assert table in capsys.readouterr().out and "compiled after the warm-up | 0" in table
  assert "3 latent frames, 12 pixel frames" in table and "| actions | none |" in table
  assert json.loads((tmp_path / "out/stream.json").read_text())["frame_rate"] == 16
  with av.open(str(tmp_path / "out/stream.mp4")) as video:
    assert "AI-generated" in video.metadata["comment"]
    shapes = [frame.to_ndarray(format="rgb24").shape for frame in video.decode(video=0)]
  assert shapes == [(16, 32, 3)] * 81  # whole chunks: 9 pixel frames, then 12 at a time


def test_a_prompt_holds_from_the_first_chunk_behind_its_frame(folder, script):
  told = stream_wan.read_script(script)
  assert told.at(0) == told.at(19) == told.at(45) == "a cat" and told.at(20) == "the dog"
  source = stream_wan.wan(folder, told, size=(16, 16), steps=1, chunk=(1, 2), dtype="float32")
  assert source.times == (1.0,) and source.frames == 21
  engine = streams.make_engine(source, window=4, sessions=2, history=0)
  assert engine._programs.row.cache.text_mask is None  # padding is attended to
  engine.warmup()
  before, frames = engine.compilations(), []
  for own in (told, None):
    session = streams.open_session(engine, source, seed=5)
    made = [c[session] for c in stream.ticks(engine, [session], 60, script=own) if session in c]
    session.close()
    engine.tick()
    assert [c.pixel_index for c in made] == [0, *range(1, 60, 8)]
    frames.append([c.frames for c in made])
  assert engine.compilations() == before
  differs = [(a != b).any() for a, b in zip(*frames, strict=True)]
  # The chunk at 17 was begun under the first prompt; the next one begins at 25.
  assert differs[:4] == [False] * 4 and all(differs[4:])
  assert np.std(frames[0][-1]) > 1
  check_frames_are_the_rollout_decoded_at_once(source, engine, np.concatenate(frames[1]))


def check_frames_are_the_rollout_decoded_at_once(source, engine, frames):
  """One step a chunk: noise of its own, then no more randomness."""
  noise, start = [], 0
  while len(noise) < 9:
    length = 2 if start else 1
    _, key = jax.random.split(jax.random.fold_in(jax.random.key(5), start))
    noise.append(jax.random.normal(key, (length, *source.frame_shape)))
    start += length

  @jax.jit
  def whole(params, codec, noise, text):
    how = {"chunk": source.chunk, "times": source.times}
    x0, _ = rollout(engine.network, params, noise, Cond(text=text), jax.random.key(0), **how)
    return jnp.round((codec.decode(x0)[0] + 1) * 127.5)

  text, mask = source.embed(["a cat"])
  assert mask is None
  want = whole(source.params, source.codec, jnp.concatenate(noise)[None], text)
  off = np.abs(frames - np.asarray(want))
  assert len(frames) == 65 and off.max() <= 1 and (off > 0).mean() < 1e-3


def test_times_follow_from_steps_and_shift(folder):
  told = stream_wan.Script((0,), ("x",))
  source = stream_wan.wan(folder, told, size=(16, 16), steps=2, shift=3.0, dtype="float32")
  np.testing.assert_allclose(source.times, [1.0, 0.75])
  source = stream_wan.wan(folder, told, size=(16, 16), times=(1, 0.5), dtype="float32")
  assert source.times == (1.0, 0.5) and source.frame_shape == (2, 2, 4)


def test_what_cannot_be_streamed_is_one_sentence(folder, tmp_path):
  bad = tmp_path / "bad.tsv"
  for text, words in (("a cat", "line 1"), ("3\ta cat", "begin with 0"), ("", "begin with 0")):
    bad.write_text(text)
    with pytest.raises(ValueError, match=words):
      stream_wan.read_script(bad)
  with pytest.raises(FileNotFoundError, match="no file of prompts"):
    stream_wan.read_script(tmp_path / "none")
  wan = {"model": str(folder), "prompt": "x"}
  refused = [
    ({}, "Give --network"),
    (wan | {"network": "a:b"}, "Give --network"),
    (wan | {"guidance": 3.0}, "only 1 is streamed"),
    (wan | {"prompts": str(bad)}, "Give --prompt="),
    (wan | {"size": "480"}, "height x width"),
    (wan | {"size": "17x16"}, "nearest is 16 x 16"),
    (wan | {"chunk": ["1", "2", "3"]}, "must be one number"),
    (wan | {"times": ["1", "x"]}, "must be numbers"),
  ]
  for given, words in refused:
    with flags_set(stream, **given), pytest.raises((ValueError, NotImplementedError), match=words):
      stream._source()
