"""Mutants: a proof that cannot fail proves nothing, so each proof is run on broken code as well."""

import inspect
import types

import pytest


def mutant(module, old, new):
  """A copy of a module with the first `old` in its source replaced by `new`."""
  source = inspect.getsource(module)
  assert old in source, f"{module.__name__} no longer contains {old!r}: renew this mutation."
  copy = types.ModuleType(module.__name__ + "_mutant")
  exec(compile(source.replace(old, new, 1), module.__file__, "exec"), copy.__dict__)
  return copy


def assert_caught(check, *args):
  """`check(*args)` must fail, and by an assertion: a crash would not show that it measures."""
  with pytest.raises(AssertionError):
    check(*args)
