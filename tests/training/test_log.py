"""The metrics log survives kills and resumes with every step there once."""

import json

import numpy as np
import pytest

from vidstep.training.log import MetricsLog, read_metrics
from vidstep.training.picture import side_by_side


def test_one_json_object_a_step_and_events_beside(tmp_path):
  log = MetricsLog(tmp_path, every=2)
  for step in (1, 2):
    log.write(step, {"loss": np.float32(0.5) / step})
  log.image(2, "samples", np.zeros((4, 4, 3), np.uint8))
  log.close()
  assert read_metrics(tmp_path) == [{"step": 1, "loss": 0.5}, {"step": 2, "loss": 0.25}]
  assert list((tmp_path / "events").glob("events.out.tfevents.*"))


def test_a_resumed_run_replaces_what_lies_beyond_its_start(tmp_path):
  log = MetricsLog(tmp_path)
  for step in range(1, 6):
    log.write(step, {"loss": 0.0})
  log.close()
  with (tmp_path / "metrics.jsonl").open("a") as file:
    file.write('{"step": 6, "lo')  # a kill in the middle of a line
  log = MetricsLog(tmp_path, start=3)
  log.write(4, {"loss": 1.0})
  log.close()
  assert [(m["step"], m["loss"]) for m in read_metrics(tmp_path)] == [
    (1, 0), (2, 0), (3, 0), (4, 1)
  ]  # fmt: skip


def test_numbers_that_json_lacks_are_words(tmp_path):
  log = MetricsLog(tmp_path)
  log.write(1, {"a": float("nan"), "b": float("-inf")})
  log.close()
  line = (tmp_path / "metrics.jsonl").read_text()
  assert json.loads(line, parse_constant=pytest.fail) == {"step": 1, "a": "nan", "b": "-inf"}


def test_wandb_that_is_not_installed_is_one_sentence(tmp_path, monkeypatch):
  monkeypatch.setitem(__import__("sys").modules, "wandb", None)
  with pytest.raises(ValueError, match="pip install wandb"):
    MetricsLog(tmp_path, wandb="project")


def test_pictures_put_each_real_clip_above_its_twin():
  real, drawn = np.full((2, 3, 4, 5, 3), 1.0), np.full((2, 3, 4, 5, 3), -1.0)
  picture = side_by_side(real, drawn, gap=1)
  assert picture.shape == (2 * 2 * 5 - 1, 3 * 6 - 1, 3) and picture.dtype == np.uint8
  assert [picture[y, 0, 0] for y in (0, 5, 10, 15)] == [255, 0, 255, 0]
