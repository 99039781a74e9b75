"""What goes wrong in an engine stays where it went wrong."""

import numpy as np
import pytest
from toy_engine import CONTEXT, build, open_session, run, wiggle

from vidstep.causal import session as session_module

pytestmark = pytest.mark.usefixtures("unoptimized")


def test_a_session_that_breaks_leaves_the_others_alone(engine, alone):
  good, bad = open_session(engine, seed=9), open_session(engine, seed=10)
  good.act([1, -1])
  frames = [run(engine, good, 3, act=None)]
  state = engine._snapshot(bad).row
  poison = np.full(state.cache.frames.shape, np.nan, np.float32)
  engine._batch.put(bad._row, state._replace(cache=state.cache.replace(frames=poison)))
  frames.append(run(engine, good, 4, act=None))
  assert bad.closed and "not finite" in bad.error and engine.free == 2
  with pytest.raises(RuntimeError, match="not finite"):
    bad.act([1, 1])
  single = open_session(alone, seed=9)
  single.act([1, -1])
  want = run(alone, single, 7, act=None)
  single.close()
  np.testing.assert_array_equal(np.concatenate(frames), want)


def test_bad_input_is_refused_and_changes_nothing(engine):
  session = open_session(engine)
  own = session.settings
  refused = [
    (lambda: session.act([1, 2, 3]), "shape"),
    (lambda: session.act("left"), "numbers"),
    (lambda: session.act([np.nan, 0]), "finite"),
    (lambda: session.set(steps=0), "steps"),
    (lambda: session.set(steps=4), "1 to 3"),
    (lambda: session.set(steps="many"), "whole number"),
    (lambda: session.set(window=5), "window"),
    (lambda: session.set(seed=-1), "seed"),
    (lambda: session.set(times=(0.5, 1.0)), "fall"),
    (lambda: session.set(times=(1.0, 0.8, 0.6, 0.4)), "max_steps"),
    (lambda: engine.open(), "context must be uint8"),
    (lambda: open_session(engine, context=CONTEXT[:1]), "context must be uint8"),
    (lambda: open_session(engine, context_actions=np.zeros((1, 2))), "context_actions"),
    (lambda: open_session(engine, name="a/b"), "slashes"),
    (lambda: open_session(engine, name=session.name), "unique"),
    (lambda: build(sessions=0), "sessions=0"),
  ]
  for call, words in refused:
    with pytest.raises(ValueError, match=words):
      call()
  assert session.settings == own and engine.free == 2
  open_session(engine), open_session(engine)
  with pytest.raises(RuntimeError, match="All 3 sessions"):
    open_session(engine)
  with pytest.raises(RuntimeError, match="All 3 sessions"):
    session.fork()
  session.close(), session.close()
  with pytest.raises(RuntimeError, match="closed"):
    session.act([1, 1])


def test_threads_may_act_while_it_ticks(engine):
  import threading

  session, stop, errors = open_session(engine), threading.Event(), []

  def press():
    while not stop.is_set():
      try:
        session.act(wiggle(session.index))
        session.set(steps=1 + session.index % 3, window=1 + session.index % 4)
        session.fork().close()
      except Exception as error:
        errors.append(error)

  threads = [threading.Thread(target=press) for _ in range(2)]
  for thread in threads:
    thread.start()
  chunks = []
  for _ in range(30):
    chunks += [c for s, c in engine.tick().items() if s is session]
  stop.set()
  for thread in threads:
    thread.join()
  assert not [e for e in errors if "All 3 sessions" not in str(e)]
  assert [c.index for c in chunks] == list(range(len(chunks))) and len(chunks) >= 29


def test_settings_know_their_bounds():
  good = session_module.Settings(0, (1.0,), 1, (), 4, "")
  good.check(max_steps=1, max_window=4)
  with pytest.raises(ValueError, match="seed"):
    session_module.Settings(2**32, (1.0,), 1, (), 4, "").check(max_steps=1, max_window=4)
