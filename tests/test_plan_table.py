"""The page of presets: every preset exists, and every kind of row can be read and drawn."""

import pytest

from experiments import flags as shared
from experiments import plan_picture, plan_table
from vidstep.metrics.machines import machine

GIB = 2**30
STEP = {
  "roles": ["student"], "share": 1.0, "fits": True, "total": 20 * GIB, "arguments": 9 * GIB,
  "temporary": 10 * GIB, "code": 0, "flops": 4e15, "model_flops": 3e15, "sent": {"all-gather": 5e9},
  "collectives": {"all-gather": 7.0}, "far": 0.0, "memory_bytes": 1e12, "bound": "compute",
  "seconds": {"compute": 8.0, "memory": 1.0, "links": 2.0, "network": 0.0, "bound": 8.0,
  "serial": 11.0}, "notes": ["something was guessed"],
}  # fmt: skip
ROW = {
  "machine": "v5p-128", "mesh": {"data": 1, "fsdp": 64, "sequence": 1, "tensor": 1},
  "batch": 64, "attention": "pallas_tpu", "compiler": "compiler", "steps": [STEP], "minutes": 3.0,
  "held": {"student weights": GIB, "student EMA": GIB, "student optimizer": 2 * GIB,
  "teacher frozen": 4 * GIB, "batch": GIB}, "command": "python -m experiments.plan",
}  # fmt: skip
UNFIT = {k: STEP[k] for k in ("roles", "share", "flops", "model_flops")}
UNFIT |= {"fits": False, "total": 120.0 * GIB, "notes": [], "error": "Ran out of memory."}
ROWS = {
  "good": ROW,
  "large": ROW | {"steps": [UNFIT]},
  "odd": {"refused": "No such mesh.", "machine": "v5e-4", "minutes": 0.0, "command": "python"},
}


@pytest.mark.parametrize("name", plan_table.PRESETS)
def test_a_preset_names_a_config_and_a_machine_that_exist(name):
  config, where, more = plan_table.PRESETS[name]
  config = shared.load_config(config)
  sizes = dict(flag.removeprefix("--config.").split("=") for flag in more)
  devices, parts = machine(where).devices, int(sizes.get("train.accumulate", 1))
  assert where in name
  assert config.data.batch_size % (devices * parts) == 0  # of the default mesh, fsdp alone


def test_the_page_has_a_line_for_every_kind_of_row():
  page = plan_table.page(ROWS)
  good, large, odd = (
    line for line in page.splitlines() if line.startswith(("| good", "| large", "| odd"))
  )
  words = ("fsdp 64; 64", "20.0 of 95.7", "yes", "4e+03 (3e+03)", "5.0", "8", "compute", "82%")
  for word in words:
    assert f" {word} " in good
  assert "120.0 of 95.7 | **no**" in large and "refused" in odd
  for note in ("good: something was guessed.", "large: Ran out of memory.", "odd: No such mesh."):
    assert note in page


def test_the_picture_shows_all_of_the_memory(tmp_path):
  parts = plan_picture.parts_of(ROW)
  assert sum(parts.values()) == 20 * GIB
  assert parts["weights"] == GIB and parts["program and padding"] == GIB
  assert sum(plan_picture.parts_of(ROWS["large"]).values()) == 120 * GIB
  assert plan_picture.parts_of(ROWS["odd"]) is None
  plan_picture.draw(ROWS, tmp_path / "plan.png")
  assert (tmp_path / "plan.png").stat().st_size > 5000
