import importlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from mutation import assert_caught, mutant

from vidstep.masks import CausalChunks, Window
from vidstep.models import layout as layout_module
from vidstep.models.cond import Cond
from vidstep.models.layout import plain
from vidstep.models.velocity import velocity_fn

SOURCE = importlib.import_module("vidstep.models.velocity")
T = np.float32([0.3, 0.8])
# Two context frames, then four: a first chunk of one, one of two, and what remains.
SEEN, FRAMES, CHUNK = 2, 4, (1, 2)
CHUNKS = np.int32([0, 0, 1, 2, 2, 3])


def test_without_context_it_is_the_network(net, normal):
  model, params, apply = net(action_dim=2)
  x, cond = normal(2, 3, 4, 4, 2), Cond(actions=normal(2, 3, 2))
  got = jax.jit(velocity_fn(model))(params, x, T, cond)
  np.testing.assert_allclose(got, apply(params, x, T, cond=cond).v, atol=1e-6)


def test_context_is_a_clean_prefix_at_time_zero(net, normal):
  model, params, apply = net(action_dim=2, second_time=True)
  x, context, actions = normal(2, 3, 4, 4, 2), normal(2, 2, 4, 4, 2), normal(2, 5, 2)
  velocity = jax.jit(velocity_fn(model))
  s = T / 2
  got = velocity(params, x, T, Cond(actions=actions, context=context), s=s)
  prefix = lambda t: np.repeat(t[:, None], 5, 1) * np.float32([0, 0, 1, 1, 1])
  want = apply(
    params, np.concatenate([context, x], 1), prefix(T), s=prefix(s), cond=Cond(actions=actions)
  ).v[:, 2:]
  assert got.shape == x.shape
  np.testing.assert_allclose(got, want, atol=1e-5)
  other = velocity(params, x, T, Cond(actions=actions, context=-context), s=s)
  assert np.abs(got - other).max() > 1e-3


def test_a_network_that_sees_the_whole_clip_never_sees_the_clean_one(net, normal):
  model, params, _ = net(action_dim=2)
  x, cond = normal(2, 4, 4, 4, 2), Cond(actions=normal(2, 4, 2))
  velocity = jax.jit(velocity_fn(model))
  got = velocity(params, x, T, cond.replace(clean=normal(*x.shape)))
  np.testing.assert_array_equal(got, velocity(params, x, T, cond))


# ------------------------------------------------------------------------------------------------
# Causal
# ------------------------------------------------------------------------------------------------


def check_teacher_forcing(source, net, normal):
  """Each chunk is what the network says of it behind the clean frames before it, one by one."""
  model, params, apply = net(action_dim=2, second_time=True)
  x, clean = normal(2, FRAMES, 4, 4, 2), normal(2, FRAMES, 4, 4, 2)
  context, actions = normal(2, SEEN, 4, 4, 2), normal(2, SEEN + FRAMES, 2)
  t = np.float32([[0.3, 0.4, 0.4, 0.9], [0.8, 0.6, 0.6, 0.2]])
  cond = Cond(actions=actions, context=context, clean=clean)
  got = jax.jit(source.velocity_fn(model, chunk=CHUNK))(params, x, t, cond, s=t / 2)
  assert got.shape == x.shape

  past, noisy = np.concatenate([context, clean], 1), np.concatenate([0 * context, x], 1)
  times = np.pad(t, ((0, 0), (SEEN, 0)))
  for chunk in (1, 2, 3):
    now = chunk == CHUNKS
    video = np.where(now[None, :, None, None, None], noisy, past)
    here = np.where(now[None], times, 0)
    # All six frames and block causality: what comes after the chunk is there and must not matter.
    want = apply(
      params, video, here, s=here / 2, cond=Cond(actions=actions),
      layout=plain(SEEN + FRAMES, chunks=CHUNKS, mask=CausalChunks()),
    ).v  # fmt: skip
    np.testing.assert_allclose(got[:, now[SEEN:]], want[:, now], atol=2e-5)


def test_teacher_forcing_is_every_chunk_behind_the_clean_ones_before_it(net, normal):
  check_teacher_forcing(SOURCE, net, normal)


@pytest.mark.parametrize(
  ("module", "old", "new"),
  [
    (SOURCE, "else TeacherForcing()", "else CausalChunks()"),  # a chunk sees its clean copy
    (SOURCE, "None if s is None else pack_time(s, layout)", "None"),
    (layout_module, "chunk != chunk[-1]", "chunk < chunk[-1] - 1"),  # one chunk too many dropped
    (layout_module, "_take(a, clean_frames)", "_take(a, np.maximum(clean_frames - 1, 0))"),
    (layout_module, "jnp.zeros((t.shape[0], n), t.dtype)", "jnp.full((t.shape[0], n), 0.5)"),
  ],
)
def test_wrong_teacher_forcing_fails_the_proof(net, normal, monkeypatch, module, old, new):
  source = mutant(module, old, new)
  if module is layout_module:
    for name in ("teacher_forcing", "pack_time", "unpack"):
      monkeypatch.setattr(SOURCE, name, getattr(source, name))
    source = SOURCE
  assert_caught(check_teacher_forcing, source, net, normal)


def reach(velocity, params, cond, x):
  """Which generated frames each input reaches, bit for bit: one sample an input, in one call."""
  inputs = {"x": x, "actions": cond.actions, "context": cond.context, "clean": cond.clean}
  inputs = {name: np.asarray(a)[0] for name, a in inputs.items() if a is not None}
  changes = [(name, f) for name, a in inputs.items() for f in range(len(a))]
  many = {name: np.repeat(a[None], len(changes) + 1, 0) for name, a in inputs.items()}
  for i, (name, f) in enumerate(changes):
    many[name][i, f] += 1
  x = many.pop("x")
  v = np.asarray(velocity(params, x, np.full(len(x), 0.6, np.float32), Cond(**many)))
  change = np.abs(v[:-1] - v[-1:]).max((2, 3, 4))
  assert not np.any((change > 0) & (change < 1e-5))  # all or nothing
  return {name: change[[i for i, c in enumerate(changes) if c[0] == name]] > 0 for name in inputs}


@pytest.mark.parametrize("forced", [True, False])
def test_each_input_reaches_exactly_what_it_should(net, normal, forced):
  model, params, _ = net(action_dim=2)
  x, context = normal(1, FRAMES, 4, 4, 2), normal(1, SEEN, 4, 4, 2)
  cond = Cond(actions=normal(1, SEEN + FRAMES, 2), context=context)
  cond = cond.replace(clean=normal(*x.shape)) if forced else cond
  got = reach(jax.jit(velocity_fn(model, chunk=CHUNK)), params, cond, x)

  of = CHUNKS[SEEN:]
  own, past = of[:, None] == of[None], of[:, None] < of[None]
  np.testing.assert_array_equal(got["x"], own if forced else own | past)
  np.testing.assert_array_equal(got["context"], np.ones((SEEN, FRAMES), bool))
  # An action leads into its frame, and is part of what its frame means to later chunks.
  np.testing.assert_array_equal(got["actions"][SEEN:], own | past)
  assert got["actions"][:SEEN].all()
  if forced:
    np.testing.assert_array_equal(got["clean"], past)


def test_a_window_narrows_what_a_causal_network_sees(net, normal):
  model, params, _ = net(action_dim=2, depth=1)
  x = normal(1, 4, 4, 4, 2)
  cond = Cond(actions=normal(1, 4, 2), clean=normal(1, 4, 4, 4, 2))
  got = reach(jax.jit(velocity_fn(model, chunk=1, mask=Window(2))), params, cond, x)
  np.testing.assert_array_equal(got["clean"], np.eye(4, k=1, dtype=bool))


def test_clean_frames_have_no_tangents(net, rng):
  """The tangent along (dx/dt, 1) is the difference quotient of the noisy half alone, float64."""
  with jax.enable_x64(True):
    model, params, _ = net(action_dim=2, dtype=jnp.float64)
    params = jax.tree.map(lambda a: jnp.asarray(a, jnp.float64), params)
    draw = lambda *shape: jnp.asarray(rng.standard_normal(shape))
    x, dx, clean = (draw(1, 3, 4, 4, 2) for _ in range(3))
    cond = Cond(actions=draw(1, 3, 2), clean=clean)
    velocity = jax.jit(velocity_fn(model, chunk=1))
    t, h = jnp.asarray([0.6]), 1e-7
    at = lambda x, t: velocity(params, x, t, cond)
    _, got = jax.jit(lambda: jax.jvp(at, (x, t), (dx, jnp.ones_like(t))))()
    want = (at(x + h * dx, t + h) - at(x - h * dx, t - h)) / (2 * h)
    np.testing.assert_allclose(got, want, rtol=0, atol=1e-7 * np.abs(want).max())


def test_chunks_must_not_cut_patches(net, normal):
  model, params, _ = net(patch=(2, 2, 2))
  x = normal(2, 4, 4, 4, 2)
  with pytest.raises(ValueError, match="cut patches of 2 frames"):
    velocity_fn(model, chunk=1)(params, x, T)
  velocity_fn(model, chunk=2)(params, x, T)


def test_shards_of_which_frames_are_no_multiple_change_nothing(net, normal):
  """The network deals out the tokens of each frame instead."""
  model, params, _ = net(patch=(2, 2, 2))
  x = normal(2, 4, 4, 4, 2)
  for shards, cond in ((2, Cond(clean=x, context=x[:, :2])), (3, Cond(clean=x))):
    run = lambda shards, cond=cond: velocity_fn(model, chunk=2, shards=shards)(params, x, T, cond)
    np.testing.assert_array_equal(run(shards), run(1))


def test_a_chunk_of_context_and_noise_is_refused(normal):
  x = normal(1, 2, 4, 4, 2)
  with pytest.raises(ValueError, match="a chunk must begin at 1"):
    layout_module.teacher_forcing(
      x, T[:1], Cond(context=x[:, :1]), clean=x, chunks=np.int32([0, 0, 1])
    )
