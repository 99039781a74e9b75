"""More than one process: how they find one another, agree, share a batch and end together.

Every function is trivial, and free, where there is one process only. None but `launcher` may be
called before `start`: asking jax for its processes opens the devices.
"""

import collections
import json
import os
import pathlib
import re
import signal
import sys
import threading
import traceback
import uuid

import jax
import numpy as np
from jax.experimental import multihost_utils

PATIENCE = 300  # seconds that a process waits for the others to be started
HEARTBEAT = 100  # seconds without a sign of life after which a process counts as dead
GOODBYE = 5  # seconds that a failing process waits for the others to fail as well


def launcher():
  """Name of the launcher that started several processes, as it says in the environment, or None.

  Slurm (inside `srun`), Open MPI and multi-host TPUs of GKE say so. TPU VMs (queued resources) and
  plain Kubernetes have to be asked over the network: `start(distributed=True)` does.
  """
  several = lambda name: os.environ.get(name, "1").isdigit() and int(os.environ.get(name, "1")) > 1
  if several("SLURM_STEP_NUM_TASKS") and "SLURM_PROCID" in os.environ:
    return "Slurm"
  if several("OMPI_COMM_WORLD_SIZE"):
    return "Open MPI"
  hosts = os.environ.get("TPU_PROCESS_ADDRESSES", os.environ.get("TPU_WORKER_HOSTNAMES", ""))
  if "," in hosts or several("MEGASCALE_NUM_SLICES"):
    return "GKE"
  return None


def start(coordinator=None, processes=None, process=None, *, distributed=None):
  """Joins the other processes, if there are others; call it before anything touches a device.

  Args:
    coordinator: "host:port" of process 0. None, like the next two: the launcher knows.
    processes: how many there are.
    process: which of them this is, 0 the first.
    distributed: True asks jax to find out the three by itself (TPU VMs, Kubernetes), False stays
      alone whatever the environment says, None goes by `launcher()`.

  Raises:
    ValueError: if something is missing, or a device is in use already.
  """
  given = {"--coordinator": coordinator, "--processes": processes, "--process": process}
  missing = [name for name, value in given.items() if value is None]
  if distributed is False or processes == 1:
    return
  if len(missing) == 3 and not distributed and launcher() is None:
    return
  if missing and not distributed and launcher() is None:
    raise ValueError(
      f"Several processes without a launcher need {' and '.join(missing)} as well: "
      "--coordinator=host:port of the first, --processes=2 and --process=0 or 1."
    )
  if coordinator is not None and not coordinator.rpartition(":")[2].isdigit():
    raise ValueError(f"--coordinator={coordinator} should be host:port, such as node1:8476.")
  where = coordinator or f"the address that {launcher() or 'the machine'} gives"
  print(f"joining the other processes at {where}, for {PATIENCE} s at most", file=sys.stderr)
  try:
    jax.distributed.initialize(
      coordinator,
      processes,
      process,
      cluster_detection_method=None if missing else "deactivate",
      initialization_timeout=PATIENCE,
      heartbeat_timeout_seconds=HEARTBEAT,
    )
  except RuntimeError as error:
    if "before" not in str(error):
      raise
    raise ValueError(
      "A device was in use before the processes had met: a config file may import jax, not "
      "compute with it."
    ) from error


def check_devices():
  """Refuses what no collective survives.

  Raises:
    ValueError: if processes have unequal numbers of devices, or never met.
  """
  if jax.process_count() > 1 and not jax.distributed.is_initialized():
    raise ValueError(
      f"This is one of {jax.process_count()} processes that have not met: give --distributed."
    )
  counts = collections.Counter(device.process_index for device in jax.devices())
  if len(set(counts.values())) > 1:
    each = ", ".join(f"process {i} has {n}" for i, n in sorted(counts.items()))
    raise ValueError(f"Every process needs the same number of devices: {each}.")


def is_first():
  """Whether this process is the one that writes what is written once."""
  return jax.process_index() == 0


def gather(text):
  """The texts of all processes, in their order. Nobody returns before everybody has called."""
  if jax.process_count() == 1:
    return [text]
  data = np.frombuffer(text.encode(), np.uint8)
  lengths = multihost_utils.process_allgather(np.int32(len(data)))
  padded = np.zeros(max(1, lengths.max()), np.uint8)
  padded[: len(data)] = data
  rows = multihost_utils.process_allgather(padded)
  return [bytes(row[:n]).decode() for row, n in zip(rows, lengths, strict=True)]


def compare(facts):
  """Refuses to go on unless all processes hold the same facts.

  Args:
    facts: dict of JSON values, by names that a reader of the sentence knows.

  Raises:
    ValueError: in every process, naming the first process that differs from process 0, and in what.
  """
  first, *others = [json.loads(text) for text in gather(json.dumps(facts))]
  for number, other in enumerate(others, 1):
    for name in first | other:
      here, there = first.get(name, "absent"), other.get(name, "absent")
      if here != there:
        raise ValueError(
          f"Process {number} differs from process 0: {name} is {there} there and {here} in process "
          "0. Start all processes with the same command, code and data."
        )


def check_shared(folder):
  """Makes a folder, and makes sure that it is the same one for all processes.

  Raises:
    ValueError: in every process, naming the first that does not see what process 0 writes.
  """
  folder = pathlib.Path(folder)
  if is_first():
    folder.mkdir(parents=True, exist_ok=True)
  if jax.process_count() == 1:
    return
  mark = folder / gather(f".process_{uuid.uuid4().hex}")[0]
  if is_first():
    mark.touch()
  gather("written")
  seen = gather("seen" if mark.exists() else "")
  if is_first():
    mark.unlink()
  if "" in seen:
    raise ValueError(
      f"Process {seen.index('')} does not see {folder} of process 0: all processes need the same "
      "folder, on storage that they share (NFS, Lustre, Filestore, a mounted bucket)."
    )


def share(sharding, size):
  """Which part of a batch this process loads.

  Processes whose devices hold the same samples (a mesh axis that does not split the batch lies
  across them) load the same part.

  Args:
    sharding: of the batch, by its first axis.
    size: of the batch, over all processes.

  Returns:
    (index, count): this process loads part `index` of `count`, in the order of the samples.

  Raises:
    ValueError: if processes overlap in part of their samples.
  """
  rows = collections.defaultdict(set)
  for device, (index, *_) in sharding.devices_indices_map((size,)).items():
    rows[device.process_index].update(range(*index.indices(size)))
  parts = sorted({tuple(sorted(r)) for r in rows.values()})
  if len({len(part) for part in parts}) > 1 or sum(map(len, parts)) != size:
    raise ValueError(
      "The mesh cuts the batch across processes unevenly: choose mesh.data and mesh.fsdp so that "
      "each process holds whole shards of the batch, or the same ones as another."
    )
  return parts.index(tuple(sorted(rows[jax.process_index()]))), len(parts)


def place(tree, shardings):
  """Puts arrays that every process holds whole onto a mesh of all processes.

  Args:
    tree: of arrays, equal in all processes.
    shardings: tree of `NamedSharding`s, or one for all.
  """
  if jax.process_count() == 1:
    return jax.device_put(tree, shardings)
  if isinstance(shardings, jax.sharding.Sharding):
    shardings = jax.tree.map(lambda x: shardings, tree)

  def leaf(x, sharding):
    if isinstance(x, jax.Array) and not x.is_fully_addressable:
      return jax.device_put(x, sharding)
    x = np.asarray(x)
    return jax.make_array_from_callback(x.shape, sharding, lambda index: x[index])

  return jax.tree.map(leaf, tree, shardings)


def to_host(tree):
  """Global arrays as NumPy, whole, in every process (all of them must call)."""
  return multihost_utils.process_allgather(tree, tiled=True)


class Preemption:
  """Notices SIGTERM, with which schedulers announce that they will take the machine back.

  As a context manager it answers the signal in this process; among several processes jax does, from
  `start` on, whichever of them receives it.
  """

  def __init__(self):
    self._caught, self._before = False, None

  def __enter__(self):
    self._mine = jax.process_count() == 1 and threading.current_thread() is threading.main_thread()
    if self._mine:
      self._before = signal.signal(signal.SIGTERM, self._catch)
    return self

  def __exit__(self, *_):
    if self._mine:
      signal.signal(signal.SIGTERM, self._before or signal.SIG_DFL)

  def _catch(self, *_):
    self._caught = True

  def reached(self, step):
    """Whether to save and stop after this step; the same answer in all processes.

    Ask after every step: among several processes the first step that none has begun is agreed on.
    """
    if jax.process_count() == 1:
      return self._caught
    return multihost_utils.reached_preemption_sync_point(step)


def leave(sentence, status=1):
  """Ends this process for a reason of its own: says it, waits a moment for the others, and is gone.

  Among several processes none may raise and go through the usual end, where each waits for all: the
  others may be in a collective that now never ends. They fail as soon as this one is gone, or after
  `HEARTBEAT` seconds where the network does not tell.
  """
  if not jax.distributed.is_initialized():
    print(f"error: {sentence}", file=sys.stderr)
    sys.exit(status)
  which = f"process {jax.process_index()} of {jax.process_count()}"
  print(f"error: {which}: {sentence}", file=sys.stderr, flush=True)
  sys.stdout.flush()
  together = threading.Thread(target=jax.distributed.shutdown, daemon=True)
  together.start()
  together.join(GOODBYE)
  os._exit(status)


def lost(error):
  """Whether an exception says that a collective failed: then another process is gone."""
  words = str(error)
  return (
    jax.distributed.is_initialized()
    and re.match(r"[A-Z_]+: ", words) is not None  # a status of the runtime
    and re.search(r"gloo|nccl|connection|unavailable|heartbeat|deadline", words, re.I) is not None
  )


def failed(error):
  """Ends this process because of an error that the others need not have; alone: does nothing."""
  if not jax.distributed.is_initialized():
    return
  reason = " ".join(str(error).split())[:300]
  if lost(error):
    leave(
      f"another process has ended or is out of reach; its own log says why ({reason}). Start all "
      "processes again: the same command goes on from the last checkpoint."
    )
  traceback.print_exception(error)
  leave(f"{type(error).__name__}: {reason}")
