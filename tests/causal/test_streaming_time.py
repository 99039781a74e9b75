"""The engine through time: forks, rewinds, pauses, streams far longer than the cache."""

import jax
import numpy as np
import pytest
from toy_engine import open_session, run, settle, wiggle

pytestmark = pytest.mark.usefixtures("unoptimized")


def test_a_fork_has_the_same_past_and_a_future_of_its_own(engine):
  session = open_session(engine, seed=4)
  run(engine, session, 5)
  settle(engine)
  twin, other = session.fork(), session.fork()
  assert twin.index == session.index
  streams = {session: [], twin: [], other: []}
  for _ in range(6):
    for s in streams:
      s.act(-wiggle(s.index) if s is other else wiggle(s.index))
    for s, chunk in engine.tick().items():
      streams[s].append(chunk.frames)
  a, b, c = (np.concatenate(frames) for frames in streams.values())
  np.testing.assert_array_equal(a, b)
  assert (a != c).any()


def test_rewind_replays_bit_for_bit(engine):
  session, chunks = open_session(engine, seed=6), []
  run(engine, session, 9, chunks=chunks)
  seen = {c.index: c.frames for c in chunks}
  at = session.index
  back = session.rewind(4)
  assert 4 <= back <= 5 and session.index == at - back
  again = []
  run(engine, session, 3, chunks=again)
  for chunk in again:
    np.testing.assert_array_equal(chunk.frames, seen[chunk.index])
  far = session.index - session._history[0].index
  with pytest.raises(ValueError, match=f"1 to {far}"):
    session.rewind(far + 1)
  assert session.rewind(far) == far
  with pytest.raises(ValueError, match="whole number"):
    session.rewind(1.5)


def test_a_paused_session_stands_still_and_frees_its_row(engine):
  session, straight = open_session(engine, seed=7), open_session(engine, seed=7)
  first = [run(engine, session, 2)]
  settle(engine)
  index = session.index
  session.pause()
  assert session.paused and engine.free == 2
  run(engine, straight, 5)
  assert session.index == index
  copy = session.fork()  # also of a paused one
  copy.close()
  session.resume()
  assert not session.paused
  session.rewind(2)
  del first
  assert session.index < index


def test_streams_far_longer_than_the_cache_stay_constant(engine):
  session = open_session(engine)
  run(engine, session, 8)
  settle(engine)
  before = len(jax.live_arrays())
  run(engine, session, 40)  # ten times the cache
  settle(engine)
  assert len(jax.live_arrays()) <= before
  assert len(session._history) == 4
