"""The page on attention runs as it is printed."""

import pathlib
import re

import numpy as np

from pallas_kernels.attention import KERNELS
from vidstep import masks
from vidstep.attention import attention

PAGE = pathlib.Path(__file__).parents[1] / "docs" / "attention.md"


def test_the_page_on_attention_runs_in_order(tmp_path, monkeypatch):
  monkeypatch.chdir(tmp_path)
  scope = {}
  for block in re.findall(r"```python\n(.*?)```", PAGE.read_text(), re.S):
    exec(compile(block, str(PAGE), "exec"), scope)
  assert all(np.abs(g).max() > 0 for g in scope["grads"])
  assert (tmp_path / "masks.png").stat().st_size > 10_000
  x, info = scope["x"], scope["info"]
  dense = attention(x, x, x, masks.CausalFrames(), q_info=info, k_info=info, implementation="xla")
  np.testing.assert_allclose(scope["ring"], dense, atol=1e-5)


def test_every_implementation_is_on_the_page():
  rows = re.findall(r"^\| `(\w+)` \|", PAGE.read_text(), re.M)
  assert sorted(rows) == sorted({"xla", *(kernel.name for kernel in KERNELS)})
