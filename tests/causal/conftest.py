"""Toy engines, warm, for the files of streaming tests."""

import pytest
from toy_engine import build


@pytest.fixture(scope="module")
def warm_engine():
  engine = build()
  engine.warmup()
  return engine


@pytest.fixture
def engine(warm_engine):
  """The warm engine without sessions; whatever a test does, nothing is compiled."""
  before = warm_engine.compilations()
  yield warm_engine
  for session in warm_engine.sessions:
    session.close()
  warm_engine.overlap = True
  warm_engine.tick()
  assert warm_engine.compilations() == before, "something was compiled after the warm-up"


@pytest.fixture(scope="module")
def alone():
  """An engine of one row, without overlap."""
  engine = build(sessions=1, overlap=False)
  engine.warmup()
  return engine
