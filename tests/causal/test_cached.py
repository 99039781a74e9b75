"""Behind a cache, chunk by chunk, a network is what it is in the packed, teacher-forced forward."""

import dataclasses
import functools
import importlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from mutation import assert_caught, mutant
from random_params import randomised

from vidstep.causal import cached, kv_cache
from vidstep.causal.cached import CachedNetwork
from vidstep.causal.kv_cache import CachePolicy
from vidstep.masks import TeacherForcing, Window
from vidstep.models import Cond, VideoDiT, velocity_fn
from vidstep.models.layout import plain
from vidstep.models.past import Past
from vidstep.models.positions import Positions

pytestmark = pytest.mark.usefixtures("unoptimized")

blocks, dit = (importlib.import_module(f"vidstep.models.{name}") for name in ("blocks", "dit"))
SEEN, FRAMES, CHUNK = 2, 7, (1, 2)  # context, then chunks of 1, 2, 2, 2
STARTS = (0, 1, 3, 5)
B = 2


@functools.cache
def net(**fields):
  """A tiny network with text, actions and a second time, and random parameters."""
  fields = {"second_time": True, "text_dim": 3, "action_dim": 2, "depth": 2} | fields
  model = VideoDiT(
    dim=24, heads=2, ffn_dim=32, in_channels=2, out_channels=2, attention="xla", **fields
  )
  x = jnp.zeros((1, 1, 4, 4, 2))
  shapes = jax.eval_shape(lambda: model.init(jax.random.key(0), x, jnp.zeros(1))["params"])
  return model, randomised(shapes)


def example():
  rng = np.random.default_rng(1)
  draw = lambda *shape: np.float32(rng.normal(size=(B, *shape)))
  cond = Cond(
    text=draw(3, 3),
    text_mask=np.array([[1, 1, 1], [1, 0, 1]], bool),
    actions=draw(SEEN + FRAMES, 2),
    context=draw(SEEN, 4, 4, 2),
    clean=draw(FRAMES, 4, 4, 2),
  )
  t = np.float32([[0.3] + [0.4] * 2 + [0.9] * 2 + [0.7] * 2, [0.8] + [0.6] * 2 + [0.2] * 4])
  return draw(FRAMES, 4, 4, 2), t, cond


def cut(cond, start, stop):
  return Cond(actions=cond.actions[:, start:stop])


@functools.cache
def compiled(network):
  """read and append of a network, compiled once for every length of a chunk."""
  read = jax.jit(lambda p, x, t, cond, cache: network.read(p, x, t, cond, cache, s=t / 2))
  return jax.jit(network.start), read, jax.jit(network.append)


def stream(network, params, x, t, cond):
  """Velocity of every chunk behind a cache of the clean ones before it."""
  start, read, append = compiled(network)
  cache = append(params, cond.context, cut(cond, 0, SEEN), start(params, x, cond))
  out = []
  for begin, end in zip(STARTS, (*STARTS[1:], FRAMES), strict=True):
    part, now = cut(cond, SEEN + begin, SEEN + end), slice(begin, end)
    out.append(read(params, x[:, now], t[:, now], part, cache))
    cache = append(params, cond.clean[:, now], part, cache)
  return np.concatenate(out, 1)


# ------------------------------------------------------------------------------------------------
# Equal to the packed forward
# ------------------------------------------------------------------------------------------------

RULES = {
  "everything": (CachePolicy(9), None),
  "whole": (CachePolicy(9, whole=True), None),
  "by frame": (CachePolicy(4, sink=1), Window(5, sink=1)),
  "by chunk": (CachePolicy(2), Window(2, by="chunk")),
  "relative": (CachePolicy(3, sink=2, positions="relative"), Window(4, sink=2)),
  "capped": (CachePolicy(3, sink=2, positions="capped", cap=4), Window(4, sink=2)),
}
FIELDS = {"relative": {"scan": True}, "by chunk": {"remat": "nothing_saveable"}}


@functools.cache
def packed(name, depth):
  """What the packed forward says under one of the RULES."""
  policy, window = RULES[name]
  model, params = net(depth=depth, **FIELDS.get(name, {}))
  velocity = velocity_fn(model, chunk=CHUNK, mask=window, positions=policy.rope)
  return jax.jit(lambda x, t, cond: velocity(params, x, t, cond, s=t / 2))(*example())


def check_stream(name, policy=CachePolicy, atol=1e-5, depth=1):
  _, window = RULES[name]
  mask = TeacherForcing() if window is None else TeacherForcing() & window
  model, params = net(depth=depth, **FIELDS.get(name, {}))
  network = CachedNetwork(model, policy(**vars(RULES[name][0])), mask)
  got, want = stream(network, params, *example()), packed(name, depth)
  np.testing.assert_allclose(got, want, atol=atol)


@pytest.mark.parametrize("name", RULES)
def test_behind_a_cache_it_is_the_packed_forward(name):
  check_stream(name, depth=2)


@pytest.mark.parametrize(
  ("dtype", "least", "most"), [("bfloat16", 1e-4, 3e-2), ("int8", 1e-4, 5e-2)]
)
def test_a_cache_of_fewer_bits_is_near(dtype, least, most):
  policy = lambda **fields: CachePolicy(**fields | {"dtype": dtype})
  check_stream("by frame", policy, most)
  assert_caught(check_stream, "by frame", policy, least)


def keys_before_rope():
  return dit, "Block", mutant(blocks, "self.keep_key(kv[0])", "halves(kv[0])").Block


MUTANTS = {
  "ring off by one": ("(frame - self.sink) % self.window", "frame % (self.window - 1)"),
  "ring over the sink": ("self.sink + self.pinned + (frame - self.sink) %", "frame %"),
  "frames numbered from one": ("cache.count[:, None] + jnp", "cache.count[:, None] + 1 + jnp"),
  "window one too short": ("(self.count - self.window)", "(self.count - self.window + 1)"),
  "old chunk numbers": ("chunks=cache.chunks + 1", "chunks=cache.chunks"),
}


@pytest.mark.parametrize("name", [*MUTANTS, "keys before rope"])
def test_another_cache_fails_the_proof(name, monkeypatch):
  if name == "keys before rope":
    monkeypatch.setattr(*keys_before_rope())
    assert_caught(check_stream, "by frame", lambda **f: CachePolicy(**f | {"window": 5}))
    return
  source = mutant(kv_cache, *MUTANTS[name])
  monkeypatch.setattr(cached, "kv_cache", source)
  assert_caught(check_stream, "by frame", source.CachePolicy)


def test_derivatives_pass_through_the_cache():
  """In the parameters, back through all that was appended, and forward in x and t of one chunk."""
  model, params = net(depth=1)
  rng = np.random.default_rng(2)
  draw = lambda *shape: np.float32(rng.normal(size=(B, *shape)))
  x, clean, weight, actions = draw(2, 4, 4, 2), draw(2, 4, 4, 2), draw(2, 4, 4, 2), draw(2, 2)
  cond = Cond(text=draw(3, 3), actions=actions, clean=clean)
  policy = CachePolicy(1, sink=1, positions="relative")
  network, t = CachedNetwork(model, policy), jnp.full((B, 2), 0.4)
  velocity = velocity_fn(model, chunk=1, positions=policy.rope)

  def chain(params, x, t):
    cache = network.append(params, clean[:, :1], cut(cond, 0, 1), network.start(params, x, cond))
    v = network.read(params, x[:, 1:], t[:, 1:], cut(cond, 1, 2), cache)
    return jnp.sum(v * weight[:, 1:])

  forced = lambda params, x, t: jnp.sum((velocity(params, x, t, cond) * weight)[:, 1:])

  def both(f):
    grads = jax.grad(f)(params, x, t)
    return grads, jax.jvp(lambda x, t: f(params, x, t), (x, t), (weight, t))

  got, want = jax.jit(lambda: (both(chain), both(forced)))()
  for a, b in zip(jax.tree.leaves(got), jax.tree.leaves(want), strict=True):
    np.testing.assert_allclose(a, b, atol=1e-4, rtol=1e-4)
  reached = [float(jnp.abs(a).max()) > 0 for a in jax.tree.leaves(got[0])]
  assert sum(reached) > 0.9 * len(reached)


# ------------------------------------------------------------------------------------------------
# What is seen, bit for bit
# ------------------------------------------------------------------------------------------------

PAST = 6  # frames 0 .. 5 are appended one by one, frame 6 is read


def reach(network, params, frames=range(PAST), *, window=None, pins=()):
  """Which appended frame, action and token of the text changes the velocity of the next frame.

  One block, so that nothing is passed on from frame to frame. One row of a batch a change.
  """
  changes = [
    (n, i) for n, k in (("frame", PAST), ("action", PAST + 1), ("text", 2)) for i in range(k)
  ]
  rows = len(changes) + 1
  rng = np.random.default_rng(3)
  same = lambda *shape: np.float32(rng.normal(size=(1, *shape))).repeat(rows, 0)
  inputs = {"frame": same(PAST, 4, 4, 2), "action": same(PAST + 1, 2), "text": same(2, 3)}
  x = same(1, 4, 4, 2)
  for row, (name, i) in enumerate(changes):
    inputs[name][row, i] += 1
  text_mask = np.array([[True, False]]).repeat(rows, 0)
  act = lambda f: Cond(actions=inputs["action"][:, f : f + 1])
  start, read, append = compiled(network)
  cache = start(params, x, Cond(text=inputs["text"], text_mask=text_mask))
  for f in frames:
    cache = append(params, inputs["frame"][:, f : f + 1], act(f), cache)
    for frame in pins:
      cache = kv_cache.pin(cache, frame)
  if window is not None:
    cache = cache.replace(window=jnp.full_like(cache.window, window))
  v = np.asarray(read(params, x, np.full((rows, 1), 0.5, np.float32), act(PAST), cache))
  changed = np.abs(v[:-1] - v[-1:]).max((1, 2, 3, 4)) > 0
  return {
    name: [i for (n, i), c in zip(changes, changed, strict=True) if c and n == name]
    for name in inputs
  }


def test_all_that_is_kept_is_seen_and_nothing_else():
  model, params = net(depth=1)
  network = CachedNetwork(model, CachePolicy(2, sink=1, pinned=2))
  seen = reach(network, params)
  assert seen == {"frame": [0, 4, 5], "action": [0, 4, 5, 6], "text": [0]}
  assert reach(network, params, window=1)["frame"] == [0, 5]
  assert reach(network, params, pins=(2,))["frame"] == [0, 2, 4, 5]
  assert reach(network, params, pins=(0, 2, 3))["frame"] == [0, 2, 3, 4, 5]
  assert reach(network, params, pins=(1, 2, 3))["frame"] == [0, 2, 3, 4, 5]  # the oldest pin went


def test_nothing_is_compiled_again_however_long_the_stream():
  model, params = net(depth=1)
  network = CachedNetwork(model, CachePolicy(2, sink=1, dtype="int8", positions="relative"))
  x, cond = np.zeros((1, 1, 4, 4, 2), np.float32), Cond(actions=np.zeros((1, 1, 2), np.float32))
  read, append = jax.jit(network.read), jax.jit(network.append, donate_argnums=3)
  cache = jax.jit(network.start)(params, x, cond)
  shapes = jax.tree.map(lambda a: (a.shape, a.dtype), cache)
  for _ in range(9):
    v = read(params, x, np.float32([0.5]), cond, cache)
    cache = append(params, x, cond, cache)
    assert np.isfinite(v).all()
  assert read._cache_size() == append._cache_size() == 1
  assert jax.tree.map(lambda a: (a.shape, a.dtype), cache) == shapes
  assert cache.count == 9 and cache.frame[0].tolist() == [0, 7, 8]


def test_a_donated_cache_is_not_copied(optimized):
  """Not by `append`, nor by `read_append`, which reads the last block after its keys are made."""
  model, params = net()
  network = CachedNetwork(model, CachePolicy(13))
  x, t, cond = example()
  args = params, x[:, :1], t[:, :1], cut(cond, 0, 1)
  cache = jax.eval_shape(network.start, params, x, cond)
  append = lambda p, x, t, cond, cache: network.append(p, x, cond, cache)
  for step in (append, network.read_append):
    text = jax.jit(step, donate_argnums=4).lower(*args, cache).compile().as_text()
    moved = [line for line in text.splitlines() if "= f32[2,2,13,4,2,12]" in line]
    assert moved and not any(" copy(" in line for line in moved)


# ------------------------------------------------------------------------------------------------
# Prompts, noisy context, refusals
# ------------------------------------------------------------------------------------------------


def test_a_new_prompt_is_as_if_it_had_been_the_prompt_for_all_that_is_kept():
  model, params = net()
  policy = CachePolicy(3, pinned=1, positions="relative", recache=True)
  network = CachedNetwork(model, policy)
  start, read, append = compiled(network)
  x, t, cond = example()
  other = cond.replace(text=-cond.text)
  frame = lambda f: (cond.clean[:, f : f + 1], cut(cond, f, f + 1))
  last = (params, x[:, :1], t[:, :1], cut(cond, 5, 6))

  cache = start(params, x, cond)
  for f in range(5):
    cache = append(params, *frame(f), cache)
    cache = kv_cache.pin(cache, 3)  # in the ring as well: seen once
  fresh = start(params, x, other)
  fresh = fresh.replace(count=fresh.count + 2, chunks=fresh.chunks + 2)
  for f in range(2, 5):
    fresh = append(params, *frame(f), fresh)
  switched = jax.jit(network.switch)(params, other, cache)
  want = np.asarray(read(*last, fresh))
  np.testing.assert_allclose(read(*last, switched), want, atol=1e-5)
  unpinned = kv_cache.pin(switched, 4)  # frame 3 shows in the ring again, under the new prompt
  np.testing.assert_allclose(read(*last, unpinned), want, atol=1e-5)
  keep = CachedNetwork(model, dataclasses.replace(policy, recache=False))
  kept = jax.jit(keep.switch)(params, other, cache)
  assert np.abs(read(*last, kept) - want).max() > 1e-3  # what the frames carry lingers
  assert np.abs(read(*last, kept) - read(*last, cache)).max() > 1e-3


def test_noisy_context_is_read_and_append_in_one_forward():
  model, params = net()
  network = CachedNetwork(model, CachePolicy(3, recache=True))
  start, _, append = compiled(network)
  x, t, cond = example()
  now, part = slice(0, 2), cut(cond, 0, 2)
  cache = append(params, cond.context, part, start(params, x, cond))
  v, got = jax.jit(network.read_append)(params, x[:, now], t[:, now], part, cache)
  np.testing.assert_allclose(v, network.read(params, x[:, now], t[:, now], part, cache), atol=1e-5)
  want = jax.jit(network.append)(params, x[:, now], part, cache, t=t[:, now])
  for name in ("keys", "values", "frame", "chunk", "count"):
    for a, b in zip(*(jax.tree.leaves(getattr(c, name)) for c in (got, want)), strict=True):
      np.testing.assert_allclose(a, b, atol=1e-5)
  clean = x[:, now] - t[:, now, None, None, None] * v
  np.testing.assert_allclose(got.inputs["x"][:, [2, 0]], clean, atol=1e-5)


def test_compute_in_bfloat16():
  model, params = net(depth=1)
  x, t, cond = example()
  args = params, x[:, :1], t[:, :1], cut(cond, 2, 3)
  read = {}
  for dtype in (jnp.float32, jnp.bfloat16):
    network = CachedNetwork(model.clone(dtype=dtype), CachePolicy(2, dtype="bfloat16"))
    start, run, append = compiled(network)
    read[dtype] = run(*args, append(params, cond.context, cut(cond, 0, 2), start(params, x, cond)))
  gap = np.abs(read[jnp.float32] - read[jnp.bfloat16])
  assert read[jnp.bfloat16].dtype == jnp.float32 and gap.max() > 1e-4 and gap.mean() < 0.05


def test_misfits_are_named():
  model, params = net()
  with pytest.raises(ValueError, match="enlarge the policy"):
    CachedNetwork(model, CachePolicy(3), TeacherForcing() & Window(5))
  with pytest.raises(ValueError, match="enlarge the policy"):
    CachedNetwork(model, CachePolicy(3, sink=1), TeacherForcing() & Window(2, 2, "chunk"))
  with pytest.raises(NotImplementedError, match="must begin with 1"):
    CachedNetwork(model.clone(patch=(2, 2, 2)), CachePolicy(3))
  network = CachedNetwork(model, CachePolicy(3), TeacherForcing() & Window(3, by="chunk"))
  x, t, cond = example()
  cache = jax.eval_shape(network.start, params, x, cond)
  with pytest.raises(ValueError, match="enlarge the policy"):
    jax.eval_shape(network.read, params, x[:, :2], t[:, :2], cut(cond, 0, 2), cache)
  call = functools.partial(model.apply, {"params": params}, x[:, :1], t[:, :1])
  with pytest.raises(ValueError, match="pass layout"):
    jax.eval_shape(lambda cache: call(cache=cache.past()), cache)
  with pytest.raises(ValueError, match="the cache holds the text"):
    jax.eval_shape(lambda text: call(cache=Past(text=text), cond=Cond(text=cond.text)), cache.text)
  with pytest.raises(NotImplementedError, match="capped positions count single frames"):
    layout = plain(2).replace(positions=Positions("capped", 1, 2))
    model.clone(patch=(2, 2, 2)).apply({"params": params}, x[:, :2], t[:, :2], layout=layout)
  with pytest.raises(ValueError, match="no text to switch"):
    CachedNetwork(model.clone(text_dim=None), CachePolicy(3)).switch(params, cond, cache)
