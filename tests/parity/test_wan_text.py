"""Our UMT5 encoder against transformers' at random weights."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests.mutation import assert_caught
from vidstep.io.rules import load_params
from vidstep.io.text_names import umt5_name, umt5_rules
from vidstep.models import umt5
from vidstep.models.umt5 import Tokenizer, UMT5Encoder

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")

OURS = UMT5Encoder(vocabulary=31, dim=10, heads=3, head_dim=4, ffn_dim=14, depth=2)


def build():
  torch.manual_seed(0)
  config = transformers.UMT5Config(
    vocab_size=31, d_model=10, num_heads=3, d_kv=4, d_ff=14, num_layers=2
  )
  theirs = transformers.UMT5EncoderModel(config).eval()
  with torch.no_grad():
    for name, p in theirs.named_parameters():
      if p.ndim == 1:
        p.normal_(1.0, 0.2)
      else:
        p.normal_(0.0, 1.0 if "bias" in name or "shared" in name else p.shape[1] ** -0.5)
  tokens = jnp.zeros((1, 2), jnp.int32)
  like = jax.eval_shape(lambda: OURS.init(jax.random.key(0), tokens, tokens > 0))["params"]
  state = {umt5_name(k): v.numpy() for k, v in theirs.state_dict().items()}
  return theirs, load_params(state, umt5_rules(2), like, what="UMT5")


def check(length=300):
  theirs, params = build()
  rng = np.random.default_rng(0)
  tokens = rng.integers(0, 31, (3, length)).astype(np.int32)
  mask = np.arange(length) < np.array([length, 7, 150])[:, None]
  with torch.no_grad():
    want = theirs(torch.from_numpy(tokens).long(), torch.from_numpy(mask).long())[0].numpy()
  want = want * mask[..., None]
  assert np.std(want[0]) > 0.3
  got = jax.jit(OURS.apply)({"params": params}, tokens, mask)
  np.testing.assert_allclose(got, want, atol=1e-5, rtol=1e-5)


def test_matches_transformers_over_all_distances():
  check()


def test_the_comparison_notices(monkeypatch):
  buckets = umt5.position_buckets
  monkeypatch.setattr(umt5, "position_buckets", lambda *a: buckets(*a).T)
  assert_caught(check, 9)


def test_original_names():
  """Against the names that transformers gives, written out from the release."""
  parts = ("norm1", "attn.q", "attn.k", "attn.v", "attn.o", "pos_embedding.embedding",
           "norm2", "ffn.gate.0", "ffn.fc1", "ffn.fc2")  # fmt: skip
  names = [f"blocks.{i}.{p}.weight" for i in range(2) for p in parts]
  names += ["token_embedding.weight", "norm.weight"]
  assert {umt5_name(n) for n in names} == {rule.theirs for rule in umt5_rules(2)}
  assert umt5_name("blocks.1.ffn.fc1.weight").endswith("block.1.layer.1.DenseReluDense.wi_1.weight")
  assert umt5_name("blocks.1.ffn.gate.0.weight").endswith("wi_0.weight")


def tokenizer_file(folder):
  """A unigram tokenizer as UMT5's is, with </s> behind every prompt."""
  tokenizers = pytest.importorskip("tokenizers")
  words = [("<pad>", 0.0), ("</s>", 0.0), ("<unk>", 0.0), ("▁a", -1.0), ("▁dog", -2.0),
           ("▁&", -2.5), ("s", -3.0), ("▁", -4.0)]  # fmt: skip
  made = tokenizers.Tokenizer(tokenizers.models.Unigram(words, unk_id=2))
  made.pre_tokenizer = tokenizers.pre_tokenizers.Metaspace()
  made.post_processor = tokenizers.processors.TemplateProcessing(
    single="$A </s>", special_tokens=[("</s>", 1)]
  )
  made.save(str(folder / "tokenizer.json"))


def test_tokens_are_those_of_transformers(tmp_path):
  tokenizer_file(tmp_path)
  prompts = ["a  dogs\n &amp;amp; a ", "a dog " * 9, ""]
  theirs = transformers.PreTrainedTokenizerFast(
    tokenizer_file=str(tmp_path / "tokenizer.json"), pad_token="<pad>", eos_token="</s>"
  )
  want = theirs(
    ["a dogs & a", "a dog " * 8 + "a dog", ""],
    padding="max_length", max_length=8, truncation=True, return_tensors="np",
  )  # fmt: skip
  tokens, mask = Tokenizer(tmp_path, length=8)(prompts)
  np.testing.assert_array_equal(tokens, want["input_ids"])
  np.testing.assert_array_equal(mask, want["attention_mask"])
  assert mask.sum(1).tolist() == [6, 8, 1] and (tokens[:, -1] == [0, 1, 0]).all()


def test_a_missing_tokenizer_is_named(tmp_path):
  with pytest.raises(FileNotFoundError, match=r"no tokenizer at .*tokenizer\.json"):
    Tokenizer(tmp_path)
