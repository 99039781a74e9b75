"""Tables, fronts and sentences of a sweep, from rows made by hand."""

import pytest

from experiments import report


def row(distance, ms, *, nfe=2, steps=2):
  interval = {"value": distance, "low": 0.9 * distance, "high": 1.1 * distance}
  beside = {"value": 5.0, "real": 10.0, "ratio": 0.5, "low": 4.0, "high": 6.0}
  total = {"median": ms / 1e3, "p95": 1.5 * ms / 1e3, "compile": 2.0}
  return {
    "frechet_alexnet_clip": interval | {"floor": {"mean": 1.0, "std": 0.1, "clips": 8}},
    "kernel_alexnet_clip": interval,
    **dict.fromkeys(("motion", "saturation", "contrast"), beside),
    **{"clips": 8, "real_clips": 16, "frames": 6, "height": 32, "width": 32},
    "latency": {"total": total, "nfe": nfe, "device": "1x cpu"},
    "setting": {"steps": steps, "solver": "euler"},
  }


@pytest.fixture
def rows():
  real = {k: v for k, v in row(1.5, 1).items() if k not in ("latency", "setting")}
  return {
    "real": real,
    "teacher euler 2": row(40.0, 20),
    "teacher euler 50": row(10.0, 500, nfe=50, steps=50),
    "student consistency 2": row(10.5, 21),
  }


def test_front_keeps_what_nothing_beats_in_both():
  points = {"a": (1, 9), "b": (2, 10), "c": (3, 4), "d": (4, 4), "e": (5, 1), "f": (1, 12)}
  assert report.front(points) == ["a", "c", "e"]


def test_cheapest_is_within_the_margin_and_no_further(rows):
  assert "**student consistency 2**" in report.cheapest(rows, 0.1)
  assert "**teacher euler 50**" in report.cheapest(rows, 0.01)
  assert "**teacher euler 2**" in report.cheapest(rows, 4)


def test_the_table_has_every_row_and_says_what_it_measured(rows):
  versus = {
    "student consistency 2 against teacher euler 2": {
      "frechet_alexnet_clip": {"value": -29.5, "low": -35, "high": -25, "verdict": "first"}
    }
  }
  text = report.table(rows, {"seeds": (0, 1), "within": 0.1}, versus)
  lines = text.splitlines()
  assert len({line.count("|") for line in lines if line.startswith("|")}) == 1
  for name in rows:
    assert sum(line.startswith(f"| {name} |") for line in lines) == 1
  for fact in ("8 videos of 6 frames", "seeds 0, 1", "16 other real clips", "1x cpu", "+- 0.1"):
    assert fact in text
  assert "student consistency 2 is closer to real" in text
  assert "| teacher euler 50 | 50 | 500.0 / 750.0 | 10 [9, 11] |" in text


def test_the_plot_is_drawn(rows, tmp_path):
  report.pareto(rows, tmp_path / "pareto.png")
  assert (tmp_path / "pareto.png").stat().st_size > 5000
