"""The code on the pages of docs/ runs, top to bottom."""

import pathlib
import re

import jax
import numpy as np
import pytest

DOCS = pathlib.Path(__file__).parents[1] / "docs"


@pytest.mark.parametrize("page", sorted(DOCS.glob("*.md")), ids=lambda page: page.name)
def test_a_page_runs(page):
  scope = {}
  for code in re.findall(r"```python\n(.*?)```", page.read_text(), re.S):
    exec(code, scope)
  if page.name == "objectives.md":
    assert scope["value"] < 0.5 * first_value(scope)
    loss = scope["x0_regression"](scope["student"]).loss["model"]
    value, (metrics, aux) = loss(scope["params"], {}, {}, scope["batch"], jax.random.key(0), 0)
    assert np.isfinite(value) and set(metrics) == {"loss"} and aux == {}


def first_value(scope):
  """The loss of the page's example before training."""
  zero = jax.tree.map(np.zeros_like, scope["params"])
  loss = scope["objective"].loss["student"]
  nets = {"student": zero, "teacher": {}}
  return loss(zero, nets, {}, scope["batch"], jax.random.key(99), 99)[0]
