"""Commands on the page about other games parse: modules, flags, configs and their keys exist."""

import ast
import importlib
import pathlib
import re
import shlex

import pytest

from experiments import world_table
from experiments.flags import flatten

ROOT = pathlib.Path(__file__).parents[1]
PAGE = (ROOT / "docs" / "your_game.md").read_text()


def commands(page):
  """The shell commands of a page, variables and continued lines resolved: [words]."""
  found, variables = [], {}
  for block in re.findall(r"```\n(.*?)```", page, re.S):
    for line in block.replace("\\\n", " ").splitlines():
      if match := re.match(r'(\w+)="(.*)"$', line):
        variables[match[1]] = match[2]
      for name, value in variables.items():
        line = line.replace(f"${name}", value)
      if line.startswith("python -m "):
        found.append(shlex.split(line, comments=True)[2:])
  return found


def flags_of(module):
  """Flags that an entry point defines, read off its source: importing several would mix them."""
  sources = [ROOT / "experiments" / f"{name}.py" for name in (module, "flags")]
  text = "\n".join(path.read_text() for path in sources)
  named = set(re.findall(r'DEFINE_\w+\(\s*"(\w+)"', text))
  named |= set(re.findall(r"define_(\w+)\(", sources[0].read_text()))
  return named


def check(words):
  """Raises AssertionError for a command that would not parse."""
  module, *arguments = words
  module = module.removeprefix("experiments.")
  assert (ROOT / "experiments" / f"{module}.py").exists(), module
  known, config = flags_of(module), None
  for argument in arguments:
    match = re.fullmatch(r"--([\w.]+)(?:=(.*))?", argument)
    assert match, argument
    name, value = match.groups()
    if name == "config":
      file, _, arg = value.partition(":")
      get = importlib.import_module(file.removesuffix(".py").replace("/", ".")).get_config
      config = get(arg) if arg else get()
    elif name.startswith("config."):
      key = name.removeprefix("config.")
      assert key in flatten(config.to_dict()), f"{name} is no key of the config"
      old = config
      for part in key.split("."):
        old = old[part]
      if isinstance(old, bool | int | float):
        assert isinstance(ast.literal_eval(value), int | float), argument
    else:
      assert name in known, f"experiments.{module} has no flag --{name}"
  if module == "world":
    rows = world_table.select(config.to_dict()["rows"], None)
    wanted = [word for a in arguments if a.startswith("--rows=") for word in a[7:].split(",")]
    assert all(word in rows or 1 <= int(word) <= len(rows) for word in wanted)


def test_every_command_of_the_page_parses():
  found = commands(PAGE)
  used = {words[0].removeprefix("experiments.") for words in found}
  assert used >= {"record", "codec", "train", "world", "play"}
  assert sum(words[0] == "experiments.train" for words in found) == 4
  for words in found:
    check(words)


@pytest.mark.parametrize(
  "line",
  [
    "experiments.train --config=configs/doom/world.py:teacher --config.train.stesp=3",
    "experiments.train --config=configs/doom/world.py:teacher --config.train.steps=many",
    "experiments.record --source=gym --scene=x",
    "experiments.replay --workdir=x",
  ],
)
def test_a_command_with_a_slip_would_be_caught(line):
  with pytest.raises((AssertionError, ValueError)):
    check(shlex.split(line))


def test_stages_of_the_page_start_from_each_other():
  """Whatever a command reads in runs/ was written by one before it."""
  made = set()
  for words in commands(PAGE):
    paths = dict(word.split("=", 1) for word in words[1:] if "=" in word)
    for name, value in paths.items():
      if name.endswith((".init", ".path", ".codec")) or name in ("--data", "--network"):
        assert any(value.startswith(folder) for folder in made), f"{name}={value}"
    made |= {paths[name] for name in ("--out", "--workdir") if name in paths}
