"""A small dataset on disk, written once."""

import pytest
from telling import telling_clips

from vidstep.data import builder


@pytest.fixture(scope="session")
def dataset(tmp_path_factory):
  """12 episodes of 2 clips: 10 train, 2 test."""
  path = tmp_path_factory.mktemp("data") / "telling"
  splits = {"train": telling_clips(range(10)), "test": telling_clips([10, 11])}
  builder.write_dataset(path, splits, {"buttons": ["e", "f"], "frame_rate": 8.75})
  return str(path)
