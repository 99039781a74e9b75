"""Entry points in processes of their own: what they print last, and why they ended."""

import os

import pytest
from mutation import assert_caught, mutant

from experiments import apart

SPEAK = """
import json, os, signal, sys, time
if sys.argv[1] == "json":
  print(json.dumps("first"), json.dumps({"x": os.environ.get("SAID")}), sep="\\n")
elif sys.argv[1] == "late":
  time.sleep(60)
else:
  sys.stderr.write(sys.argv[2])
  sys.stderr.flush()
  os.kill(os.getpid(), signal.SIGKILL) if sys.argv[1] == "die" else sys.exit(1)
"""


@pytest.fixture(scope="module")
def env(tmp_path_factory):
  folder = tmp_path_factory.mktemp("modules")
  (folder / "speak.py").write_text(SPEAK)
  return os.environ | {"PYTHONPATH": str(folder), "SAID": "yes"}


def check_last(apart, env):
  assert apart.run("speak", ["json"], env=env) == {"x": "yes"}


def test_the_last_line_is_what_it_found(env):
  check_last(apart, env)
  assert_caught(check_last, mutant(apart, "splitlines()[-1]", "splitlines()[0]"), env)


@pytest.mark.parametrize(
  ("arguments", "sentence"),
  [
    (["fail", "x\nerror: No such thing.\n(--debug ..)"], "No such thing."),
    (["die", "F1121 a.cc:1] Check failed: a == b told\n***"], "The compiler broke: a == b told"),
    (["die", ""], "speak ended with status -9: it said nothing"),
    (["fail", "Traceback\nKeyError: 1\n"], "speak ended with status 1: KeyError: 1"),
    (["late"], "speak was not done within 1 s."),
  ],
)
def test_a_bad_end_is_one_sentence(arguments, sentence, env):
  with pytest.raises(ValueError) as told:
    apart.run("speak", arguments, env=env, timeout=1 if arguments == ["late"] else 60)
  assert str(told.value) == sentence
