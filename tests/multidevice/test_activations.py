"""Activations stay where their tokens are; frames that do not divide are shared token by token."""

import functools
import math
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P
from mutation import assert_caught, mutant
from random_params import randomised

from vidstep.masks import Window
from vidstep.models import dit as dit_module
from vidstep.models import parts
from vidstep.models.cond import Cond
from vidstep.models.dit import VideoDiT
from vidstep.models.positions import Positions
from vidstep.models.velocity import velocity_fn
from vidstep.parallel.attention import ShardedAttention, sharded_attention
from vidstep.parallel.mesh import make_mesh
from vidstep.parallel.sharding import state_sharding

pytestmark = [pytest.mark.timeout(900), pytest.mark.usefixtures("unoptimized")]
BATCH, FRAMES, SEEN = 2, 6, 1
FIELDS = {
  "dim": 32, "heads": 4, "depth": 2, "ffn_dim": 64, "in_channels": 2, "out_channels": 2,
  "text_dim": 5, "action_dim": 2, "scan": True,
}  # fmt: skip


@functools.cache
def inputs(frames=FRAMES, side=4):
  """(params, x, t, cond), the first random and none zero."""
  rng = np.random.default_rng(0)
  draw = lambda *shape: jnp.asarray(rng.standard_normal(shape), jnp.float32)
  x, t = draw(BATCH, frames, side, side, 2), jnp.asarray(rng.uniform(size=(BATCH, frames)))
  t = t.astype(jnp.float32)
  cond = Cond(text=draw(BATCH, 6, 5), actions=draw(BATCH, frames, 2), clean=draw(*x.shape))
  run = lambda: VideoDiT(**FIELDS).init(jax.random.key(0), x, t, cond=cond.replace(clean=None))
  return randomised(jax.eval_shape(run)["params"]), x, t, cond


def gradient(module, attend, positions, **fields):
  """fn(params, x, t, cond) -> velocity, its gradients; a network of `module`."""
  model = module.VideoDiT(**FIELDS | fields, attention=attend)
  shards = getattr(attend, "shards", 1)
  how = {"chunk": 2, "mask": Window(2, 1, "chunk"), "shards": shards, "positions": positions}
  velocity = velocity_fn(model, **how)

  def loss(params, x, t, cond):
    v = velocity(params, x, t, cond)
    return (jnp.cos(jnp.arange(v.size, dtype=jnp.float32)).reshape(v.shape) * v).sum(), v

  return jax.jit(jax.grad(loss, argnums=(0, 1), has_aux=True))


@functools.cache
def alone(positions):
  return gradient(dit_module, "xla", positions)(*inputs())


def check(module, method="ring", positions=Positions()):  # noqa: B008
  """Six frames and their clean copies, ten in all, of four tokens each, over four devices."""
  attend = sharded_attention(make_mesh(2, 1, 4, 1), method=method)
  got = gradient(module, attend, positions)(*inputs())
  for (path, b), a in zip(
    jax.tree_util.tree_leaves_with_path(alone(positions)), jax.tree.leaves(got), strict=True
  ):
    scale = max(1.0, float(jnp.abs(b).max()))
    name = jax.tree_util.keystr(path)
    np.testing.assert_allclose(a, b, rtol=0, atol=1e-5 * scale, err_msg=name)


@pytest.mark.parametrize(
  ("method", "positions"),
  [("ring", Positions()), ("all_to_all", Positions("capped", sink=1, cap=3))],
)
def test_frames_that_do_not_divide_are_shared_token_by_token(method, positions):
  check(dit_module, method, positions)


@pytest.mark.parametrize(
  ("old", "new"),
  [
    ("      return deal_table(one, frames, parts)\n", "      return one\n"),
    ("    info = repeat_frames(info, parts)\n", "    info = info.tokens(parts)\n"),
    ("jnp.tile(temb, (1, parts if temb.shape[1] > 1 else 1, 1))", "jnp.repeat(temb, parts, 1)"),
  ],
)  # fmt: skip
def test_a_wrong_order_of_parts_is_noticed(old, new):
  assert_caught(check, mutant(dit_module, old, new))


def test_parts_are_collected_as_they_were_dealt():
  x = jnp.arange(2 * 3 * 8 * 2).reshape(2, 3, 8, 2)
  dealt = parts.deal(x, 4)
  assert dealt.shape == (2, 12, 2, 2)
  np.testing.assert_array_equal(dealt[:, 3:6], x[:, :, 2:4])
  np.testing.assert_array_equal(parts.collect(dealt, 4), x)


# ------------------------------------------------------------------------------------------------
# What the compiler makes of it
# ------------------------------------------------------------------------------------------------


def moved(program, kind):
  """Numbers in the results of each collective of a kind."""
  found = []
  for line in program.splitlines():
    if match := re.search(rf" = (.*?) {kind}(-start)?\(", line):
      shapes = re.findall(r"\b[a-z]+\d+\[([\d,]*)\]", match[1])
      found += [math.prod(int(n) for n in shape.split(",") if n) for shape in shapes]
  return found


@functools.cache
def program(sizes, rules, method="ring", frames=8):
  """The compiled gradient of a network of 256 tokens a frame, as text."""
  mesh = make_mesh(*sizes)
  attend = sharded_attention(mesh, method=method)
  params, x, t, cond = inputs(frames, 32)
  put = lambda a, *spec: jax.device_put(a, NamedSharding(mesh, P(("data", "fsdp"), *spec)))
  cut = ("sequence",) if frames % mesh.shape["sequence"] == 0 else ()
  cond = jax.tree.map(put, cond).replace(clean=put(cond.clean, *cut))
  spread = state_sharding(params, mesh, rules)
  args = jax.device_put(params, spread), put(x, *cut), put(t, *cut), cond
  return gradient(dit_module, attend, Positions()).lower(*args).compile().as_text()


TOKENS = BATCH * 2 * 8 * 256 * 32  # numbers in the activations of a layer, clean copies included


@pytest.mark.parametrize(
  ("sizes", "rules", "method", "frames"),
  [
    ((2, 1, 4, 1), "fsdp_sequence", "ring", 8),
    ((1, 2, 4, 1), "fsdp_sequence", "all_to_all", 8),
    ((1, 2, 4, 1), "fsdp", "ring", 6),
    ((1, 2, 2, 2), "fsdp_tensor", "ring", 8),
  ],
)
def test_no_device_gathers_the_tokens_of_another(sizes, rules, method, frames):
  text = program(sizes, rules, method, frames)
  own = TOKENS // 8 * frames // 8
  assert max(moved(text, "all-gather"), default=0) < own // 2
  traded = max(moved(text, "all-to-all"), default=0) > own // 16
  assert traded == (method == "all_to_all")


def test_without_a_word_on_where_they_lie_they_would_be_gathered(monkeypatch):
  monkeypatch.setattr(ShardedAttention, "place", lambda self, x, frames=True: x)
  text = program.__wrapped__((1, 2, 4, 1), "fsdp_sequence", "all_to_all")
  assert max(moved(text, "all-gather")) >= TOKENS // 8 // 2
