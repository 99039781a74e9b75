"""A cache of which everything is seen: its frames come first, so that their number is the mask."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from mutation import assert_caught, mutant
from random_params import randomised

from pallas_kernels.attention import cudnn
from vidstep.attention import attention, dispatch
from vidstep.causal import kv_cache
from vidstep.causal.cached import CachedNetwork
from vidstep.causal.kv_cache import CachePolicy
from vidstep.masks import Prefix, TeacherForcing, Window, token_info
from vidstep.masks.plan import kernel_mask
from vidstep.models import Cond, VideoDiT


def valid_slots(module, policy, chunks):
  """`valid` of the slots after each of some chunks of 1 and 2 frames."""
  cache = module.empty(
    policy, batch=2, layers=1, tokens=1, heads=1, head_dim=2, text=(None, None), inputs={}
  )
  seen = []
  for size in chunks:
    k = jnp.ones((1, 2, size, 1, 1, 2))
    cache = module.write(cache, k, k, {})
    seen.append(np.asarray(cache.info.valid))
  return np.stack(seen)


def check_prefix(module):
  policy = module.CachePolicy(4, sink=1, whole=True)
  valid = valid_slots(module, policy, (1, 2, 1, 2, 2))
  assert (np.diff(valid, axis=-1) <= 0).all()
  np.testing.assert_array_equal(valid.sum(-1), np.repeat([[1], [3], [4], [5], [5]], 2, axis=1))


def test_frames_that_exist_come_first_also_when_the_ring_has_turned():
  check_prefix(kv_cache)


def test_a_ring_that_fills_from_its_end_is_noticed():
  back = "self.sink + self.pinned + self.window - 1 - (frame - self.sink) % self.window"
  assert_caught(
    check_prefix,
    mutant(kv_cache, "self.sink + self.pinned + (frame - self.sink) % self.window", back),
  )


def check_lengths(valid):
  mask = kernel_mask(
    Prefix(), token_info(np.zeros(3, int)), token_info(np.zeros(4, int), valid=np.array(valid))
  )
  np.testing.assert_array_equal(mask.lengths(), np.asarray(mask.dense()).sum(-1)[:, 0])
  first = np.arange(4) < np.asarray(mask.lengths())[:, None]
  np.testing.assert_array_equal(mask.dense(), np.broadcast_to(first[:, None], (len(first), 3, 4)))


def test_the_number_of_keys_says_what_the_mask_says():
  check_lengths([[1, 1, 0, 0], [1, 1, 1, 1]])
  assert_caught(check_lengths, [[0, 1, 1, 0]])


def by_length(q, k, v, *, scale, kv_seqlen=None, q_seqlen=None, off=0, **_):
  """What cuDNN computes from numbers of keys, in float32."""
  n = jnp.full(q.shape[:1], k.shape[1]) if kv_seqlen is None else kv_seqlen + off
  s = jnp.einsum("bqhd,bkhd->bhqk", *(a.astype(jnp.float32) for a in (q, k))) * scale
  s = jnp.where((jnp.arange(k.shape[1])[None] < n[:, None])[:, None, None], s, -jnp.inf)
  o = jnp.einsum("bhqk,bkhd->bqhd", jax.nn.softmax(s), v.astype(jnp.float32))
  return o.astype(q.dtype), jax.nn.logsumexp(s, axis=-1)


def read(attention):
  """Velocities of three chunks, two of them behind a cache, in bfloat16."""
  model = VideoDiT(
    dim=32, heads=2, depth=2, ffn_dim=32, in_channels=2, out_channels=2, text_dim=3,
    dtype=jnp.bfloat16, attention=attention,
  )  # fmt: skip
  network = CachedNetwork(model, CachePolicy(6, dtype="bfloat16", whole=True))
  draw = lambda i, *shape: jax.random.normal(jax.random.key(i), shape)
  x, cond = draw(0, 2, 6, 4, 4, 2), Cond(text=draw(1, 2, 5, 3))
  init = lambda: model.init(jax.random.key(0), x, jnp.zeros(2), cond=cond)["params"]
  params = randomised(jax.eval_shape(init))

  @jax.jit
  def stream(params, x, cond):
    cache, out = network.start(params, x, cond), []
    for i in (0, 2, 4):
      out.append(network.read(params, x[:, i : i + 2], jnp.full(2, 0.7), Cond(), cache))
      cache = network.append(params, x[:, i : i + 2], Cond(), cache)
    return jnp.concatenate(out, axis=1)

  return np.asarray(stream(params, x, cond))


def check_cudnn(monkeypatch, off=0):
  kernel = dataclasses.replace(cudnn.KERNELS[0], platforms=("cpu",))
  with monkeypatch.context() as patch:
    patch.setattr(dispatch, "KERNELS", (kernel,))
    patch.setattr(cudnn, "_missing", lambda: None)
    patch.setattr(cudnn.fused, "dot_product_attention", functools.partial(by_length, off=off))
    jax.clear_caches()
    got = read("cudnn")
  gap = np.abs(got - read("xla")).mean()
  assert gap < 0.02, gap  # of bfloat16


def test_a_kernel_that_counts_keys_sees_what_the_mask_allows(monkeypatch):
  check_cudnn(monkeypatch)
  assert_caught(check_cudnn, monkeypatch, -4)


@pytest.mark.parametrize("fields", [{"pinned": 1}, {"positions": "capped", "cap": 4}])
def test_a_whole_cache_has_neither_pins_nor_capped_positions(fields):
  with pytest.raises(ValueError, match="of a whole cache all is seen alike"):
    CachePolicy(4, whole=True, **fields)


def test_a_whole_cache_has_no_window():
  model = VideoDiT(dim=32, heads=2, depth=1)
  with pytest.raises(ValueError, match="hides some frames"):
    CachedNetwork(model, CachePolicy(4, whole=True), TeacherForcing() & Window(3))


@pytest.mark.parametrize(("backend", "branches"), [("cpu", True), ("gpu", False)])
def test_tiles_that_nobody_sees_are_skipped_where_asking_is_cheap(backend, branches, monkeypatch):
  monkeypatch.setattr(jax, "default_backend", lambda: backend)
  rng = np.random.default_rng(0)
  q, k, v = (jnp.float32(rng.normal(size=(1, n, 2, 16))) for n in (130, 400, 400))
  q_info, k_info = (token_info(np.zeros(n, int)) for n in (130, 400))

  def run(valid, implementation):
    info = k_info._replace(valid=valid)
    return attention(q, k, v, Prefix(), q_info=q_info, k_info=info, implementation=implementation)

  jax.clear_caches()
  for seen in (0, 10, 300, 400):
    valid = jnp.int32(jnp.arange(400) < seen)
    np.testing.assert_allclose(run(valid, "xla_chunked"), run(valid, "xla"), atol=2e-6)
  lowered = jax.jit(lambda valid: run(valid, "xla_chunked")).lower(valid)
  assert ("stablehlo.case" in lowered.as_text()) == branches
  jax.clear_caches()
