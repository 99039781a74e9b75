"""What all processes of a run have to share: config, code, versions, data, frozen networks."""

import hashlib
import importlib.metadata
import json
import pathlib
import platform

from experiments.flags import flatten
from vidstep.data.loader import data_info

ROOT = pathlib.Path(__file__).parents[1]
PACKAGES = ("jax", "jaxlib", "flax", "optax", "orbax-checkpoint", "grain", "numpy")


def fingerprint(run):
  """Facts about this process's share of a run, for `processes.compare`.

  Args:
    run: the `Setup`.

  Returns:
    dict of JSON values: every key of the config by its flag, the frozen networks with their steps,
    a hash of the program, one of what the data says of itself, and versions.
  """
  facts = {f"config.{key}": _at(run.config, key) for key in flatten(run.config)}
  facts |= {f"frozen network {name}": reference for name, reference in run.references.items()}
  facts["the program (vidstep, experiments, pallas_kernels)"] = code_hash()
  info = json.dumps(data_info(run.config["data"]["path"]), sort_keys=True, default=str)
  facts[f"the data in {run.config['data']['path']}"] = _hash(info.encode())
  facts["Python"] = platform.python_version()
  facts |= {name: importlib.metadata.version(name) for name in PACKAGES}
  return json.loads(json.dumps(facts, default=str))


def code_hash(root=ROOT):
  """Hash of all Python files of the program, by path and content."""
  files = (
    f for p in ("vidstep", "experiments", "pallas_kernels") for f in (root / p).rglob("*.py")
  )
  return _hash(
    *(b for f in sorted(files) for b in (str(f.relative_to(root)).encode(), f.read_bytes()))
  )


def _at(tree, key):
  for name in key.split("."):
    tree = tree[name]
  return tree


def _hash(*parts):
  digest = hashlib.sha256()
  for part in parts:
    digest.update(hashlib.sha256(part).digest())
  return digest.hexdigest()[:12]
