"""The engine on a world whose network is a formula: batching, settings, actions."""

import numpy as np
import pytest
from mutation import assert_caught
from toy_engine import (
  CONTEXT,
  SHAPE,
  build,
  open_session,
  run,
  settle,
  variant,
  wiggle,
)

pytestmark = pytest.mark.usefixtures("unoptimized")

PEOPLE = (
  {"seed": 1, "steps": 1, "window": 4},
  {"seed": 2, "steps": 3, "window": 2, "text": "rain"},
  {"seed": 3, "steps": 2, "window": 3, "first_times": (1.0, 0.5, 0.2)},
)


def test_batched_sessions_yield_the_frames_of_single_ones(engine, alone):
  check_batched_is_single(engine, alone)
  leak = variant(engine, "told[name][row] = value", "told[name][:] = value")
  assert_caught(check_batched_is_single, leak, alone)


def check_batched_is_single(engine, alone):
  batched = {}
  people = []
  for i, own in enumerate(PEOPLE):  # they join one after the other
    people.append(open_session(engine, **own))
    batched[people[-1]] = []
    for _ in range(3):
      for k, session in enumerate(people):
        session.act(wiggle(session.index + 10 * k))
      for session, chunk in engine.tick().items():
        batched[session].append(chunk.frames)
    assert engine.free == 2 - i
  people[0].close()  # and one leaves
  for _ in range(8):
    for k, session in enumerate(people[1:], start=1):
      session.act(wiggle(session.index + 10 * k))
    for session, chunk in engine.tick().items():
      batched[session].append(chunk.frames)
  for k, (session, own) in enumerate(zip(people, PEOPLE, strict=True)):
    got = np.concatenate(batched[session])
    single = open_session(alone, **own)
    act = lambda index, k=k: wiggle(index + 10 * k)
    want = run(alone, single, len(got), act=act)
    single.close()
    assert len(got) >= 8 and got.std() > 5
    np.testing.assert_array_equal(got, want)


def test_chunks_of_two_and_noisy_context():
  frames = {}
  for context in ("clean", "last_step"):
    pairs = build(sessions=2, chunk=2, context=context, overlap=False)
    first, other = (open_session(pairs, seed=seed, steps=2) for seed in (1, 2))
    actions = np.stack([wiggle(0), -wiggle(1)])
    first.act(actions)
    chunk = pairs.tick()[first]
    np.testing.assert_array_equal(chunk.actions, actions)
    assert chunk.frames.shape == (2, *SHAPE) and (chunk.index, first.index) == (0, 2)
    chunk = pairs.tick()[first]
    assert chunk.index == 2
    np.testing.assert_array_equal(chunk.actions, actions[[1, 1]])  # the last is held
    other.close()
    frames[context] = pairs.tick()[first].frames
  assert (frames["clean"] != frames["last_step"]).any()


def test_every_setting_matters(engine):
  def frames(after=lambda s: None, act=wiggle, **own):
    session = open_session(engine, **({"seed": 1, "steps": 2} | own))
    session.act(act(0))
    run(engine, session, 4, act=act)
    after(session)
    out = run(engine, session, 4, act=act)
    session.close()
    return out

  base = frames()
  np.testing.assert_array_equal(base, frames())
  changes = {
    "seed": frames(lambda s: s.set(seed=2)),
    "steps": frames(lambda s: s.set(steps=3)),
    "window": frames(lambda s: s.set(window=1)),
    "times": frames(lambda s: s.set(times=(1.0, 0.2))),
    "prompt": frames(lambda s: s.prompt("snow")),
    "text": frames(text="snow"),
    "actions": frames(act=lambda i: -wiggle(i)),
    "context": frames(context=255 - CONTEXT),
    "context_actions": None,
    "first_times": frames(first_times=(1.0,)),
  }
  del changes["context_actions"]  # the toy's append reads none
  for name, other in changes.items():
    assert (other != base).any(), name


def test_prompt_and_text_are_the_same_condition(engine):
  early, late = open_session(engine, text="rain"), open_session(engine)
  late.prompt("rain")
  early.act([1, 0]), late.act([1, 0])
  engine.tick()
  chunks = settle(engine)
  np.testing.assert_array_equal(chunks[early].frames, chunks[late].frames)
  assert late.settings.text == "rain"


def test_overlap_changes_when_frames_come_but_not_which(engine, alone):
  session, single = open_session(engine, seed=5), open_session(alone, seed=5)
  assert engine.tick() == {}  # nothing was in flight
  assert set(engine.tick()) == {session}
  session.close()
  assert set(alone.tick()) == {single}
  single.close()
  session, single = open_session(engine, seed=5), open_session(alone, seed=5)
  np.testing.assert_array_equal(run(engine, session, 10), run(alone, single, 10))
  single.close()


def test_an_action_is_seen_first_in_the_chunk_that_says_so(alone):
  """From the same state with and without it: the first frame that differs, and its stamps."""

  def stream(act_before):
    session, chunks = open_session(alone, seed=3), []
    for i in range(6):
      if i == act_before:
        session.act([1, -1])
      chunks.append(alone.tick()[session])
    session.close()
    return chunks

  without, with_it = stream(None), stream(3)
  differs = [(a.frames != b.frames).any() for a, b in zip(without, with_it, strict=True)]
  assert differs == [False] * 3 + [True] * 3
  arrivals = [c.stamps.arrival for c in with_it]
  assert [a is not None for a in arrivals] == [False] * 3 + [True] + [False] * 2
  first = with_it[3]
  assert with_it[2].stamps.host < arrivals[3] < first.stamps.dispatch < first.stamps.host
  np.testing.assert_array_equal(first.actions, [[1, -1]])
  np.testing.assert_array_equal(with_it[5].actions, [[1, -1]])  # held


def test_the_newest_action_wins_and_is_held(engine):
  session = open_session(engine)
  session.act([0, 1])
  session.act([1, 0])
  engine.tick(), engine.tick()
  np.testing.assert_array_equal(settle(engine)[session].actions, [[1, 0]])


def test_rewind_drops_what_is_in_flight(engine):
  check_rewind_drops_what_is_in_flight(engine)
  broken = variant(engine, "session.closed or session._epoch != epoch", "session.closed")
  assert_caught(check_rewind_drops_what_is_in_flight, broken)


def check_rewind_drops_what_is_in_flight(engine):
  session = open_session(engine)
  run(engine, session, 6)
  at, indices = session.index, []
  at -= session.rewind(3)
  for _ in range(4):
    indices += [c.index for c in engine.tick().values()]
  assert indices == [at, at + 1, at + 2]
