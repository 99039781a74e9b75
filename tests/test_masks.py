"""Masks against definitions written out token by token, and tile maps against dense arrays."""

import time

import hypothesis
import hypothesis.strategies as st
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from vidstep import masks
from vidstep.masks import CLEAN, NOISY, token_info

PACKED = masks.teacher_forcing_info(masks.chunk_index(7, 2, first=1))
CACHE = token_info(
  np.array([[4, 1, 2, 3, 0], [0, 6, 5, 9, 9]]), valid=np.array([[1, 1, 1, 1, 0], [1, 1, 1, 0, 0]])
)

# Each definition in plain words of Python, on one query and one key at a time.
DEFINITIONS = {
  masks.Full(): lambda q, k: True,
  masks.CausalFrames(): lambda q, k: k["frame"] <= q["frame"],
  masks.CausalChunks(): lambda q, k: k["chunk"] <= q["chunk"],
  masks.DiffusionForcing(): lambda q, k: k["chunk"] <= q["chunk"],
  masks.Valid(): lambda q, k: q["valid"] == 1 and k["valid"] == 1,
  masks.Window(2): lambda q, k: q["frame"] - k["frame"] < 2,
  masks.Window(1, 2, "chunk"): lambda q, k: k["chunk"] >= q["chunk"] or k["chunk"] in (0, 1),
  masks.TeacherForcing(): lambda q, k: {
    (CLEAN, CLEAN): k["chunk"] <= q["chunk"],
    (CLEAN, NOISY): False,
    (NOISY, CLEAN): k["chunk"] < q["chunk"],
    (NOISY, NOISY): k["chunk"] == q["chunk"],
  }[q["role"], k["role"]],
}


def by_definition(rule, q_info, k_info):
  field = lambda info, i: dict(zip(info._fields, (int(x[i]) for x in info), strict=True))
  rows = range(len(q_info.frame)), range(len(k_info.frame))
  pair = lambda i, j: DEFINITIONS[rule](field(q_info, i), field(k_info, j))
  return np.array([[pair(i, j) for j in rows[1]] for i in rows[0]])


def sample(info, b):
  return masks.TokenInfo(*(field[b] for field in info))


@pytest.mark.parametrize("rule", DEFINITIONS, ids=str)
def test_a_rule_is_its_definition(rule):
  assert np.array_equal(masks.dense(rule, PACKED), by_definition(rule, PACKED, PACKED))
  across = masks.dense(rule, PACKED, CACHE)
  for b in range(2):
    assert np.array_equal(across[b], by_definition(rule, PACKED, sample(CACHE, b)))


@pytest.mark.parametrize("rule", DEFINITIONS, ids=str)
def test_a_rule_says_the_same_of_traced_attributes(rule):
  traced = masks.TokenInfo(*map(jnp.asarray, PACKED))
  assert not traced.static
  dense = jax.jit(lambda info: masks.dense(rule, info))(traced)
  assert np.array_equal(dense, masks.dense(rule, PACKED))


def test_a_mutated_teacher_forcing_rule_is_caught():
  class Peeking(masks.TeacherForcing):
    def __call__(self, q, k):  # lets a noisy query see the clean copy of its own chunk
      return super().__call__(q, k) | (k.role == CLEAN) & (k.chunk == q.chunk)

  wrong = masks.dense(Peeking(), PACKED)
  assert not np.array_equal(wrong, by_definition(masks.TeacherForcing(), PACKED, PACKED))


def test_rules_are_known_by_what_they_read():
  read = masks.rules.fields_read
  assert read(masks.CausalFrames()) == {"frame"}
  assert read(masks.TeacherForcing() & masks.Window(2, 1)) == {"frame", "chunk", "role"}

  class Unpacking(masks.Rule):
    def __call__(self, q, k):
      frame, *_ = q
      return frame == k[0]

  assert read(Unpacking()) == set(masks.TokenInfo._fields)


def test_intersection_flattens_and_drops_full():
  a, b, c = masks.CausalFrames(), masks.Window(2), masks.Valid()
  assert (a & b) & (c & a) == masks.Intersection((a, b, c))
  assert a & masks.Full() == a and masks.Full() & masks.Full() == masks.Full()
  assert hash(a & b) == hash(masks.CausalFrames() & masks.Window(2))
  both = masks.dense(a & b, PACKED)
  assert np.array_equal(both, masks.dense(a, PACKED) & masks.dense(b, PACKED))


def test_chunks_may_open_on_an_image_and_leave_a_remainder():
  assert masks.chunk_index(6, 2, first=1).tolist() == [0, 1, 1, 2, 2, 3]
  assert masks.chunk_index(7, 3).tolist() == [0, 0, 0, 1, 1, 1, 2]
  with pytest.raises(ValueError, match="at least one frame"):
    masks.chunk_index(7, 0)


def test_interleaved_layout_is_the_packed_one_reordered():
  chunk = masks.chunk_index(8, 3)
  packed = masks.teacher_forcing_info(chunk)
  interleaved = masks.teacher_forcing_info(chunk, shards=4)
  order = interleaved.frame + 8 * interleaved.role
  assert sorted(order) == list(range(16)) and not np.array_equal(order, range(16))
  assert order[:4].tolist() == [0, 1, 8, 9]  # device 0: clean 0, 1 and noisy 0, 1
  rule = masks.TeacherForcing() & masks.Window(2, 1, "chunk")
  dense = masks.dense(rule, packed)
  assert np.array_equal(masks.dense(rule, interleaved), dense[np.ix_(order, order)])
  with pytest.raises(ValueError, match="do not divide"):
    masks.teacher_forcing_info(chunk, shards=3)


def test_packed_teacher_forcing_without_its_last_clean_chunk_costs_n_squared():
  info = masks.teacher_forcing_info(masks.chunk_index(12, 3)).tokens(5)
  keep = np.flatnonzero((info.role == NOISY) | (info.chunk < 3))
  kept = masks.TokenInfo(*(field[keep] for field in info))
  assert masks.pairs(masks.TeacherForcing(), kept) == (12 * 5) ** 2
  assert masks.pairs(masks.TeacherForcing(), info) == (12 * 5) ** 2 * 5 // 4
  assert masks.density(masks.TeacherForcing(), info) == 5 / 16


def attributes(n):
  field = lambda high: st.lists(st.integers(0, high), min_size=n, max_size=n)
  return st.tuples(field(5).map(sorted), field(3), field(1), field(1))


RULES = [
  None,
  masks.Valid(),
  masks.TeacherForcing() & masks.Window(2, 1),
  masks.CausalFrames() & masks.Valid(),
]


@hypothesis.settings(max_examples=150, derandomize=True, deadline=None, database=None)
@hypothesis.given(
  data=st.data(),
  rule=st.sampled_from(RULES),
  q_len=st.integers(1, 24),
  k_len=st.integers(1, 24),
  blocks=st.tuples(st.integers(1, 9), st.integers(1, 9)),
  batch=st.integers(1, 2),
)
def test_tile_map_is_what_the_dense_mask_says(data, rule, q_len, k_len, blocks, batch):
  draw = lambda n: np.array([data.draw(attributes(n)) for _ in range(batch)])
  q_info, k_info = (token_info(*np.moveaxis(draw(n), 1, 0)) for n in (q_len, k_len))
  dense = masks.dense(rule, q_info, k_info)
  tiles = masks.tile_map(rule, *blocks, q_info, k_info)
  assert masks.pairs(rule, q_info, k_info) == dense.sum()

  kinds = np.zeros((-(-q_len // blocks[0]), -(-k_len // blocks[1])), int)
  for i, j in np.ndindex(kinds.shape):
    tile = dense[:, i * blocks[0] : (i + 1) * blocks[0], j * blocks[1] : (j + 1) * blocks[1]]
    whole = tile.shape[1:] == blocks
    kinds[i, j] = 2 if tile.all() and whole else 1 if tile.any() else 0

  for wanted, lists in ((kinds, tiles[:3]), (kinds.T, tiles[3:])):
    for row, tile, full, count in zip(wanted, *lists, strict=True):
      assert np.array_equal(tile[:full], np.flatnonzero(row == 2))
      assert np.array_equal(tile[full:count], np.flatnonzero(row == 1))
      assert (tile[count:] == (tile[count - 1] if count else tile[0])).all()


def test_planning_131k_tokens_takes_well_under_a_second():
  info = masks.teacher_forcing_info(masks.chunk_index(42, 3)).tokens(1560)
  assert len(info.frame) == 131_040
  start = time.process_time()
  tiles = masks.tile_map(masks.TeacherForcing(), 512, 512, info)
  pairs = masks.pairs(masks.TeacherForcing(), info)
  assert time.process_time() - start < 0.5
  assert pairs == (1 + 14) * 14 * (3 * 1560) ** 2
  touched = tiles.k_count.sum() * 512 * 512
  assert pairs < touched < 1.1 * pairs


def test_traced_attributes_have_no_pairs_and_partial_tiles():
  traced = masks.TokenInfo(*map(jnp.asarray, PACKED))
  with pytest.raises(ValueError, match="NumPy"):
    masks.pairs(masks.TeacherForcing(), traced)
  tiles = masks.tile_map(masks.TeacherForcing(), 8, 8, traced)
  assert tiles.k_count.tolist() == [2, 2] and tiles.k_full.tolist() == [0, 0]


def test_token_info_fills_defaults_and_refuses_floats():
  info = token_info([3, 4])
  assert [field.tolist() for field in info] == [[3, 4], [3, 4], [NOISY, NOISY], [1, 1]]
  assert all(field.dtype == np.int32 for field in info)
  assert info.tokens(2).frame.tolist() == [3, 3, 4, 4]
  assert masks.concat_info(info, PACKED).frame.shape == (16,)
  assert not token_info([3, 4], valid=jnp.ones(2, bool)).static
  with pytest.raises(ValueError, match="float64"):
    token_info(np.array([0.5]))
  with pytest.raises(ValueError, match="window"):
    masks.Window(0)


def test_a_mask_draws_itself(tmp_path):
  ax = masks.draw(masks.TeacherForcing(), PACKED, path=str(tmp_path / "mask.png"))
  assert (tmp_path / "mask.png").stat().st_size > 1000
  picture = ax.get_images()[0].get_array()
  assert np.array_equal(picture, masks.dense(masks.TeacherForcing(), PACKED))
  long = PACKED.tokens(1000)
  share = masks.draw(masks.TeacherForcing(), long, ax=ax).get_images()[-1].get_array()
  assert max(share.shape) <= 512
