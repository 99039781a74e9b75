"""The engine's thread ends before the process does, or says that it cannot."""

import threading
import time
import types

from fake_engine import FakeEngine

from experiments.play_server.runner import Runner


def test_it_waits_for_the_tick_it_is_in():
  entered, ended = threading.Event(), threading.Event()

  class Slow(FakeEngine):
    def tick(self):
      entered.set()
      time.sleep(0.3)
      ended.set()
      return {}

  runner = Runner(lambda say: Slow())
  runner.start()
  runner.follow(types.SimpleNamespace(session=None))  # somebody plays
  assert entered.wait(5)
  assert runner.stop() and ended.is_set() and not runner.is_alive()


def test_what_is_being_compiled_is_not_waited_for():
  compiled = threading.Event()

  def make_engine(say):
    compiled.wait(20)
    return FakeEngine()

  runner = Runner(make_engine)
  assert runner.stop()  # it never began: nothing could be listened on
  runner = Runner(make_engine)
  runner.start()
  assert not runner.stop(patience=0.05)
  compiled.set()
  assert runner.stop()
