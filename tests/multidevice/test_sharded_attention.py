"""Sharded attention equals unsharded attention on 8 simulated devices, derivatives included."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P

from vidstep import masks
from vidstep.attention import attention
from vidstep.parallel.attention import ShardedAttention

pytestmark = pytest.mark.usefixtures("unoptimized")

B, FRAMES, TOKENS, H, D = 2, 8, 3, 4, 8
N = 2 * FRAMES * TOKENS
PACKED = masks.teacher_forcing_info(masks.chunk_index(FRAMES, 3, first=1)).tokens(TOKENS)
BALANCED = masks.teacher_forcing_info(masks.chunk_index(FRAMES, 2), shards=4).tokens(TOKENS)
LENGTHS = masks.token_info(np.arange(N) // 8, valid=np.arange(N) < np.array([[N], [19]]))
TEXT = masks.token_info(np.zeros(5, int), valid=np.arange(5) < np.array([[5], [3]]))
RULE = masks.TeacherForcing() & masks.Window(2, 1, "chunk")

CASES = {
  "dense": (None, None, None),
  "packed": (RULE, PACKED, None),
  "balanced": (masks.TeacherForcing(), BALANCED, None),
  "lengths": (masks.CausalFrames() & masks.Valid(), LENGTHS, None),
  "text": (masks.Valid(), masks.token_info(np.zeros(N, int)), TEXT),
}


@pytest.fixture(scope="module")
def mesh():
  return jax.make_mesh((2, 4), ("data", "seq"), axis_types=(AxisType.Auto,) * 2)


def arrays(case):
  keys = iter(jax.random.split(jax.random.key(1), 6))
  n = TEXT.frame.shape[-1] if case == "text" else N
  make = lambda: tuple(jax.random.normal(next(keys), (B, m, H, D)) for m in (N, n, n))
  return make(), make()


def call(case, implementation, traced=False):
  rule, q_info, k_info = CASES[case]
  if traced:
    q_info, k_info = jax.tree.map(jnp.asarray, (q_info, k_info))
  options = {"q_info": q_info, "k_info": k_info, "implementation": implementation}
  return lambda q, k, v: attention(q, k, v, rule, return_lse=True, **options)


def everything(attend):
  """Output, lse, their tangents, and the gradient of a loss that holds all of them."""
  stop = jax.lax.stop_gradient

  def loss(x, dx):
    (o, lse), (do, dlse) = jax.jvp(attend, x, dx)
    loss = ((o - stop(o + do)) ** 2).sum() + (jnp.sin(lse) * (1 + stop(dlse))).sum()
    return loss, (o, lse, do, dlse)

  return jax.jit(jax.grad(loss, has_aux=True))


def assert_close(a, b):
  for x, y in zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True):
    assert x.shape == y.shape and x.dtype == y.dtype
    np.testing.assert_allclose(x, y, rtol=2e-5, atol=2e-5)


SHARDED = {
  "ring": {"sequence": "seq", "method": "ring"},
  "all_to_all": {"sequence": "seq", "method": "all_to_all"},
  "heads": {"heads": "seq"},
}


@functools.cache
def unsharded(case):
  return everything(call(case, "xla"))(*arrays(case))


@pytest.mark.parametrize(
  "case, how",
  [
    ("packed", "ring"),
    ("packed", "all_to_all"),
    ("packed", "heads"),
    ("balanced", "ring"),
    ("lengths", "ring"),
    ("lengths", "all_to_all"),
    ("text", "ring"),
    ("dense", "all_to_all"),
  ],
)
def test_sharded_equals_unsharded(mesh, case, how):
  sharded = ShardedAttention(mesh, batch=("data",), **SHARDED[how])
  assert_close(everything(call(case, sharded))(*arrays(case)), unsharded(case))


def test_traced_attributes_travel_with_their_tokens(mesh):
  sharded = ShardedAttention(mesh, batch=("data",), **SHARDED["ring"])
  got = everything(call("packed", sharded, traced=True))(*arrays("packed"))
  assert_close(got, unsharded("packed"))


def test_second_derivatives_of_a_ring_need_dense_attention(mesh):
  (q, k, v), (dq, _, _) = arrays("packed")

  def through_the_tangent(q, how):
    attend = lambda q: call("packed", how)(q, k, v)[0]
    return (jax.jvp(attend, (q,), (dq,))[1] ** 2).sum()

  gradient = lambda how: jax.jit(jax.grad(through_the_tangent), static_argnums=1)(q, how)
  ring = ShardedAttention(mesh, ("data",), "seq")
  assert_close(gradient(dataclasses.replace(ring, implementation="xla")), gradient("xla"))
  with pytest.raises(NotImplementedError, match="second derivatives"):
    gradient(ring)


def test_a_ring_moves_shards_and_never_gathers(mesh):
  x, dx = arrays("packed")
  place = NamedSharding(mesh, P("data", "seq"))
  x, dx = jax.device_put((x, dx), place)
  sharded = ShardedAttention(mesh, ("data",), "seq")
  program = everything(call("packed", sharded)).lower(x, dx).compile().as_text()
  assert "collective-permute" in program
  assert "all-gather" not in program and "all-to-all" not in program


def test_a_batch_sharded_by_the_partitioner_gathers_nothing(mesh):
  x, dx = arrays("packed")
  x, dx = jax.device_put((x, dx), NamedSharding(mesh, P("data")))
  program = everything(call("packed", None)).lower(x, dx).compile().as_text()
  assert "all-gather" not in program and "all-reduce" not in program


def test_what_does_not_divide_raises(mesh):
  x, _ = arrays("dense")
  attend = ShardedAttention(mesh, ("data",), "seq")
  with pytest.raises(ValueError, match="47 tokens do not divide among 4"):
    attend(*(a[:, :47] for a in x))
  with pytest.raises(ValueError, match="1 samples"):
    attend(*(a[:1] for a in x))
  with pytest.raises(ValueError, match="3 heads"):
    dataclasses.replace(attend, method="all_to_all")(*(a[:, :, :3] for a in x))
  with pytest.raises(ValueError, match="not \\['model'\\]"):
    ShardedAttention(mesh, ("model",))
  with pytest.raises(ValueError, match="choose"):
    ShardedAttention(mesh, method="star")
