"""The engine on a real DiT behind a real cache: text, actions, sink, window, recache."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from toy_world import toy_text

from vidstep.causal.cached import CachedNetwork
from vidstep.causal.kv_cache import CachePolicy
from vidstep.causal.rollout import begin, next_chunk
from vidstep.causal.streaming import Engine
from vidstep.models.codec import pixel_codec
from vidstep.models.cond import Cond
from vidstep.models.dit import VideoDiT

SHAPE, TIMES = (4, 4, 3), (1.0, 0.6)
CONTEXT = np.random.default_rng(0).integers(0, 256, (1, *SHAPE), np.uint8)
PEOPLE = ({"seed": 1, "steps": 1}, {"seed": 2, "steps": 2, "window": 2, "text": "rain"})


@pytest.fixture(scope="module", autouse=True)
def compiled_fast():
  """Optimizing these programs would take longer than running them."""
  jax.config.update("jax_disable_most_optimizations", True)
  yield
  jax.config.update("jax_disable_most_optimizations", False)


@pytest.fixture(scope="module")
def network():
  model = VideoDiT(dim=24, heads=2, depth=1, patch=(1, 2, 2), text_dim=2, action_dim=2)
  policy = CachePolicy(window=3, sink=1, positions="relative", recache=True)
  return CachedNetwork(model, policy)


@pytest.fixture(scope="module")
def params(network):
  cond = Cond(actions=jnp.zeros((1, 1, 2)), text=jnp.zeros((1, 4, 2)))
  init = lambda key: network.model.init(key, jnp.zeros((1, 1, *SHAPE)), jnp.zeros(1), cond=cond)
  leaves, tree = jax.tree.flatten(jax.jit(init)(jax.random.key(0))["params"])
  rng = np.random.default_rng(1)  # zero-initialised gates would make everything equal
  fresh = [np.asarray(a) + 0.3 * rng.normal(size=a.shape).astype(np.float32) for a in leaves]
  return jax.tree.unflatten(tree, fresh)


def build(network, params, **options):
  engine = Engine(
    network, params, pixel_codec(), frame_shape=SHAPE, frame_rate=10, context_frames=1,
    max_steps=2, text=toy_text, **options,
  )  # fmt: skip
  engine.warmup()
  generate, engine.latents = engine._programs.generate, []

  def recorded(*args):
    latents, cache = generate(*args)
    engine.latents.append(latents)
    return latents, cache

  engine._programs.generate = recorded
  return engine


@pytest.fixture(scope="module")
def pair(network, params):
  return build(network, params, sessions=2, history_every=2), build(
    network, params, sessions=1, overlap=False
  )


def action(index, who):
  return np.float32([np.sin(index + who), np.cos(3 * index)])


def play(engine, sessions, ticks, prompt=None):
  """Latents of each session [ticks, h, w, C], and their frames; nothing is left in flight."""
  latents, frames = {s: [] for s in sessions}, {s: [] for s in sessions}
  overlap, engine.overlap = engine.overlap, False
  for i in range(ticks):
    for session in sessions:
      if prompt is not None and i == prompt:
        session.prompt("snow")
      session.act(action(session.index, session.settings.seed))
    chunks = engine.tick()
    for session in sessions:
      latents[session].append(np.asarray(engine.latents[-1])[session._row, 0])
      frames[session].append(chunks[session].frames[0])
  engine.overlap = overlap
  return [(np.stack(latents[s]), np.stack(frames[s])) for s in sessions]


def test_batched_is_single_and_nothing_compiles(pair):
  batched, single = pair
  before = batched.compilations()
  people = [batched.open(context=CONTEXT, times=TIMES, **own) for own in PEOPLE]
  both = play(batched, people, 12, prompt=5)  # three times the cache
  for (latents, frames), own in zip(both, PEOPLE, strict=True):
    session = single.open(context=CONTEXT, times=TIMES, **own)
    ((alone, pixels),) = play(single, [session], 12, prompt=5)
    session.close()
    np.testing.assert_allclose(latents, alone, rtol=1e-5, atol=1e-5)
    np.testing.assert_array_equal(frames, pixels)
    assert pixels.std() > 5 and (pixels[0] != pixels[-1]).any()
  other = people[1]
  people[0].close()
  twin = other.fork()
  (_, a), (_, b) = play(batched, [other, twin], 3)
  np.testing.assert_array_equal(a, b)
  twin.close()
  at = other.index
  back = other.rewind(3)
  ((_, again),) = play(batched, [other], back)
  np.testing.assert_array_equal(again[-3:], a)
  assert other.index == at
  other.close()
  assert batched.compilations() == before


def test_restored_is_bit_for_bit(pair, tmp_path):
  batched, single = pair
  before = batched.compilations()
  session = batched.open(context=CONTEXT, times=TIMES, seed=3, text="rain")
  play(batched, [session], 5)
  session.save(tmp_path / "a")
  ((want, frames),) = play(batched, [session], 4)
  session.close()
  first = batched.open(context=CONTEXT)  # the restored one gets the other row
  restored = batched.restore(tmp_path / "a")
  assert restored._row == 1
  ((got, pixels),) = play(batched, [restored], 4)
  np.testing.assert_array_equal(got, want)
  np.testing.assert_array_equal(pixels, frames)
  first.close(), restored.close()
  elsewhere = single.restore(tmp_path / "a")
  ((got, _),) = play(single, [elsewhere], 4)
  np.testing.assert_allclose(got, want, rtol=1e-5, atol=1e-5)
  elsewhere.close()
  assert batched.compilations() == before


def test_a_session_is_the_rollout_that_training_knows(pair, network, params):
  """One session against `next_chunk` by hand: same noise, same context, same actions."""
  _, single = pair
  session = single.open(context=CONTEXT, times=TIMES, seed=7)
  ((latents, _),) = play(single, [session], 3)
  session.close()
  text, mask = toy_text([""])
  video = jnp.float32(CONTEXT[None]) / 127.5 - 1
  cond = Cond(context=video, actions=jnp.zeros((1, 1, 2)), text=text, text_mask=mask & False)
  cache = begin(network, params, jnp.zeros((1, 1, *SHAPE)), cond)
  for i in range(3):
    key, noise_key = jax.random.split(jax.random.fold_in(jax.random.key(7), i))
    x0, cache = next_chunk(
      network, params, jax.random.normal(noise_key, (1, *SHAPE))[None],
      Cond(actions=jnp.asarray(action(i, 7))[None, None]), cache, key, times=TIMES,
    )  # fmt: skip
    np.testing.assert_allclose(x0[0, 0], latents[i], rtol=1e-5, atol=1e-5)
