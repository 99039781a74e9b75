"""What the README shows runs, and what it names exists."""

import pathlib
import re

import numpy as np

ROOT = pathlib.Path(__file__).parents[1]
README = (ROOT / "README.md").read_text()


def test_the_snippet_runs_and_learns():
  code = re.search(r"```python\n(.*?)```", README, re.S)[1]
  scope = {}
  exec(code, scope)
  assert np.isfinite(scope["value"])
  assert any(np.abs(g).max() > 0 for g in scope["jax"].tree.leaves(scope["grads"]))


def test_every_file_it_names_exists():
  links = re.findall(r"\]\((?!http)([^)#]+)\)", README)
  configs = re.findall(r"--config=([\w/]+\.py)", README)
  modules = [f"experiments/{name}.py" for name in re.findall(r"-m experiments\.(\w+)", README)]
  missing = [path for path in {*links, *configs, *modules} if not (ROOT / path).exists()]
  assert not missing
