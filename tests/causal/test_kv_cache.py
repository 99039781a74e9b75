"""Slots, pins, rows and bytes of the key-value cache, and what int8 costs, against NumPy."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from mutation import assert_caught, mutant

from vidstep.causal import kv_cache, quantize
from vidstep.causal.kv_cache import CachePolicy, cache_bytes, cache_report, pin
from vidstep.causal.rows import batch_axes, put, take

L, B, S, HEADS, D = 2, 3, 2, 2, 4


def empty(policy, source=kv_cache, batch=B):
  text = jnp.zeros((L, batch, 5, HEADS, D))
  return source.empty(
    policy, batch=batch, layers=L, tokens=S, heads=HEADS, head_dim=D,
    text=((text, text), jnp.ones((batch, 5), bool)),
    inputs={"x": ((4, 4, 2), jnp.float32)} if policy.recache else {},
  )  # fmt: skip


def numbered(first, c):
  """Keys, values and inputs that carry the number of their frame."""
  number = np.arange(first, first + c, dtype=np.float32)
  k = np.broadcast_to(number[None, None, :, None, None, None], (L, B, c, S, HEADS, D))
  x = np.broadcast_to(number[None, :, None, None, None], (B, c, 4, 4, 2))
  return k, -k, {"x": x}


def held(cache, row=0):
  """Frames that the next chunk sees in a row, and their slots; checks that they hold these."""
  info = jax.tree.map(np.asarray, cache.info)
  seen = {int(f): i for i, f in enumerate(info.frame[row]) if info.valid[row, i]}
  for frame, slot in seen.items():
    for parts, sign in ((cache.keys, 1), (cache.values, -1)):
      np.testing.assert_array_equal(np.asarray(quantize.load(parts))[:, row, slot], sign * frame)
    for a in cache.inputs.values():
      assert np.all(np.asarray(a)[row, slot] == frame)
  return seen


def check_slots(source):
  """Chunks of any length, also longer than the ring: the sink and the last frames, never moved."""
  policy = source.CachePolicy(3, sink=2, recache=True)
  cache, frame, chunk_of, place = empty(policy, source), 0, {}, {}
  for chunk, c in enumerate((1, 3, 2, 5, 1, 2, 1, 1)):
    cache = source.write(cache, *numbered(frame, c))
    chunk_of |= dict.fromkeys(range(frame, frame + c), chunk)
    frame += c
    seen = held(cache)
    assert sorted(seen) == sorted({0, 1, *range(max(frame - 3, 0), frame)} & set(range(frame)))
    for f, slot in seen.items():
      assert cache.chunk[0, slot] == chunk_of[f]
      assert place.setdefault(f, slot) == slot
  assert cache.count.tolist() == [frame] * B and cache.chunks.tolist() == [8] * B


def test_slots_hold_the_sink_and_the_last_frames():
  check_slots(kv_cache)


@pytest.mark.parametrize(
  ("old", "new"),
  [
    ("% self.window", "% (self.window + 1)"),
    ("cache.count + c - policy.window)", "cache.count + c + 1 - policy.window)"),
    ("count=cache.count + c", "count=cache.count + 1"),
    ("jnp.where(frame < self.sink, frame, ring)", "ring"),
    ("cache.chunks[:, None], frame.shape", "cache.count[:, None], frame.shape"),
  ],
)
def test_other_slots_fail_the_proof(old, new):
  assert_caught(check_slots, mutant(kv_cache, old, new))


def test_a_pinned_frame_stays_and_is_seen_once():
  cache = empty(CachePolicy(2, sink=1, pinned=2, recache=True))
  for frame in range(8):
    cache = kv_cache.write(cache, *numbered(frame, 1))
    cache = pin(cache, {3: 3, 4: 3, 5: 5, 6: 0, 7: 1}.get(frame, -1))  # 0 and 1 do nothing
    valid = np.asarray(cache.info.valid[0])
    assert len(held(cache)) == np.sum(valid > 0)
  assert sorted(held(cache)) == [0, 3, 5, 6, 7] and cache.pins.tolist() == [2] * B
  cache = pin(cache, jnp.array([7, -1, 6]))  # each row its own; the oldest pin, 3, makes room
  assert [sorted(held(cache, row)) for row in range(B)] == [
    [0, 5, 6, 7],
    [0, 3, 5, 6, 7],
    [0, 5, 6, 7],
  ]
  cache = pin(pin(cache, 6), 7)  # row 0 pins 6, row 2 pins 7: both were in the ring all along
  assert sorted(held(cache)) == [0, 6, 7]
  with pytest.raises(ValueError, match="nothing can be pinned"):
    pin(empty(CachePolicy(2)), 0)


def test_a_narrow_live_window_hides_and_a_wide_one_shows_again():
  cache = kv_cache.write(empty(CachePolicy(4, sink=1)), *numbered(0, 7))
  narrow = cache.replace(window=jnp.int32([2, 4, 1]))
  assert [sorted(held(narrow, row)) for row in range(B)] == [[0, 5, 6], [0, 3, 4, 5, 6], [0, 6]]
  assert sorted(held(narrow.replace(window=cache.window))) == [0, 3, 4, 5, 6]


@pytest.mark.parametrize("dtype", ["float32", "int8"])
def test_a_stream_is_taken_out_of_its_batch_and_put_into_another(dtype):
  policy = CachePolicy(2, sink=1, recache=True, dtype=dtype)
  old = kv_cache.write(empty(policy), *numbered(0, 3))
  new = kv_cache.write(old, *numbered(3, 4))
  axes = batch_axes(lambda batch: empty(policy, batch=batch))
  row_of = lambda cache, row: take(cache, row, axes)
  one = jax.jit(row_of)(new, jnp.int32(1))
  assert one.count.shape == (1,)
  mixed = jax.jit(lambda *a: put(*a, axes))(old, jnp.int32(2), one)
  assert mixed.count.tolist() == [3, 3, 7]
  for row, source in ((0, old), (1, old), (2, new)):
    for a, b in zip(*(jax.tree.leaves(row_of(c, row)) for c in (mixed, source)), strict=True):
      np.testing.assert_array_equal(a, b)
  after = kv_cache.write(mixed, *numbered(0, 1))  # every row writes to slots of its own
  assert after.frame.tolist() == [[0, 3, 2], [0, 3, 2], [0, 7, 6]]


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "int8"])
def test_bytes_come_from_shapes(dtype):
  policy = CachePolicy(16, sink=1, pinned=1, dtype=dtype, recache=True)
  cache = empty(policy)
  shapes = jax.eval_shape(lambda: empty(policy))
  real = sum(a.nbytes for a in jax.tree.leaves(cache))
  assert cache_bytes(shapes) == cache_bytes(cache) == real
  report = cache_report(shapes)
  assert f"{dtype}" in report and f"{real / 2**20:.3f} MiB" in report
  parts = [float(line.split()[-2]) for line in report.splitlines()[1:-2]]
  np.testing.assert_allclose(sum(parts), real / 2**20, atol=3e-3)


@pytest.mark.parametrize("dtype", ["float32", "int8"])
def test_a_donated_cache_is_written_in_place(dtype):
  policy = CachePolicy(64, dtype=dtype)
  cache = jax.eval_shape(lambda: empty(policy))
  run = jax.jit(kv_cache.write, donate_argnums=0).lower(cache, *numbered(0, 1)).compile()
  memory = run.memory_analysis()
  assert memory.alias_size_in_bytes >= cache_bytes((cache.keys, cache.values))
  assert memory.temp_size_in_bytes < cache_bytes(cache) / 8


# ------------------------------------------------------------------------------------------------
# int8
# ------------------------------------------------------------------------------------------------


def check_int8(source):
  """Keys with a large part in common: logits are wrong by |q| max|k - m| / 254 at most."""
  rng = np.random.default_rng(0)
  q, k = rng.normal(size=(7, 8)), rng.normal(size=(5, 6, 2, 8)) * rng.uniform(0.1, 4, (5, 6, 2, 1))
  k += 20 * rng.normal(size=(5, 1, 2, 8))
  k = np.float32(k)
  parts = source.store("int8", jnp.asarray(k), smooth=True)
  got = np.asarray(source.load(parts), np.float64)
  assert parts["x"].dtype == jnp.int8
  shapes = jax.tree.map(lambda a: (a.shape, a.dtype), parts)
  assert shapes == jax.tree.map(
    lambda a: (a.shape, a.dtype), source.empty("int8", k.shape, smooth=True)
  )
  wrong = np.abs(np.einsum("nd,ftsd->nfts", q, got - k)) / np.sqrt(8)
  spread = np.abs(np.float64(k) - k.mean(1, keepdims=True)).max(-1)
  bound = np.linalg.norm(q, axis=-1)[:, None, None, None] * spread[None] / 254
  assert np.all(wrong <= bound * 1.001 + 1e-5)
  assert wrong.max() > bound.max() / 50  # and the bound says something


def test_int8_keys_give_logits_within_the_stated_bound():
  check_int8(quantize)


@pytest.mark.parametrize(
  ("old", "new"),
  [
    ('if "mean" in parts', "if False"),  # the mean is not added back
    ("x = x - mean[..., None, :, :]", "mean = 0 * mean"),  # nothing is smoothed
    ("jnp.abs(x).max(-1) / 127", "jnp.abs(x).max(-1) / 200"),  # clipped
    ("jnp.abs(x).max(-1) / 127", "0 * jnp.abs(x).max(-1) + jnp.abs(x).max() / 127"),  # one scale
    ("jnp.round(", "jnp.floor("),
  ],
)
def test_another_int8_fails_the_proof(old, new):
  assert_caught(check_int8, mutant(quantize, old, new))


def test_values_in_int8_have_a_scale_for_every_token_and_head():
  v = np.random.default_rng(1).normal(size=(4, 3, 2, 8)) * np.logspace(-4, 3, 24).reshape(
    4, 3, 2, 1
  )
  parts = quantize.store("int8", jnp.float32(v), smooth=False)
  error = np.abs(np.asarray(quantize.load(parts)) - v).max(-1)
  assert np.all(error <= np.abs(v).max(-1) / 253)
  zeros = quantize.load(quantize.store("int8", jnp.zeros((4, 3, 2, 8)), smooth=True))
  np.testing.assert_array_equal(zeros, 0)


BAD = {
  "window >= 1": {"window": 0},
  "sink >= 0": {"window": 2, "sink": -1},
  "not 'fp8'": {"window": 2, "dtype": "fp8"},
  'not "sideways"': {"window": 2, "positions": "sideways"},
  "give a cap": {"window": 2, "positions": "capped"},
  "only with them": {"window": 2, "cap": 3},
  "at least 1 and the 4 frames": {"window": 2, "sink": 4, "positions": "capped", "cap": 3},
}


@pytest.mark.parametrize("sentence", BAD)
def test_a_wrong_policy_is_named(sentence):
  with pytest.raises(
    ValueError, match=sentence.replace('"', "'") if "sideways" in sentence else sentence
  ):
    CachePolicy(**BAD[sentence])
