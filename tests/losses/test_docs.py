"""The page on objectives runs as it is printed."""

import re
from pathlib import Path

import jax.numpy as jnp

from vidstep import losses

PAGE = Path(__file__).parents[2] / "docs" / "objectives.md"


def test_the_snippets_run_in_order(monkeypatch):
  monkeypatch.setattr(losses, "OBJECTIVES", dict(losses.OBJECTIVES))
  names = {}
  blocks = re.findall(r"```python\n(.*?)```", PAGE.read_text(), re.S)
  assert len(blocks) == 5
  for block in blocks:
    exec(compile(block, str(PAGE), "exec"), names)
  assert names["losses"][-1] < 0.2 * names["losses"][0]
  assert losses.OBJECTIVES["endpoint"](names["velocity"]).roles == ("model",)
  assert names["objective"].due(4) == ("student",)
  assert jnp.isfinite(names["loss"])


def test_every_objective_is_on_the_page():
  rows = re.findall(r"^\| `(\w+)` \|", PAGE.read_text(), re.M)
  assert rows == list(losses.OBJECTIVES)
