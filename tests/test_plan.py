"""Planning a run: the step that training compiles, its memory and operations, and what is said."""

import json
import os
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import NamedSharding, PartitionSpec

from experiments import flags as shared
from experiments import plan, plan_step
from vidstep.parallel.mesh import make_mesh

TINY = "configs/wan/tf_scm.py:tiny"
PLAIN = "configs/wan/teacher_forcing.py:tiny"  # without tangents: the quickest to compile
pytestmark = pytest.mark.usefixtures("unoptimized")


@pytest.fixture(scope="module")
def record():
  """A plan of the tiny TF-sCM for eight simulated GPUs, made in this process."""
  return plan_step.plan_step(shared.load_config(TINY), "h100-8")


def test_the_plan_of_a_tiny_run_is_complete(record):
  (step,) = record["steps"]
  assert record["compiler"] == "estimate" and record["mesh"]["fsdp"] == 8
  assert step["roles"] == ["student"] and step["share"] == 1.0 and step["fits"]
  assert step["flops"] > step["model_flops"] > 0
  assert step["sent"] and step["memory_bytes"] > 0 and not step["notes"]
  seconds = step["seconds"]
  assert seconds["bound"] == max(seconds[k] for k in ("compute", "memory", "links", "network"))
  assert 0 < step["mfu"] < step["hfu"] < 1


def test_what_lies_on_a_device_is_what_the_compiler_takes(record):
  # But for the padding of 8 devices' parts, and a key and counters.
  held, taken = sum(record["held"].values()), record["steps"][0]["arguments"]
  assert held <= taken < held + 2000
  held = record["held"]
  assert held["student EMA"] == held["student weights"]
  assert held["student optimizer"] == pytest.approx(2 * held["student weights"], abs=64)
  assert held["student weights"] / 2 <= held["teacher frozen"] < 0.7 * held["student weights"]


def test_bytes_of_a_part():
  mesh = make_mesh(2, 4)
  cut = lambda *axes: NamedSharding(mesh, PartitionSpec(*axes))
  tree = {"a": jax.ShapeDtypeStruct((8, 6), jnp.bfloat16), "key": jax.random.key(0)}
  shardings = {"a": cut("fsdp"), "key": cut()}
  assert plan_step.shard_bytes(tree, shardings) == 2 * 6 * 2


def test_a_record_is_read_for_people(record):
  text = plan.text(record)
  for words in ("8 devices (fsdp 8)", "ESTIMATE", "student optimizer", "all-gather", "fits 74.5"):
    assert words in text
  pace = plan.pace(record)
  assert pace["mfu"] == pytest.approx(record["steps"][0]["mfu"])


def test_kinds_of_steps_weigh_as_often_as_they_come():
  step = {"share": 0.75, "model_flops": 2e14, "flops": 4e14, "bound": "links", "fits": True}
  step |= {"seconds": {"bound": 1.0, "serial": 2.0}, "total": 5.0}
  other = step | {"share": 0.25, "bound": "compute", "seconds": {"bound": 5.0, "serial": 6.0}}
  record = {"machine": "h100-8", "steps": [step, other | {"fits": False, "total": 9.0}]}
  pace = plan.pace(record)
  assert (pace["seconds"], pace["serial"], pace["bound"]) == (2.0, 3.0, "compute")
  assert pace["mfu"] == pytest.approx(2e14 / 2.0 / 989.4e12)
  assert plan.peak(record) == 9.0 and not plan.fits(record)
  assert plan.pace(record | {"steps": [{"share": 1.0, "fits": False}]}) is None


def test_a_search_goes_from_the_given_mesh_to_frugal_ones():
  config = shared.load_config(TINY)
  tried = list(plan.candidates(config, "h100-8"))
  assert tried[0] == () and "--config.mesh.fsdp=8" in tried[1]
  assert any("--config.mesh.sequence=2" in changes for changes in tried)
  assert any("--config.model.remat=offload" in changes for changes in tried)
  for changes in tried[1:]:
    sizes = dict(c.removeprefix("--config.").split("=") for c in changes)
    samples = int(sizes["mesh.fsdp"])
    assert samples * int(sizes["mesh.sequence"]) == 8
    assert config.data.batch_size % (samples * int(sizes["train.accumulate"])) == 0


def test_reasons_are_one_sentence():
  out_of = "RESOURCE_EXHAUSTED: XLA:TPU compile permanent error. Ran out of memory in memory space "
  out_of += "hbm. Used 17.40G of 15.75G hbm. Exceeded hbm capacity by 1.65G.\n\nTotal hbm usage"
  assert plan_step._needed(out_of, 5.0) == {"total": 17.40 * 2**30}
  assert "Used 17.40G" in plan_step._sentence(out_of)
  out_of = "RESOURCE_EXHAUSTED: memory required for HLO temporaries (2.50G) exceeds"
  assert plan_step._needed(out_of, 2.0**30) == {"total": 3.5 * 2**30, "temporary": 2.5 * 2**30}


def test_a_machine_that_does_not_exist_is_named():
  with pytest.raises(ValueError, match="Unknown machine 'h100-2'"):
    plan.plan([f"--config={TINY}"], "h100-2")


def test_the_command_line_plans_in_a_process_of_its_own(tmp_path):
  out, mesh = tmp_path / "plan.json", ["--config.mesh.fsdp=4", "--config.mesh.sequence=2"]
  command = [sys.executable, "-m", "experiments.plan", f"--config={PLAIN}", "--machine=h200-8"]
  quick = f"{os.environ['XLA_FLAGS']} --xla_backend_optimization_level=0"
  command += [*mesh, f"--out={out}"]
  run = subprocess.run(
    command, capture_output=True, text=True, check=True, env=os.environ | {"XLA_FLAGS": quick}
  )
  assert "8 devices (fsdp 4 x sequence 2)" in run.stdout and "fits" in run.stdout
  (record,) = json.loads(out.read_text())
  assert record["mesh"]["sequence"] == 2 and record["machine"] == "h200-8"
  assert np.isfinite(record["steps"][0]["mfu"])
