"""Positions: exact angles at any frame, capped distances, in packed and in cached calls; NumPy."""

import importlib

import jax.numpy as jnp
import numpy as np
import pytest
from mutation import assert_caught, mutant

from vidstep.masks import (
  CLEAN,
  NOISY,
  PINNED,
  Far,
  Near,
  TeacherForcing,
  TokenInfo,
  Valid,
  Window,
  concat_info,
  dense,
  token_info,
)
from vidstep.models import blocks, positions, rope
from vidstep.models.positions import Positions, far_frames

masks = importlib.import_module("vidstep.masks.rules")
D = 12


def check_angles(source):
  """Traced frames, also huge and negative ones, have the angles that float64 has."""
  frames = np.int32([[0, 7, -3], [10**6, 10**6 + 1, 2**24 - 1]])
  static = source.rope_table(frames, 2, 1, 16)
  traced = source.rope_table(jnp.asarray(frames), 2, 1, 16)
  for a, b in zip(static, traced, strict=True):
    assert a.shape == (2, 6, 1, 8) and isinstance(a, np.ndarray)
    np.testing.assert_allclose(a, b, atol=2e-6)
  rate = 10000.0 ** (-np.arange(0, 8, 2) / 8)
  np.testing.assert_allclose(static[0][1, 2, 0, :4], np.cos((10**6 + 1) * rate), atol=1e-7)


def test_angles_are_exact_at_frame_a_million():
  check_angles(rope)


@pytest.mark.parametrize(
  ("old", "new"),
  [
    ("bits * high + top * low + ((bits & 0xFFFF) * low >> 16)", "bits * high"),
    ("top * low", "0 * top * low"),
    ("by_frame = _angle(frame, rates[0])",
     "by_frame = frame.astype(np.float32)[..., None] * np.float32(rates[0])[None, None]"),
  ],
)  # fmt: skip
def test_inexact_angles_fail_the_proof(old, new):
  assert_caught(check_angles, mutant(rope, old, new))


def oracle(q, k, v, distance, allowed):
  """Softmax attention [N, D] whose logits turn every pair by its distance; float64."""
  side = 2 * (D // 6)
  rate = 10000.0 ** (-np.arange(0, D - 2 * side, 2) / (D - 2 * side))
  rate = np.concatenate([rate, np.zeros(side)])  # one token a frame: no rows, no columns
  z = lambda a: a[:, 0::2] + 1j * a[:, 1::2]
  turned = z(q)[:, None] * np.conj(z(k))[None] * np.exp(1j * distance[..., None] * rate)
  logits = np.where(allowed, turned.real.sum(-1) / np.sqrt(D), -np.inf)
  p = np.exp(logits - logits.max(-1, keepdims=True))
  return p / p.sum(-1, keepdims=True) @ v


SINK, CAP = 2, 5
CAPPED = Positions("capped", SINK, CAP)


def settings():
  """Packed: sinks and their noisy copies among others. Cached: slots in any order, one pinned."""
  frame = np.int32([0, 1, 2, 3, 4, 5, 6, 7, 8, 0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10])
  role = np.repeat(np.int32([CLEAN, NOISY]), [9, 11])
  packed = token_info(frame, frame // 2, role)
  slots = np.int32([0, 1, 4, 3, 12, 13, 10, 11])
  kinds = np.int32([1, 1, PINNED, PINNED, 1, 1, 1, 0])
  past = token_info(slots, slots // 2, CLEAN, kinds)
  own = np.int32([14, 15])
  chunk = token_info(own, own // 2)
  early = token_info(np.int32([6, 7]), np.int32([3, 3]))
  ring = token_info(np.int32([0, 1, 4, 5]), np.int32([0, 0, 2, 2]), CLEAN, np.int32([1, 1, 2, 1]))
  nothing = token_info(np.zeros(0, np.int32))
  return {"packed": (nothing, packed), "cached": (past, chunk), "early": (ring, early)}


def check_distances(source, name, traced):
  """One attention over pairs of the stated distance is what the sets give."""
  past, own = settings()[name]
  keys = concat_info(own, past)
  mask = TeacherForcing() & Window(9, sink=SINK, pinned=True) & Valid()
  rng = np.random.default_rng(0)
  draw = lambda info: rng.normal(size=(1, len(info.frame), 1, D))
  q, (k, v) = draw(own), (draw(keys) for _ in range(2))
  distance = own.frame[:, None] - keys.frame[None]
  capped = np.minimum(own.frame, CAP)[:, None] - keys.frame[None]
  want = np.where(keys.frame < SINK, capped, distance)
  pinned = (keys.valid == PINNED) & (keys.frame >= SINK)
  want = np.where(pinned, np.minimum(distance, CAP), want)
  allowed = dense(mask, own, keys)
  assert (want != distance)[allowed].any() and (want == distance)[allowed].any()

  far = far_frames(CAPPED, keys)
  if traced:
    own, keys = (TokenInfo(*(jnp.asarray(a)[None] for a in info)) for info in (own, keys))
  sets = source.key_sets(CAPPED, own, keys, mask, far)
  table = lambda frame: rope.rope_table(frame, 1, 1, D)
  sets = [(one, (table(one.q_position), table(one.k_position))) for one in sets]
  f32 = lambda a: jnp.float32(a)
  n = own.frame.shape[-1]
  past_kv = (rope.halves(f32(k[:, n:, None])), f32(v[:, n:, None])) if len(past.frame) else None
  got = blocks.self_attention(
    f32(q), f32(k[:, :n]), f32(v[:, :n]), past_kv, sets=sets, info=own, implementation="xla"
  )
  np.testing.assert_allclose(
    got[0, :, 0], oracle(q[0, :, 0], k[0, :, 0], v[0, :, 0], want, allowed), atol=2e-6
  )


@pytest.mark.parametrize("traced", [False, True])
@pytest.mark.parametrize("name", ["packed", "cached", "early"])
def test_a_capped_distance_is_what_it_says(name, traced):
  check_distances(positions, name, traced)


@pytest.mark.parametrize(
  ("name", "old", "new"),
  [
    ("cached", "at = xp.minimum(q.frame, positions.cap)", "at = q.frame"),  # the sink is not capped
    ("cached", "mask & Near(*split)", "mask"),  # seen twice
    ("early", "mask & Far(*split), far", "mask, far"),
    ("cached", "kept.frame, 0)", "kept.frame, 1)"),
    ("cached", "k.frame - base", "k.frame"),
  ],
)
def test_another_cap_fails_the_proof(name, old, new):
  assert_caught(check_distances, mutant(positions, old, new), name, False)


def test_near_and_far_share_all_pairs_between_them():
  past, own = settings()["cached"]
  keys = concat_info(past, own)
  near, far = (dense(rule(SINK, CAP), own, keys) for rule in (Near, Far))
  np.testing.assert_array_equal(near ^ far, True)
  assert far.any() and near.any()


def test_relative_positions_are_counted_from_the_first_query():
  own, keys = token_info(np.int32([10**6, 10**6 + 1])), token_info(np.int32([0, 10**6 - 2]))
  (one,) = positions.key_sets(Positions("relative"), own, keys, None)
  assert one.q_position.tolist() == [0, 1] and one.k_position.tolist() == [-(10**6), -2]
