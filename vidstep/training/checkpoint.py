"""Checkpoints: asynchronous saves, resuming that survives damage, single networks by reference.

Layout: `workdir/checkpoints/<step>/` with one Orbax item for each part, so that one network can be
read without the rest:

    <role>.params, <role>.ema, <role>.opt    weights (or low-rank factors without their base), their
                                             average, optimizer state
    run                                      step, update counts, aux, PRNG key
    meta                                     JSON: config, loader position, references to frozen
                                             networks ("workdir:role:ema@step"), checksums

A step directory appears under its name only when it is complete (Orbax renames it last).
"""

import json
import pathlib
import shutil

import jax
import jax.numpy as jnp
import orbax.checkpoint as ocp
from absl import logging

from vidstep.io.rules import flatten, unflatten
from vidstep.models.precision import kept_dtype
from vidstep.parallel import processes
from vidstep.training.checksum import checksum
from vidstep.training.compare import config_changes, first_mismatch
from vidstep.training.lora import parse_lora
from vidstep.training.pretrained import is_pretrained, load_pretrained, parse_pretrained
from vidstep.training.state import Net

FORMAT = 1


class Checkpoints:
  """The checkpoints of one run.

  Args:
    workdir: the run's folder.
    keep: how many of the latest to keep.
  """

  def __init__(self, workdir, *, keep=2):
    self.root = pathlib.Path(workdir).absolute() / "checkpoints"
    quiet_orbax()
    options = ocp.CheckpointManagerOptions(max_to_keep=keep, create=True)
    self._manager = ocp.CheckpointManager(self.root, options=options)

  def save(self, state, *, config, loader=None, references=None):
    """Starts saving and returns once the state may be donated; writing goes on behind.

    Args:
      state: the `State`; its step names the checkpoint.
      config: the resolved config as a plain dict.
      loader: JSON position of the loader after the last batch that was trained on.
      references: frozen network -> reference string; their weights are never copied.
    """
    parts = _split(state)
    meta = {
      "format": FORMAT,
      "config": config,
      "loader": loader,
      "references": references or {},
      "roles": {role: net.ema is not None for role, net in state.nets.items()},
      "checksums": checksum(parts),
    }
    items = {name: ocp.args.StandardSave(part) for name, part in parts.items()}
    self._manager.save(
      int(state.step), args=ocp.args.Composite(**items, meta=ocp.args.JsonSave(meta)), force=True
    )

  def latest(self):
    """The newest step on disk, readable or not; None if there is none."""
    return max(_steps(self.root), default=None)

  def restore(self, like, *, config=None, references=None):
    """Restores the newest checkpoint that is whole.

    Args:
      like: a `State` of arrays or `ShapeDtypeStruct`s with the shardings to restore onto, which
        may belong to another mesh than the one that saved.
      config: the config of this run. A checkpoint of another model or objective is refused.
      references: this run's frozen networks, with their steps. Others are refused.

    Returns:
      (state, meta), or None if there is no checkpoint yet. Damaged ones that were passed over are
      moved to `workdir/checkpoints_refused/`, with a warning that says so.

    Raises:
      ValueError: if the config changed what is trained, the architecture differs, or checkpoints
        exist and none is readable.
    """
    refused = {}
    there = json.loads(processes.gather(json.dumps(sorted(_steps(self.root))))[0])
    for step in reversed(there):
      folder = self.root / str(step)
      try:
        meta = _together(_read_meta, folder)
        _check_run(folder, meta, config, references)
        state = _read_state(folder, meta, like)
      except _Damaged as reason:
        refused[step] = reason
        continue
      self._pass_over(refused, step)
      return state, meta
    if refused:
      raise ValueError(
        f"No usable checkpoint in {self.root}: {_reasons(refused)}. "
        "Choose another --workdir, or move this folder away to start afresh."
      )
    return None

  def _pass_over(self, refused, used):
    if not refused:
      return
    logging.warning(
      "Refused: %s. Using the last good checkpoint, step %d; the refused ones were moved to %s.",
      _reasons(refused), used, self.root.with_name("checkpoints_refused"),
    )  # fmt: skip
    if jax.process_index() == 0:
      for step in refused:
        target = self.root.with_name("checkpoints_refused") / str(step)
        shutil.rmtree(target, ignore_errors=True)
        target.parent.mkdir(exist_ok=True)
        shutil.move(self.root / str(step), target)
    processes.gather("moved")
    self._manager.reload()

  def wait(self):
    """Blocks until everything is on disk."""
    self._manager.wait_until_finished()

  def close(self):
    """Waits and releases the background threads."""
    self._manager.close()


def load_network(reference, *, like=None):
  """Reads one network of a run, and nothing else of it but a base of low-rank factors.

  Args:
    reference: "workdir:role" (weights) or "workdir:role:ema" (their average), optionally followed
      by "@step"; without it the newest readable checkpoint is used.
    like: optional tree of arrays or `ShapeDtypeStruct`s, the architecture expected; shardings in
      it are restored onto. Without them everything comes to the first device.

  Returns:
    (config dict of that run, params). Low-rank factors come merged into their base.

  Raises:
    FileNotFoundError: if there is no such run, checkpoint or role.
    ValueError: if the reference cannot be parsed, the checkpoint is damaged, or it holds another
      architecture (naming the first parameter that differs, and both shapes).
  """
  reference = resolve_reference(reference)
  config, lora = _lora(reference)
  if lora is None:
    return config, _cast(_read_role(reference, _float32(like)), like)
  base = _load_base(reference, like)
  whole = jax.jit(lora.merge, out_shardings=jax.tree.map(lambda x: x.sharding, base))
  return config, _cast(whole(base, jax.device_get(_read_role(reference))), like)


def load_factors(reference):
  """The low-rank factors of a role, without their base.

  Args:
    reference: see `load_network`.

  Returns:
    (its `LoRA`, factors).

  Raises:
    FileNotFoundError, ValueError: as `load_network`, and where all weights were trained.
  """
  reference = resolve_reference(reference)
  lora = _lora(reference)[1]
  if lora is None:
    raise ValueError(f"{reference} has no low-rank factors: all its weights were trained.")
  return lora, _read_role(reference)


def load_params(reference, *, like=None, scan=False):
  """Weights by any reference: those of a run, as `load_network`, or of a public network.

  Args:
    reference: "workdir:role:ema", or "wan:...", see `load_pretrained`.
    like: see `load_network`; dtypes are its own.
    scan: of a public network, whether its blocks shall be stacked.
  """
  if is_pretrained(reference):
    return load_pretrained(reference, like=like, scan=scan)
  return load_network(reference, like=like)[1]


def kept(like, dtype):
  """Shapes of a network as a frozen one is kept: matrices in `dtype`, see `kept_dtype`."""
  leaves = {path: x.update(dtype=kept_dtype(path, dtype)) for path, x in flatten(like).items()}
  return unflatten(leaves)


def read_config(reference):
  """The resolved config (a dict) of the run that a reference names.

  Raises:
    FileNotFoundError, ValueError: as `load_network`.
  """
  return read_references(reference)[0]


def read_references(reference):
  """Resolved config of the run that a reference names, and {frozen network: its reference}.

  Raises:
    FileNotFoundError, ValueError: as `load_network`.
  """
  meta = _find(reference)[1]
  return meta["config"], meta["references"]


def resolve_reference(reference):
  """The same reference with the step that it means now: "workdir:role:ema@500".

  That of a public network stays as it is: its weights are taken not to change.

  Raises:
    FileNotFoundError, ValueError: as `load_network`.
  """
  if is_pretrained(reference):
    parse_pretrained(reference)
    return reference
  workdir, role, ema, _ = parse_reference(reference)
  folder, _ = _find(reference)
  return f"{workdir}:{role}{':ema' if ema else ''}@{folder.name}"


def parse_reference(reference):
  """ "workdir:role[:ema][@step]" -> (workdir, role, ema, step or None).

  Raises:
    ValueError: for anything else.
  """
  if is_pretrained(reference):
    raise ValueError(f"{reference} is a public network, which has no run: name one of a workdir.")
  head, at, step = reference.rpartition("@")
  if not (at and step.isdigit()):
    head, step = reference, None
  parts = head.split(":")
  ema = parts[-1] == "ema" and len(parts) > 2
  parts = parts[:-1] if ema else parts
  workdir, role = ":".join(parts[:-1]), parts[-1]
  if not workdir or not role:
    raise ValueError(
      f'{reference!r} names no network: write "workdir:role", "workdir:role:ema" or '
      '"workdir:role:ema@step".'
    )
  return workdir, role, ema, None if step is None else int(step)


def _lora(reference):
  """Config of the run, and the `LoRA` of the role or None."""
  config = read_config(reference)
  net = config.get("nets", {}).get(parse_reference(reference)[1], {})
  return config, parse_lora(net.get("lora"))


def _load_base(reference, like):
  """The frozen network under low-rank factors, in the dtype that they were trained with."""
  role, meta = parse_reference(reference)[1], _find(reference)[1]
  config = meta["config"]
  net = config["nets"][role]
  dtype = jnp.dtype(net.get("param_dtype") or "float32")
  like = None if like is None else kept(_target(like), dtype)
  scan = (net.get("model") or {}).get("scan")
  scan = config["model"]["scan"] if scan is None else scan
  params = load_params(meta["references"][f"{role}.base"], like=like, scan=scan)
  return _cast(params, kept(jax.eval_shape(lambda: params), dtype))


def _read_role(reference, like=None):
  """What a role trained: its weights, or its factors."""
  quiet_orbax()
  _, role, ema, _ = parse_reference(reference)
  folder, meta = _find(reference)
  if role not in meta["roles"]:
    raise FileNotFoundError(
      f"{reference}: {folder} holds the roles {', '.join(meta['roles'])}, not {role!r}."
    )
  # A role trained without an average answers with its weights, as it does in training.
  name = f"{role}.ema" if ema and meta["roles"][role] else f"{role}.params"
  try:
    return _read_part(folder, name, like, meta)
  except _Damaged as reason:
    raise ValueError(f"{reference}: {reason}.") from reason


def _find(reference):
  """Folder and meta of the checkpoint that a reference means."""
  workdir, _, _, step = parse_reference(reference)
  root = pathlib.Path(workdir).absolute() / "checkpoints"
  steps = sorted(_steps(root), reverse=True)
  if not steps or step not in (None, *steps):
    there = f"steps {steps[::-1]}" if steps else "no checkpoint"
    raise FileNotFoundError(f"{reference}: there is {there} in {root}. Train that run first.")
  refused = {}
  for candidate in [step] if step is not None else steps:
    try:
      meta = _read_meta(root / str(candidate))
    except _Damaged as reason:
      refused[candidate] = reason
      continue
    if refused:
      logging.warning("Refused: %s. Using step %d.", _reasons(refused), candidate)
    return root / str(candidate), meta
  raise ValueError(f"{reference}: {_reasons(refused)}.")


# ------------------------------------------------------------------------------------------------
# Reading and writing parts
# ------------------------------------------------------------------------------------------------


class _Damaged(Exception):
  """A checkpoint that is truncated or was not written by this program."""


def _split(state):
  """State -> item name -> tree."""
  parts = {}
  for role, net in state.nets.items():
    parts |= {f"{role}.params": net.params, f"{role}.opt": net.opt}
    if net.ema is not None:
      parts[f"{role}.ema"] = net.ema
  counts = {role: net.count for role, net in state.nets.items()}
  parts["run"] = {"step": state.step, "counts": counts, "aux": state.aux, "key": state.key}
  return parts


def _read_state(folder, meta, like):
  parts = {name: _read_part(folder, name, part, meta) for name, part in _split(like).items()}
  run = parts["run"]
  nets = {
    role: Net(
      parts[f"{role}.params"], parts.get(f"{role}.ema"), parts[f"{role}.opt"], run["counts"][role]
    )
    for role in like.nets
  }
  return like.replace(step=run["step"], nets=nets, aux=run["aux"], key=run["key"])


def _read_part(folder, name, like, meta):
  """Restores one item after comparing its shapes with `like`, then checks its checksum."""
  tree = _together(_restore_part, folder, name, like)
  if checksum({name: tree})[name] != meta["checksums"][name]:
    raise _Damaged(f"checkpoint {folder} is damaged ({name} does not match its checksum)")
  return tree


def _restore_part(folder, name, like):
  path = folder / name
  if not path.is_dir():
    raise _Damaged(f"checkpoint {folder} has no {name}")
  # Not by a Checkpointer, after whose restore all processes wait for all: one may fail.
  handler = ocp.StandardCheckpointHandler()
  try:
    try:
      stored = handler.metadata(path).tree
    except Exception as e:
      raise _Damaged(f"checkpoint {folder} is truncated ({name}: {_first_line(e)})") from e
    difference = None if like is None else first_mismatch(stored, like)
    if difference:
      raise ValueError(f"Checkpoint {folder} holds another architecture: {name} {difference}.")
    target = ocp.args.StandardRestore(_target(stored if like is None else like))
    try:
      return handler.restore(path, args=target)
    except Exception as e:
      raise _Damaged(f"checkpoint {folder} is truncated ({name}: {_first_line(e)})") from e
  finally:
    handler.close()


def _together(read, *args):
  """What `read` returns; what one process finds damaged is damaged for all, who try the next."""
  value, reason = None, ""
  try:
    value = read(*args)
  except _Damaged as error:
    if jax.process_count() == 1:
      raise
    reason = str(error)
  if found := next(filter(None, processes.gather(reason)), None):
    raise _Damaged(found)
  return value


def _target(like):
  """What Orbax shall restore into: shapes, dtypes and shardings; by default this one device.

  Never the sharding on disk: the devices that saved need not exist here.
  """
  here = jax.sharding.SingleDeviceSharding(jax.local_devices()[0])

  def struct(x):
    sharding = getattr(x, "sharding", None)
    sharding = sharding if isinstance(sharding, jax.sharding.Sharding) else here
    return jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=sharding)

  return jax.tree.map(struct, like)


def _float32(like):
  """The same shapes as they are on disk, where weights are float32."""
  if like is None:
    return None
  return jax.tree.map(lambda x: x.update(dtype=jnp.float32), _target(like))


def _cast(params, like):
  """The parameters in the dtypes of `like`, if it is given."""
  return params if like is None else jax.tree.map(lambda x, y: x.astype(y.dtype), params, like)


def _read_meta(folder):
  try:
    meta = json.loads((folder / "meta" / "metadata").read_text())
    if meta["format"] != FORMAT:
      raise _Damaged(f"checkpoint {folder} has format {meta['format']}, this program {FORMAT}")
    return meta
  except (OSError, ValueError, KeyError, TypeError) as e:
    raise _Damaged(f"{folder} is no vidstep checkpoint, or a truncated one") from e


def _check_run(folder, meta, config, references):
  """Refuses to go on with another model, objective or teacher than the checkpoint was made with."""
  changes = config_changes(meta["config"], config) if config is not None else []
  for name, new in (references or {}).items():
    old = meta["references"].get(name)
    if new != old:
      changes.append(f"frozen network {name}: {old} -> {new}")
  if changes:
    raise ValueError(
      f"{folder} was trained with another model or objective: {'; '.join(changes)}. "
      "Give the old values to resume, or another --workdir to start a new run."
    )


def _steps(root):
  return [int(p.name) for p in root.iterdir() if p.name.isdigit()] if root.is_dir() else []


def _reasons(refused):
  return "; ".join(str(reason) for reason in refused.values())


def _first_line(error):
  return (str(error).strip().splitlines() or [type(error).__name__])[0][:160]


def quiet_orbax():
  """Orbax tells of every step at INFO; warnings remain."""
  if logging.get_verbosity() > logging.WARNING:
    logging.set_verbosity(logging.WARNING)
