"""The benchmark runs somebody else's torch kernel, with its signature and layout, beside ours."""

import dataclasses

import pytest

from pallas_kernels.bench import check, peer, run, shapes, timing
from pallas_kernels.bench.run import Options
from pallas_kernels.bench.shapes import SHAPES, Shape

pytest.importorskip("torch")

# The public signature, on any device: `[B, heads, N, D]` in, output and tangent out.
KERNEL = """
import torch
from einops import rearrange
from flash_attn.flash_attn_interface import _flash_attn_backward, _flash_attn_varlen_backward


def attention(q, k, v, tq, tk, tv):
  scale = q.shape[-1] ** -0.5
  wide = [x.float() for x in (q, k, v, tq, tk, tv)]
  q, k, v, tq, tk, tv = wide
  p = torch.softmax(scale * q @ k.mT, -1)
  h = p * scale * (tq @ k.mT + q @ tk.mT)
  o = p @ v
  to = h @ v + p @ tv - h.sum(-1, keepdim=True) * o
  return o.bfloat16(), to.bfloat16()
"""
BROKEN = KERNEL.replace("tq @ k.mT + q @ tk.mT", "tq @ k.mT")


@pytest.fixture
def options(monkeypatch, tmp_path):
  monkeypatch.setattr(timing, "PEAK_SIZE", {"cpu": 64})
  monkeypatch.setattr(check, "DIMS", ())
  full = Shape("tiny-full", "tiny", 1, 2, 64, lambda: shapes.full(96))
  causal = lambda: shapes.by_chunk(shapes.causal, 4, 24)
  for shape in (full, dataclasses.replace(full, name="tiny-causal", build=causal)):
    monkeypatch.setitem(SHAPES, shape.name, shape)
  modes = ("forward", "forward_tangent")
  path = tmp_path / "kernel.py"
  return Options(("tiny-*",), modes, ("xla",), seconds=0.01, peer=str(path), check=True)


@pytest.mark.parametrize("source, sound", [(KERNEL, True), (BROKEN, False)])
def test_it_is_timed_and_checked_in_the_same_run(options, source, sound):
  with open(options.peer, "w") as file:
    file.write(source)
  result = run.run(options)
  (record,) = (r for r in result["check"] if r["implementation"] == peer.NAME)
  assert record["ok"] == sound, record
  mine = {(r["shape"], r["mode"]): r for r in result["rows"] if r["implementation"] == peer.NAME}
  assert mine["tiny-full", "forward_tangent"]["seconds"] > 0
  assert mine["tiny-causal", "forward_tangent"]["not_run"] == "it has no mask"
  assert "one mode" in mine["tiny-full", "forward"]["not_run"]
