"""An entry point in a process that has others: its flags are values of its own."""

import contextlib
import importlib
import pathlib
import re
import types

from absl import flags

ROOT = pathlib.Path(__file__).parents[1]


def imported_alone(name):
  """An entry point whose flags clash with nobody's, at their defaults; see `flags_set`."""
  source = (ROOT / name.replace(".", "/")).with_suffix(".py").read_text()
  own = {"out", *re.findall(r'^\w+ = flags\.DEFINE_\w+\(\s*"(\w+)"', source, re.MULTILINE)}
  others = {flag: flags.FLAGS[flag] for flag in own & set(flags.FLAGS)}
  for flag in others:
    delattr(flags.FLAGS, flag)
  module = importlib.import_module(name)
  for attribute, holder in list(vars(module).items()):
    if isinstance(holder, flags.FlagHolder):
      setattr(module, attribute, types.SimpleNamespace(value=holder.default))
  for flag in own & set(flags.FLAGS):
    delattr(flags.FLAGS, flag)
  for flag, definition in others.items():
    flags.FLAGS[flag] = definition
  return module


@contextlib.contextmanager
def flags_set(module, **values):
  """Flags of an entry point with other values for a while."""
  holders = {name: getattr(module, name.upper()) for name in values}
  old = {name: holder.value for name, holder in holders.items()}
  for name, holder in holders.items():
    holder.value = values[name]
  try:
    yield
  finally:
    for name, holder in holders.items():
      holder.value = old[name]
