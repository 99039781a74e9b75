"""Fixtures of the metrics' tests: a seeded generator, and a cache for weights of this run."""

import numpy as np
import pytest


@pytest.fixture
def rng():
  return np.random.default_rng(0)


@pytest.fixture(autouse=True, scope="session")
def weights_cache(tmp_path_factory):
  """Converted weights go to a folder of this run, so that tests never lean on an older one."""
  patch = pytest.MonkeyPatch()
  patch.setenv("VIDSTEP_CACHE", str(tmp_path_factory.mktemp("cache")))
  yield
  patch.undo()
