"""The page on causality runs as it is printed, and its table of bytes is what comes out."""

import pathlib
import re

import numpy as np
import pytest

pytestmark = [
  pytest.mark.usefixtures("unoptimized"),
  pytest.mark.timeout(900),  # it compiles much: slow where others compute
]
PAGE = pathlib.Path(__file__).parents[2] / "docs" / "causality.md"


def test_the_page_on_causality_runs_in_order(tmp_path, monkeypatch):
  monkeypatch.chdir(tmp_path)
  text, scope = PAGE.read_text(), {}
  for block in re.findall(r"```python\n(.*?)```", text, re.S):
    exec(compile(block, str(PAGE), "exec"), scope)
  assert (tmp_path / "causality.png").stat().st_size > 10_000
  assert np.abs(scope["futures"][0] - scope["futures"][1]).max() > 1e-3
  assert np.abs(scope["packed"]).max() > 0.1
  printed = re.findall(r"^\| (float32|bfloat16|int8) \| (.*) \|$", text, re.M)
  assert len(printed) == len(scope["table"])
  for dtype, row in printed:
    assert row.split(" | ") == [f"{mb:,.1f}" for mb in scope["table"][dtype]]
