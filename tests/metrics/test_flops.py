"""Operations of a video DiT against closed forms, of plain programs against XLA's own count."""

import jax
import jax.numpy as jnp
import pytest
from mutation import assert_caught, mutant

from vidstep import masks
from vidstep.attention import attention
from vidstep.metrics import flops
from vidstep.models.cond import Cond
from vidstep.models.dit import VideoDiT
from vidstep.models.velocity import velocity_fn
from vidstep.parallel.attention import ShardedAttention
from vidstep.parallel.mesh import make_mesh

B, FRAMES, SIDE, CHANNELS, PATCH = 2, 6, 4, 3, 4  # a token is 1 x 2 x 2 latents
DIM, HEADS, FFN, TEXT, WIDTH, DEPTH, CHUNK = 8, 2, 24, 5, 7, 3, 2
TOKENS = FRAMES * SIDE * SIDE // PATCH
SINUSOID = 256


def network(**fields):
  fields = {"depth": DEPTH, "scan": True} | fields
  model = VideoDiT(
    dim=DIM, heads=HEADS, ffn_dim=FFN, in_channels=CHANNELS, out_channels=CHANNELS,
    text_dim=WIDTH, **fields,
  )  # fmt: skip
  x = jax.ShapeDtypeStruct((B, FRAMES, SIDE, SIDE, CHANNELS), jnp.float32)
  t = jax.ShapeDtypeStruct((B,), jnp.float32)
  cond = Cond(text=jax.ShapeDtypeStruct((B, TEXT, WIDTH), jnp.float32))
  init = lambda key, x, t, cond: model.init(key, x, t, cond=cond)["params"]
  return model, jax.eval_shape(init, jax.random.key(0), x, t, cond), x, t, cond


# --- closed forms: two operations for every product of a matrix multiply --------------------------
def linear(rows, inner, outer, times=1):
  return 2 * B * rows * inner * outer * times


def closed_form(direction, *, tokens=TOKENS, pairs=TOKENS**2, frames=1, remat=False):
  """The count as one writes it down by hand, for the network above.

  `frames` is how many times a clip has. A gradient is two more multiplies for each, but one where
  what comes in has no gradient: patches, sinusoids, text.
  """
  on_tokens = 4 * linear(tokens, DIM, DIM) + 2 * linear(tokens, DIM, DIM)  # self; cross q and o
  feed_in, feed_out = linear(tokens, DIM, FFN), linear(tokens, FFN, DIM)
  on_text = 2 * linear(TEXT, DIM, DIM)
  pair, text_pair = B * pairs * DIM, B * tokens * TEXT * DIM  # products of one multiply, all heads
  patches, head = linear(tokens, PATCH * CHANNELS, DIM), linear(tokens, DIM, PATCH * CHANNELS)
  time = linear(frames, SINUSOID, DIM), linear(frames, DIM, DIM), linear(frames, DIM, 6 * DIM)
  text = linear(TEXT, WIDTH, DIM), linear(TEXT, DIM, DIM)

  linears = on_tokens + feed_in + feed_out
  block = linears + on_text + 2 * 2 * (pair + text_pair)
  forward = DEPTH * block + patches + head + sum(time) + sum(text)
  if direction == "forward":
    return forward
  if direction == "tangent":  # keys of the text stand still: dq k', H v only
    more = DEPTH * (linears + 2 * 4 * pair + 2 * 2 * text_pair) + patches + head + sum(time)
    return forward + more
  more = DEPTH * (2 * (linears + on_text) + 2 * 5 * (pair + text_pair))
  more += DEPTH * 2 * linear(tokens, DIM, 1)  # rowsum(do * o), which attention's backward reads
  more += patches + 2 * head + time[0] + 2 * (time[1] + time[2]) + text[0] + 2 * text[1]
  return forward + more + (DEPTH * block if remat else 0)


def velocity_of(counter, direction, **fields):
  """Counted operations of the network's velocity, its tangent or its gradient."""
  chunk = fields.pop("chunk", None)
  model, params, x, t, cond = network(**fields)
  velocity = velocity_fn(model, chunk=chunk)
  cond = cond.replace(clean=x if chunk else None)
  forward = lambda params, x, t, cond: velocity(params, x, t, cond)
  tangent = lambda params, x, t, cond: jax.jvp(
    lambda x, t: forward(params, x, t, cond), *2 * [(x, t)]
  )
  gradient = jax.grad(lambda *args: jnp.sum(forward(*args) ** 2))
  ways = {"forward": forward, "tangent": tangent, "gradient": gradient}
  return counter.count_flops(jax.jit(ways[direction]), params, x, t, cond)


def check_counts(counter, directions=("forward", "tangent", "gradient")):
  for direction in directions:
    count = velocity_of(counter, direction)
    assert count.total == closed_form(direction)
    assert not count.notes


def test_forward_tangent_and_gradient_of_a_network_are_those_of_the_closed_form():
  check_counts(flops)


@pytest.mark.parametrize(
  ("old", "new"),
  [
    ("2.0 * eqn.outvars[0].aval.size * math", "1.0 * eqn.outvars[0].aval.size * math"),
    ('params["length"]', '(params["length"] - 1)'),
    ("return 1 + (q or k) + q + k + v", "return q + k + v"),
    ("tangent = q + k + (q or k) + v", "tangent = 4"),
    ("eqn.invars[:2])\n  pairs", "eqn.invars[1:3])\n  pairs"),
  ],
)
def test_a_wrong_counter_is_caught(old, new):
  assert_caught(check_counts, mutant(flops, old, new))


def test_layers_written_out_count_as_those_of_a_scan():
  assert velocity_of(flops, "gradient", scan=False).total == closed_form("gradient")


@pytest.mark.parametrize("scan", [True, False])
def test_what_is_computed_again_counts_again(scan):
  count = velocity_of(flops, "gradient", scan=scan, remat="nothing_saveable")
  assert count.total == closed_form("gradient", remat=True)


def test_a_teacher_forced_step_pays_for_the_pairs_that_its_mask_allows():
  tokens, clean = TOKENS // FRAMES, FRAMES - CHUNK  # the last clean chunk is not packed
  packed = (FRAMES + clean) * tokens
  for direction in ("forward", "gradient"):
    count = velocity_of(flops, direction, chunk=CHUNK)
    size = {"tokens": packed, "pairs": TOKENS**2, "frames": FRAMES + clean}
    assert count.total == closed_form(direction, **size)


# --- pieces -------------------------------------------------------------------------------------
def test_xla_counts_the_same_multiplies():
  def program(w, x):
    y = x
    for _ in range(3):
      y = jnp.einsum("bnc,cd->bnd", y, w)
    return jnp.einsum("bnc,bmc->nm", y, x)

  w, x = jnp.ones((64, 64)), jnp.ones((2, 48, 64))
  for function in (program, jax.grad(lambda w, x: program(w, x)[0, 0])):
    xla = jax.jit(function).lower(w, x).compile().cost_analysis()["flops"]
    assert flops.count_flops(function, w, x).total == pytest.approx(xla, rel=0.02)


def test_xla_counts_the_same_convolution():
  x, w = jnp.ones((2, 9, 9, 4)), jnp.ones((3, 3, 4, 8))
  layout = ("NHWC", "HWIO", "NHWC")
  layer = lambda x, w: jax.lax.conv_general_dilated(x, w, (2, 2), "VALID", dimension_numbers=layout)
  xla = jax.jit(layer).lower(x, w).compile().cost_analysis()["flops"]
  count = flops.count_flops(layer, x, w)
  assert count.convolutions == xla == 2 * 2 * 16 * 8 * 36


def test_devices_of_a_shard_map_add_up():
  mesh = make_mesh(2, 4)
  info = masks.teacher_forcing_info(masks.chunk_index(5, 1)).tokens(8)
  mask, n, heads, dim = masks.TeacherForcing(), 80, 8, 4
  q = jax.ShapeDtypeStruct((4, n, heads, dim), jnp.float32)
  plain = lambda attend: lambda q: attend(q, q, q, mask, q_info=info)
  one = flops.count_flops(plain(attention), q).total
  assert one == 2 * 2 * 4 * heads * dim * masks.pairs(mask, info)
  for how in (
    {"heads": "fsdp"},
    {"sequence": "fsdp"},
    {"sequence": "fsdp", "method": "all_to_all"},
  ):
    sharded = ShardedAttention(mesh, batch=("data",), **how)
    assert flops.count_flops(plain(sharded), q).total == pytest.approx(one)


def check_unread(counter):
  half = jax.jit(lambda x: (x @ x, jax.lax.scan(lambda c, _: (c + 1, c @ c), x, None, 3)[0]))
  assert counter.count_flops(lambda x: half(x)[1], jnp.ones((4, 4))).total == 0


def test_what_nobody_reads_does_not_count():
  check_unread(flops)
  old = "live, _ = pe.dce_jaxpr(jaxpr, [True] * len(jaxpr.outvars))"
  assert_caught(check_unread, mutant(flops, old, "live = jaxpr"))


def test_what_cannot_be_known_is_said():
  x = jnp.ones((4, 4))
  grow = lambda x: jax.lax.while_loop(lambda x: x.sum() < 9, lambda x: x @ x, x)
  pick = lambda x: jax.lax.cond(x[0, 0] > 0, lambda x: x @ x @ x, lambda x: x, x)
  for loops in (1, 2.5):
    note = f"a loop of unknown length counts {loops} x"
    count = flops.count_flops(grow, x, loops=loops)
    assert count == flops.Flops(loops * 128.0, notes=frozenset({note}))
  assert flops.count_flops(pick, x) == flops.Flops(
    256.0, notes=frozenset({"of a cond, the dearest branch is counted"})
  )
  info = masks.token_info(jnp.arange(4))
  q = jnp.ones((1, 4, 1, 2))
  late = flops.count_flops(lambda i: attention(q, q, q, masks.CausalFrames(), q_info=i), info)
  assert late.total == 2 * 2 * 2 * 16 and len(late.notes) == 1
