"""Writes a network of a run as others read it: diffusers' folder of a Wan transformer, or a LoRA.

  python -m experiments.export --network=runs/wan/sf:student:ema --out=student
  python -m experiments.export --network=runs/wan/sf:student:ema --out=student.safetensors

A folder receives config.json and .safetensors, for `from_pretrained` of diffusers and for
`experiments.sample`; low-rank factors are merged into their base. A name that ends in .safetensors
receives the factors alone, in diffusers' names, to be put on the base. Either says in its header
what it was distilled from, by what, and how it is to be sampled.
"""

import pathlib

import ml_dtypes
import numpy as np
from absl import flags

from experiments import flags as shared
from experiments.networks import make_model
from vidstep.io import save_lora, save_wan
from vidstep.io.dit_names import dit_rules
from vidstep.training.checkpoint import (
  load_factors,
  load_network,
  parse_reference,
  read_references,
  resolve_reference,
)
from vidstep.training.pretrained import is_pretrained

DTYPES = {"bfloat16": ml_dtypes.bfloat16, "float32": np.float32}
NETWORK = flags.DEFINE_string("network", None, 'Which network: "workdir:role:ema", or "...@step".')
OUT = shared.define_out("Folder, or file.safetensors for low-rank factors alone.")
DTYPE = flags.DEFINE_enum("dtype", "bfloat16", sorted(DTYPES), "Of the file; factors are float32.")


def main(argv):
  del argv
  if not NETWORK.value or not OUT.value:
    raise ValueError("Which network, and where to? Give --network=workdir:role:ema and --out=name.")
  print(export(NETWORK.value, OUT.value, dtype=DTYPE.value))


def export(reference, out, *, dtype="bfloat16"):
  """Writes a network; see the top of this file.

  Args:
    reference: "workdir:role:ema".
    out: a folder, or a .safetensors file for low-rank factors alone.
    dtype: of a folder's file, a name in `DTYPES`.

  Returns:
    The note in its header.

  Raises:
    FileNotFoundError, ValueError: if there is no such network, or diffusers cannot express it.
  """
  reference, out = resolve_reference(reference), pathlib.Path(out)
  if is_pretrained(reference):
    raise ValueError(f"{reference} is public already: export a network of a run.")
  note = history(reference)
  if out.suffix == ".safetensors":
    lora, factors = load_factors(reference)
    model = make_model(read_references(reference)[0], parse_reference(reference)[1])
    out.parent.mkdir(parents=True, exist_ok=True)
    save_lora(out, lora.export(factors), dit_rules(model), note=note)
  else:
    config, params = load_network(reference)
    model = make_model(config, parse_reference(reference)[1])
    save_wan(out, model, params, dtype=DTYPES[dtype], note=note)
  return note


def history(reference):
  """How a network came about, a sentence a stage, the newest first.

  Args:
    reference: one that names a step; see `resolve_reference`.
  """
  stages, waiting, seen = [], [reference], set()
  while waiting:
    name = waiting.pop(0)
    run = name.rpartition("@")[0] or name
    if run in seen or is_pretrained(name):
      continue
    seen.add(run)
    try:
      config, references = read_references(name)
    except FileNotFoundError:
      stages.append(f"{name}: no longer there.")
      continue
    role = parse_reference(name)[1]
    start = references.get(f"{role}.base") or config["nets"][role]["init"]
    how = [f"{name} was trained by {config['objective']['name']} on {config['data']['path']}"]
    how += [f"from {start}"] if start else []
    if lora := config["nets"][role].get("lora", {}).get("rank"):
      how.append(f"as low-rank factors of rank {lora}")
    how += [f"with the {k} {v}" for k, v in references.items() if not k.endswith(".base")]
    stages.append(", ".join(how) + "." + (_sampling(config) if name == reference else ""))
    waiting += [r for r in (*references.values(), start) if r]
  return "Trained with vidstep. " + " ".join(stages)


def _sampling(config):
  """How the run says that its network is sampled."""
  asked, causal = config["eval"], config["causal"]
  times = [1.0, *asked["times"]] if asked["times"] else f"{asked['steps']} shifted {asked['shift']}"
  told = [f"solver {asked['solver']}", f"times {times}"]
  told += [f"first chunk {[1.0, *asked['first_times']]}"] if asked["first_times"] else []
  told += [f"causal, {causal['chunk']} latent frames a chunk"] if causal["chunk"] else []
  told += [f"later chunks read {causal['context']}"] if causal["context"] else []
  return f" To be sampled by: {'; '.join(told)}."


if __name__ == "__main__":
  shared.run(main)
