"""The bench of Wan as a whole at a tiny size, and its arithmetic by hand."""

import functools
import json

import jax
import numpy as np
import pytest
from entry_point import flags_set, imported_alone
from mutation import assert_caught, mutant

from experiments import wan_bench_attention as attention
from experiments import wan_bench_clip, wan_bench_floor, wan_bench_report
from experiments.wan_bench_floor import Work
from experiments.wan_bench_programs import Programs, dit_shapes, draw, make_size
from experiments.wan_bench_rows import FIRST, ROWS
from vidstep.causal.rollout import rollout
from vidstep.metrics.machines import machine
from vidstep.models.cond import Cond

wan_bench = imported_alone("experiments.wan_bench")
pytestmark = pytest.mark.usefixtures("unoptimized")


def run(out, **flags):
  with flags_set(wan_bench, out=str(out), tiny=True, clips=1, **flags):
    wan_bench.main([])
  return json.loads((out / "wan.json").read_text())


def test_one_command_writes_numbers_a_page_and_a_picture(tmp_path):
  result = run(tmp_path, rows=["chunk-2-noisy"], decoder="tiny", machine="h200-1")
  (row,) = result["rows"]
  assert row["fps"] == pytest.approx(21 / np.median(row["clips"])) and row["published"] == 25.6
  stages = row["stages"]
  # Two chunks of 3 latents: four steps and a write, then two steps, the last of which nobody reads.
  counts = {name: stage["calls"] for name, stage in stages.items()}
  assert counts == {"denoise": 6, "write": 1, "decode, first": 1, "decode": 1, "to host": 2}
  for stage in stages.values():
    if "least" in stage:
      assert stage["fraction"] == pytest.approx(stage["least"] / stage["seconds"])
  assert stages["denoise"]["attention"] in ("xla", "xla_chunked") and stages["denoise"]["moved"] > 0
  refused = {r["implementation"]: r.get("refused") for r in result["attention"]}
  assert "cudnn" in refused["cudnn"] and refused["pallas_gpu"] == "no GPU"
  assert (tmp_path / "wan.png").stat().st_size > 1000
  assert row["finite"] and stages["denoise"]["bandwidth"] == pytest.approx(
    stages["denoise"]["moved"] / stages["denoise"]["p50"] / 4.8e12
  )
  ways = [way["name"] for way in result["decoding"]]
  assert ways == ["as in the rows", "latent by latent", "in the compiler's own layout"]
  page = (tmp_path / "wan.md").read_text()
  assert "| chunk-2-noisy | 7 |" in page and "| cudnn | 3 | not run" in page


def test_it_stops_before_its_time_is_over_and_says_what_was_left_out(tmp_path):
  result = run(tmp_path, minutes=0.0)
  assert result["rows"] == [] and set(result["not_run"]) == set(ROWS)
  assert "0 s are left" in (tmp_path / "wan.md").read_text()


def test_floors_need_no_device(tmp_path):
  with flags_set(wan_bench, out=str(tmp_path), tiny=True, floor=True, rows=["chunk-1", "chunk-4"]):
    wan_bench.main([])
  page = (tmp_path / "roofline.md").read_text()
  assert page.count("not run") == 2 * 2 and "## h200-1" in page


def test_rows_that_do_not_exist_are_named():
  with flags_set(wan_bench, out="x", rows=["chunk-9"]), pytest.raises(ValueError, match="chunk-9"):
    wan_bench.main([])


# ------------------------------------------------------------------------------------------------
# What is timed is what the library does
# ------------------------------------------------------------------------------------------------


@functools.cache
def without_pixels():
  size = make_size("none", tiny=True)
  return Programs(size, 3, "xla"), draw(dit_shapes(size))


def check_clip(module):
  """With one step a chunk no noise is drawn between steps, so that the rollout must agree."""
  clip = module.Clip(*without_pixels())
  size = clip.programs.size
  row = type(ROWS["chunk-1"])("one", 3, (1.0,), False, 1.0, 1.0, 1.0)
  object.__setattr__(row, "steps", lambda index: (1.0,))
  got = np.concatenate(clip.play(row)["latents"], axis=1)
  text = jax.random.normal(jax.random.key(1), (1, size.text, size.fields["text_dim"]))
  noise = np.concatenate(clip.noises, axis=1)
  want, _ = rollout(
    size.network("xla"),
    clip.params,
    noise,
    Cond(text=text),
    jax.random.key(0),
    chunk=3,
    times=(1.0,),
  )
  np.testing.assert_allclose(got, want, atol=0.05)


def test_a_clip_is_a_rollout_of_the_library():
  check_clip(wan_bench_clip)
  old = 'call("write", held, self.params, cache, x)'
  assert_caught(check_clip, mutant(wan_bench_clip, old, old.replace(", x)", ", 0 * x)")))


# ------------------------------------------------------------------------------------------------
# Arithmetic
# ------------------------------------------------------------------------------------------------


def test_forwards_are_those_of_the_table():
  """NFE a chunk: 5, 3, 2, 2 after a first chunk of 5; the last chunk is written by nobody."""
  assert [ROWS[f"chunk-{n}"].forwards(21) for n in ("4", "2", "2-noisy", "1")] == [34, 22, 17, 16]
  assert [ROWS[f"frame-{n}"].forwards(21) for n in ("4", "2", "2-noisy", "1")] == [104, 64, 45, 44]
  assert all(row.steps(0) == FIRST for row in ROWS.values())


def check_work(module):
  """Wan 1.3B by hand: 2 D (4 D + 2 D + 2 F) a token and block, and 4 D a pair of tokens."""
  size, chunk, held = make_size("none"), 3, 9
  floor = module.Floor(size, chunk)
  d, f, layers, tokens = 1536, 8960, 30, 1560
  linear = chunk * tokens * layers * (2 * d * (4 * d + 2 * d + 2 * f))
  pairs = chunk * tokens * layers * 4 * d * ((chunk + held) * tokens + 512)
  work = floor.work("denoise", held)
  assert work.flops == pytest.approx(linear + pairs, rel=2e-3)  # embeddings and head are small
  cache = held * tokens * layers * 2 * 2 * d
  assert work.bytes == pytest.approx(2 * 1.42e9 + cache, rel=0.03)
  assert floor.work("write", held).bytes - work.bytes == chunk * tokens * layers * 2 * 2 * d


def test_work_of_a_forward_by_hand():
  check_work(wan_bench_floor)
  assert_caught(check_work, mutant(wan_bench_floor, "(self.size.frames - held)", "(0 * held)"))


def check_times(module):
  """At 989.4 TFLOP/s and 4.8 TB/s."""
  h200 = machine("h200-1")
  assert module.Work(989.4e12, 2.4e12).seconds(h200) == pytest.approx(1.0)
  assert module.Work(989.4e12, 9.6e12).seconds(h200) == pytest.approx(2.0)


def test_the_longer_of_computing_and_moving_counts():
  check_times(wan_bench_floor)
  assert_caught(check_times, mutant(wan_bench_floor, "return max(", "return min("))


class FakeFloor:
  """Every call must take half a second of computing."""

  def work(self, stage, held):
    return Work(0.5 * 989.4e12, 1.0)


def test_summary_by_hand():
  programs = type("P", (), {"attention": "xla", "stages": {}})()
  program = type("Q", (), {"moved": 4.8e12, "seconds": 9.0})()
  programs.stages = {"denoise": program, "decode": program}
  samples = {"denoise": [(0, 1.0), (3, 3.0)], "decode": [(0, 1.0)], "to host": [(0, 0.25)]}
  stages = wan_bench_report.stage_table(samples, programs, FakeFloor(), machine("h200-1"))
  assert stages["denoise"]["fraction"] == pytest.approx(0.25)  # 2 x 0.5 of 4 s
  assert stages["denoise"]["p50"] == 2.0 and stages["denoise"]["bound"] == "compute"
  assert stages["decode"]["attention"] is None and "least" not in stages["to host"]
  chunked = [[3.0, 2.0, 1.0, 0.5], [5.0, 4.0, 1.0, 1.5]]
  row = wan_bench_report.row_summary(ROWS["chunk-1"], 81, [4.0, 5.0, 4.5], chunked, stages)
  assert row["fps"] == pytest.approx(18.0) and row["ahead"] == pytest.approx(18 / 25.6)
  assert (row["first"], row["second"], row["steady"]) == (4.0, 3.0, 1.0)
  assert row["steady_fps"] == 12.0  # 3 latents, 4 frames each
  assert row["floor_fps"] == pytest.approx(54.0) and row["fraction"] == pytest.approx(1.5 / 4.5)


def test_the_fastest_attention_that_is_right_is_taken():
  records = [
    {"implementation": "wrong", "seconds": 1.0, "error": 0.5},
    {"implementation": "right", "seconds": 3.0, "error": 0.004},
    {"implementation": "slow", "seconds": 4.0, "error": 0.0},
    {"implementation": "none", "refused": "it does not run here"},
  ]
  assert attention.best(records) == "right"
  assert attention.best(records[-1:]) is None
