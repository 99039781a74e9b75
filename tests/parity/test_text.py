"""The text encoder against transformers' BertModel and tokenizer on the real weights."""

import importlib.util
from pathlib import Path

import jax.numpy as jnp
import numpy as np
import pytest

from vidstep.data.captions import CAPTIONS
from vidstep.models import text

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")
if importlib.util.find_spec(text.PACKAGE) is None:
  pytest.skip(f"needs the MiniLM weights: {text.HINT}", allow_module_level=True)

PROMPTS = ["", "lava", "Turn LEFT, naïvely: 12 kg of déjà-vu!", *CAPTIONS["my_way_home"]]


@pytest.fixture(scope="module")
def theirs():
  folder = str(Path(importlib.util.find_spec(text.PACKAGE).origin).parent / "model")
  tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
  model = transformers.BertModel.from_pretrained(folder, attn_implementation="eager").eval()
  batch = tokenizer(
    PROMPTS, padding="max_length", truncation=True, max_length=24, return_tensors="pt"
  )
  with torch.no_grad():
    out = model(**batch).last_hidden_state.numpy()
  return batch["input_ids"].numpy(), batch["attention_mask"].numpy().astype(bool), out


def test_tokens_and_embeddings_are_those_of_transformers(theirs):
  tokens, mask, wanted = theirs
  encoder = text.TextEncoder(24)
  ours, our_mask = encoder.tokenize(PROMPTS)
  np.testing.assert_array_equal(ours, tokens)
  np.testing.assert_array_equal(our_mask, mask)
  out, _ = encoder(PROMPTS)
  np.testing.assert_allclose(out[mask], wanted[mask], rtol=0, atol=1e-5)
  assert not out[~mask].any()


def test_sentence_embeddings_are_the_normalised_mean(theirs):
  _, mask, wanted = theirs
  mean = np.stack([rows[m].mean(0) for rows, m in zip(wanted, mask, strict=True)])
  mean /= np.linalg.norm(mean, axis=-1, keepdims=True)
  encoder = text.TextEncoder(24)
  np.testing.assert_allclose(encoder.sentences(PROMPTS), mean, rtol=0, atol=1e-5)


@pytest.mark.parametrize(
  "name", ["embeddings.position_embeddings.weight", "encoder.layer.3.attention.self.key.weight"]
)
def test_every_kind_of_parameter_matters(theirs, name):
  tokens, mask, wanted = theirs
  params, _ = text._load()
  broken = params | {name: jnp.flip(params[name], 0)}
  out = np.asarray(text.minilm(broken, jnp.asarray(tokens, jnp.int32), jnp.asarray(mask)))
  assert np.abs(out - wanted)[mask].max() > 1e-2
