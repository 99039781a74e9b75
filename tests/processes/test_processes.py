"""vidstep.parallel.processes: who joins whom, what two processes agree on, how one leaves."""

import json
import textwrap

import jax
import numpy as np
import pytest
from jax.sharding import NamedSharding, PartitionSpec
from together import Together

from experiments import flags
from vidstep.parallel import processes
from vidstep.parallel.mesh import make_mesh

VARIABLES = (
  "SLURM_STEP_NUM_TASKS", "SLURM_PROCID", "OMPI_COMM_WORLD_SIZE", "TPU_PROCESS_ADDRESSES",
  "TPU_WORKER_HOSTNAMES", "MEGASCALE_NUM_SLICES",
)  # fmt: skip


@pytest.fixture
def bare(monkeypatch):
  """An environment without launchers, and a jax that is only asked."""
  for name in VARIABLES:
    monkeypatch.delenv(name, raising=False)
  asked = []
  join = lambda *args, **kwargs: asked.append((args, kwargs["cluster_detection_method"]))
  monkeypatch.setattr(jax.distributed, "initialize", join)
  monkeypatch.asked = asked
  return monkeypatch


@pytest.mark.parametrize(
  ("environment", "name"),
  [
    ({}, None),
    ({"SLURM_STEP_NUM_TASKS": "8", "SLURM_PROCID": "3"}, "Slurm"),
    ({"SLURM_STEP_NUM_TASKS": "1", "SLURM_PROCID": "0"}, None),  # one step of a larger job
    ({"SLURM_NTASKS": "8", "SLURM_PROCID": "0"}, None),  # the batch script itself
    ({"OMPI_COMM_WORLD_SIZE": "2"}, "Open MPI"),
    ({"TPU_WORKER_HOSTNAMES": "a,b"}, "GKE"),
    ({"TPU_WORKER_HOSTNAMES": "localhost"}, None),
    ({"MEGASCALE_NUM_SLICES": "2"}, "GKE"),
  ],
)
def test_a_launcher_is_known_by_its_environment(bare, environment, name):
  for key, value in environment.items():
    bare.setenv(key, value)
  assert processes.launcher() == name
  processes.start()
  assert bare.asked == ([] if name is None else [((None, None, None), None)])
  processes.start(distributed=False)
  assert len(bare.asked) == (name is not None)


def test_flags_stand_in_for_a_launcher(bare):
  processes.start("node1:8476", 2, 1)
  processes.start("node1:8476", 1, 0)  # one process is alone
  processes.start(distributed=True)
  assert bare.asked == [(("node1:8476", 2, 1), "deactivate"), ((None, None, None), None)]
  with pytest.raises(ValueError, match="need --processes and --process as well"):
    processes.start("node1:8476")
  with pytest.raises(ValueError, match="should be host:port, such as node1:8476"):
    processes.start("node1", 2, 0)


def test_devices_that_are_in_use_already_are_said_to_be(monkeypatch):
  jax.devices()
  with pytest.raises(ValueError, match="may import jax, not compute with it"):
    processes.start("localhost:1", 2, 0)


def test_commands_for_one_process_refuse_to_be_several(bare):
  class Parsed:
    def __init__(self, value):
      self.value = value

  for name, value in {"_COORDINATOR": None, "_PROCESSES": None, "_PROCESS": None}.items():
    bare.setattr(flags, name, Parsed(value))
  bare.setattr(flags, "_DISTRIBUTED", Parsed(None))
  flags.start_processes(False)
  bare.setenv("OMPI_COMM_WORLD_SIZE", "4")
  with pytest.raises(ValueError, match="runs as one process, but Open MPI asks for several"):
    flags.start_processes(False)
  bare.setattr(flags, "_DISTRIBUTED", Parsed(False))
  flags.start_processes(False)
  assert not bare.asked


def test_a_bucket_is_no_workdir_but_keeps_compiled_programs(monkeypatch):
  flags.define_workdir("of a run")
  monkeypatch.setattr(flags.flags.FLAGS["workdir"], "value", "gs://b/run")
  with pytest.raises(ValueError, match=r"--workdir=gs://b/run is no folder.*docs/launch.md"):
    flags.check_local_folders()
  kept = []
  monkeypatch.setattr(jax.config, "update", lambda *change: kept.append(change))
  flags.use_compilation_cache("gs://b/cache")
  assert kept[0] == ("jax_compilation_cache_dir", "gs://b/cache")


def test_alone_everything_is_trivial(tmp_path):
  processes.check_devices()
  processes.compare({"a": 1})
  processes.check_shared(tmp_path / "new")
  assert (tmp_path / "new").is_dir() and processes.is_first()
  assert processes.gather("x") == ["x"]
  mesh = make_mesh(devices=jax.devices()[:2])
  sharding = NamedSharding(mesh, PartitionSpec("data"))
  assert processes.share(sharding, 4) == (0, 1)
  placed = processes.place({"a": np.arange(4)}, sharding)
  np.testing.assert_array_equal(processes.to_host(placed)["a"], np.arange(4))
  processes.failed(RuntimeError("nobody waits"))
  with pytest.raises(SystemExit):
    processes.leave("why", 3)


class Grid:
  """A sharding of a batch in 4 parts over 8 devices, two a process, as a table."""

  def __init__(self, parts):
    self.parts = parts

  def devices_indices_map(self, shape):
    class Device:
      def __init__(self, process_index):
        self.process_index = process_index

    step = shape[0] // 4
    return {Device(i // 2): (slice(p * step, p * step + step),) for i, p in enumerate(self.parts)}


@pytest.mark.parametrize(
  ("parts", "shares"),
  [
    ([0, 0, 1, 1, 2, 2, 3, 3], [(0, 4), (1, 4), (2, 4), (3, 4)]),
    ([0, 1, 0, 1, 2, 3, 2, 3], [(0, 2), (0, 2), (1, 2), (1, 2)]),  # pairs hold the same samples
    ([0, 1, 2, 3, 0, 1, 2, 3], [(0, 2), (1, 2), (0, 2), (1, 2)]),
    ([0, 2, 1, 3, 0, 2, 1, 3], [(0, 2), (1, 2), (0, 2), (1, 2)]),  # not in one piece
  ],
)
def test_processes_that_hold_the_same_samples_load_the_same(monkeypatch, parts, shares):
  for i, expected in enumerate(shares):
    monkeypatch.setattr(jax, "process_index", lambda i=i: i)
    assert processes.share(Grid(parts), 8) == expected


def test_a_batch_that_is_cut_across_processes_is_refused(monkeypatch):
  monkeypatch.setattr(jax, "process_index", lambda: 0)
  with pytest.raises(ValueError, match="across processes unevenly"):
    processes.share(Grid([0, 1, 1, 2, 2, 3, 3, 0]), 8)


TWO = """
  import json, pathlib, sys
  import jax, numpy as np
  from jax.sharding import NamedSharding, PartitionSpec
  from vidstep.parallel import processes
  from vidstep.parallel.mesh import make_mesh

  folder = pathlib.Path(sys.argv[1])
  coordinator, count, process = (w.partition("=")[2] for w in sys.argv[2:])
  processes.start(coordinator, int(count), int(process))

  def refusal(call, *args):
    try:
      return str(call(*args))
    except ValueError as error:
      return str(error)

  processes.check_devices()
  told = {"first": processes.is_first(), "texts": processes.gather("é" * (INDEX + 1))}
  told["same"] = refusal(processes.compare, {"a": 1, "b": [2]})
  told["differs"] = refusal(processes.compare, {"a": 1, "b": [2 + INDEX]})
  told["shared"] = refusal(processes.check_shared, folder / "shared")
  (folder / str(INDEX)).mkdir()
  told["apart"] = refusal(processes.check_shared, folder / str(INDEX))
  mesh = make_mesh()
  by_sample = NamedSharding(mesh, PartitionSpec("data"))
  told["share"] = processes.share(by_sample, 8)
  placed = processes.place({"x": np.arange(8.0)}, by_sample)
  told["local"] = [float(s.data[0]) for s in placed["x"].addressable_shards]
  told["whole"] = processes.to_host(placed)["x"].tolist()
  (folder / f"{INDEX}.json").write_text(json.dumps(told))
  if INDEX == 1:
    processes.failed(KeyError("only here"))
  try:
    processes.gather("never answered")
  except Exception as error:
    processes.failed(error)
"""


def test_two_processes_agree_and_end_together(tmp_path):
  run = Together(tmp_path, tmp_path / "cache", textwrap.dedent(TWO), [tmp_path], devices=1)
  status, texts, seconds = run.finish()
  first, second = (json.loads((tmp_path / f"{i}.json").read_text()) for i in (0, 1))
  assert (first["first"], second["first"]) == (True, False)
  assert (first.pop("share"), second.pop("share")) == ([0, 2], [1, 2])
  assert (first.pop("local"), second.pop("local")) == ([0.0], [4.0])
  apart = [first.pop("apart"), second.pop("apart")]  # each names the folder that it was given
  del first["first"], second["first"]
  assert first == second  # whatever it is, both know it
  assert first["texts"] == ["é", "éé"]
  assert first["same"] == first["shared"] == "None"
  assert "Process 1 differs from process 0: b is [3] there and [2] in process 0" in first["differs"]
  assert all("Process 1 does not see" in a and "storage that they share" in a for a in apart)
  assert first["whole"] == list(range(8))
  assert not list((tmp_path / "shared").iterdir())  # no mark is left
  assert status[1] == 1 and "process 1 of 2: KeyError" in texts[1]
  assert status[0] != 0 and "another process has ended" in texts[0] and seconds < 60
