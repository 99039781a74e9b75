"""A game in another process: the same frames, its errors in words, and no process left behind."""

import multiprocessing
import os
import signal
import time

import numpy as np
import pytest
from play_world import FakeGame

from experiments.play_server.remote import RemoteGame


class Unbuildable:
  def __init__(self, why):
    raise ValueError(f"no game: {why}")


class Broken(FakeGame):
  def step(self, action):
    raise ValueError("it broke")


def test_it_plays_as_it_would_here_and_its_process_ends():
  here, there = FakeGame(), RemoteGame(FakeGame)
  np.testing.assert_array_equal(there.reset(3), here.reset(3))
  for forward in (1.0, -1.0, 1.0):
    action = np.float32([0, 0, forward])
    np.testing.assert_array_equal(there.step(action), here.step(action))
  for _ in range(40):
    last = there.step(np.float32([0, 0, 1]))
  assert last is None  # the episode is over, the game is not
  assert there.reset(0).max() == 0
  there.close()
  assert not multiprocessing.active_children()


def test_what_goes_wrong_there_is_said_here():
  with pytest.raises(RuntimeError, match="no game: today"):
    RemoteGame(Unbuildable, "today")
  broken = RemoteGame(Broken)
  with pytest.raises(RuntimeError, match="it broke"):
    broken.step(np.zeros(3, np.float32))
  broken.close()


def test_a_game_whose_process_dies_says_so():
  game = RemoteGame(FakeGame)
  (process,) = multiprocessing.active_children()
  os.kill(process.pid, signal.SIGKILL)
  time.sleep(0.1)
  with pytest.raises((RuntimeError, OSError)):
    game.reset(0)
  game.close()
