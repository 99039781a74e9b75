"""One truth, computed in different ways: packed, cached, rolled out, forked, saved, compressed.

`SETTINGS` reads like a specification. For each of them, with text, actions, two times and every
parameter random, what the packed forward says in one go is what a cache says chunk by chunk; so are
its gradients; the same inputs reach the same frames; and nothing reaches back. On devices:
tests/multidevice/test_causal_sharded.py.
"""

import dataclasses
import functools
import io
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from mutation import assert_caught

from vidstep.causal import quantize
from vidstep.causal.cached import CachedNetwork
from vidstep.causal.kv_cache import CachePolicy, KVCache
from vidstep.causal.rollout import rollout
from vidstep.masks import Full, Rule, TeacherForcing, Window, chunk_index
from vidstep.models.cond import Cond
from vidstep.models.dit import VideoDiT
from vidstep.models.velocity import velocity_fn

pytestmark = pytest.mark.usefixtures("unoptimized")

pytestmark = pytest.mark.timeout(900)  # it compiles much: slow where others compute
B, WORDS, FULL = 2, 4, Full()


@dataclasses.dataclass(frozen=True)
class Setting:
  """Context and frames, cut into chunks; who sees whom; what the cache keeps."""

  context: int
  frames: int
  chunk: int | tuple[int, int]
  policy: CachePolicy
  window: Rule = FULL

  @property
  def chunks(self):
    """(start, stop) of each chunk."""
    index = chunk_index(self.frames, self.chunk)
    starts = [0, *(np.flatnonzero(np.diff(index)) + 1).tolist(), self.frames]
    return list(itertools.pairwise(starts))

  @property
  def network(self):
    return CachedNetwork(MODEL, self.policy, TeacherForcing() & self.window)

  @property
  def velocity(self):
    positions = self.policy.rope
    return velocity_fn(MODEL, chunk=self.chunk, mask=self.window, positions=positions)


SETTINGS = {
  # A chunk of 2 and a remainder of 1 behind two given frames; nothing is forgotten.
  "all": Setting(2, 3, 2, CachePolicy(window=5, recache=True)),
  # The last frames and the first one; the ring has gone round before the end.
  "window and sink": Setting(2, 3, 2, CachePolicy(window=2, sink=1), Window(3, sink=1)),
  # The last chunk and the first; no context, a first chunk of its own length.
  "by chunk": Setting(0, 5, (1, 2), CachePolicy(window=2, sink=1), Window(2, 1, "chunk")),
  # A cache that keeps more than the network looks at, one frame at a time.
  "kept but not seen": Setting(1, 3, 1, CachePolicy(window=5), Window(2)),
  # Positions counted from the chunk that asks.
  "relative": Setting(
    2, 3, 2, CachePolicy(window=2, sink=1, positions="relative"), Window(3, sink=1)
  ),
  # The first frame never farther than training has seen: two attentions, merged.
  "capped": Setting(
    2, 3, 2, CachePolicy(window=2, sink=1, positions="capped", cap=2), Window(3, sink=1)
  ),
}
WITH_GRADIENTS = ("all", "capped")

MODEL = VideoDiT(
  dim=24, heads=2, depth=2, ffn_dim=32, in_channels=2, out_channels=2, text_dim=3, action_dim=2,
  second_time=True, scan=True, attention="xla",
)  # fmt: skip


@functools.cache
def parameters():
  """Random, none near zero: gates that start at nothing would make everything equal."""
  x = jnp.zeros((1, 1, 4, 4, 2))
  shapes = jax.eval_shape(lambda: MODEL.init(jax.random.key(0), x, jnp.zeros(1))["params"])
  rng = np.random.default_rng(0)

  def draw(path, a):
    name, r = path[-1].key, rng.standard_normal(a.shape)
    r = r * (a.shape[-2] ** -0.5 if name == "kernel" else 0.3) + (name == "scale")
    return jnp.asarray(r, a.dtype)

  return jax.tree_util.tree_map_with_path(draw, shapes)


@functools.cache
def inputs(setting):
  """x, t, s and the condition of a whole video."""
  rng = np.random.default_rng(1)
  draw = lambda *shape: np.float32(rng.standard_normal((B, *shape)))
  n, f = setting.context, setting.frames
  t = np.float32(rng.uniform(0.3, 1.0, (B, f)))
  cond = Cond(
    text=draw(WORDS, 3),
    text_mask=np.array([[1, 1, 1, 1], [1, 0, 1, 1]], bool),
    actions=draw(n + f, 2),
    context=draw(n, 4, 4, 2) if n else None,
    clean=draw(f, 4, 4, 2),
  )
  return draw(f, 4, 4, 2), t, t * np.float32(rng.uniform(0.0, 0.9, (B, f))), cond


def begin(setting, params, x, cond):
  """The cache behind the context."""
  cache, n = setting.network.start(params, x, cond), setting.context
  if n:
    cache = setting.network.append(params, cond.context, Cond(actions=cond.actions[:, :n]), cache)
  return cache


def go_on(setting, params, x, t, s, cond, cache, chunks):
  """Velocity of these chunks, each behind the clean ones before it, and the cache then."""
  network, out = setting.network, []
  for start, stop in chunks:
    own = slice(start, stop)
    now = Cond(actions=cond.actions[:, setting.context + start : setting.context + stop])
    out.append(network.read(params, x[:, own], t[:, own], now, cache, s=s[:, own]))
    if stop < setting.frames:  # nothing reads the last one
      cache = network.append(params, cond.clean[:, own], now, cache)
  return jnp.concatenate(out, 1), cache


def cached(setting, params, x, t, s, cond):
  return go_on(setting, params, x, t, s, cond, begin(setting, params, x, cond), setting.chunks)[0]


def packed(setting, params, x, t, s, cond):
  return setting.velocity(params, x, t, cond, s=s)


@functools.cache
def compiled(way, setting):
  """fn(x, t, s, cond) -> velocity and the gradients of a loss in all that is real, or None."""
  differentiate = any(setting == SETTINGS[name] for name in WITH_GRADIENTS)

  def loss(reals, t, s, text_mask):
    params, x, cond = reals
    v = way(setting, params, x, t, s, cond.replace(text_mask=text_mask))
    weights = jnp.cos(jnp.arange(v.size, dtype=v.dtype)).reshape(v.shape)
    return (weights * v).sum(), v

  plain = lambda *args: (None, loss(*args)[1])
  both = jax.jit(jax.grad(loss, has_aux=True) if differentiate else plain)

  def run(x, t, s, cond):
    grads, v = both((parameters(), x, cond.replace(text_mask=None)), t, s, cond.text_mask)
    return np.asarray(v), grads

  return run


def assert_close(got, want):
  """To 1e-5 of the largest entry of each array."""
  for (path, b), a in zip(
    jax.tree_util.tree_leaves_with_path(want), jax.tree.leaves(got), strict=True
  ):
    scale = max(1.0, np.abs(b).max())
    np.testing.assert_allclose(a, b, rtol=0, atol=1e-5 * scale, err_msg=jax.tree_util.keystr(path))


def check_parity(setting):
  got, want = (compiled(way, setting)(*inputs(setting)) for way in (cached, packed))
  assert np.std(want[0]) > 0.3
  assert_close(got, want)


# ------------------------------------------------------------------------------------------------
# Packed = cached
# ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", SETTINGS)
def test_what_is_packed_is_what_is_cached(name):
  """Velocities, and gradients where they are taken."""
  check_parity(SETTINGS[name])


@pytest.mark.parametrize("name", WITH_GRADIENTS)
def test_all_that_may_matter_does(name):
  setting = SETTINGS[name]
  _, (params, x, cond) = compiled(packed, setting)(*inputs(setting))
  of = lambda a: np.abs(np.asarray(a)).max(tuple(i for i in range(a.ndim) if i != 1))
  assert all(np.abs(leaf).max() > 1e-4 for leaf in jax.tree.leaves(params))
  assert of(x).min() > 1e-3 and of(cond.actions).min() > 1e-3
  last = setting.chunks[-1][0]
  np.testing.assert_array_equal(of(cond.clean) > 1e-3, np.arange(setting.frames) < last)
  np.testing.assert_array_equal(np.abs(cond.text).max(2) > 1e-4, inputs(setting)[3].text_mask)
  if setting.context:
    assert of(cond.context).min() > 1e-3


def reach(way, setting):
  """name of an input -> [its frame, frame of the output] -> whether it changes that, in any bit."""
  x, t, s, cond = inputs(setting)
  run = lambda x, t, s, cond: compiled(way, setting)(x, t, s, cond)[0]
  v, n = run(x, t, s, cond), setting.context

  def change(a, f):
    a = np.array(a)
    a[:, f] = 0.5 * a[:, f] + 0.1
    return a

  changes = {
    "x": lambda f: (change(x, f), t, s, cond),
    "t": lambda f: (x, change(t, f), s, cond),
    "s": lambda f: (x, t, change(s, f), cond),
    "clean": lambda f: (x, t, s, cond.replace(clean=change(cond.clean, f))),
    "actions": lambda f: (x, t, s, cond.replace(actions=change(cond.actions, n + f))),
  }
  moved = lambda args: (run(*args) != v).any((0, 2, 3, 4))
  frames = range(setting.frames)
  return {name: np.stack([moved(by(f)) for f in frames]) for name, by in changes.items()}


@pytest.mark.parametrize("name", SETTINGS)
def test_nothing_reaches_back_not_even_by_a_bit(name):
  setting = SETTINGS[name]
  got, want = reach(cached, setting), reach(packed, setting)
  of = chunk_index(setting.frames, setting.chunk)
  own, later = of[:, None] == of[None], of[:, None] < of[None]
  for key in ("x", "t", "s"):
    np.testing.assert_array_equal(got[key], own, err_msg=key)
    np.testing.assert_array_equal(want[key], own, err_msg=key)
  for key in ("clean", "actions"):
    np.testing.assert_array_equal(got[key], want[key], err_msg=key)
  assert not (got["clean"] & ~later).any() and not (got["actions"] & ~(later | own)).any()
  assert (got["actions"] | ~own).all()
  following = of[:, None] + 1 == of[None]  # within every window
  assert (got["clean"] | ~following).any()
  if setting.window == FULL:
    np.testing.assert_array_equal(got["clean"], later)


@pytest.mark.parametrize(
  "window", [Window(5), Window(2, sink=2), Window(2, sink=2, by="chunk"), Window(5, by="chunk")]
)
def test_a_mask_that_shows_more_than_the_cache_keeps_is_refused(window):
  with pytest.raises(ValueError, match="enlarge the policy"):
    CachedNetwork(MODEL, CachePolicy(window=3, sink=1), TeacherForcing() & window)


# ------------------------------------------------------------------------------------------------
# A cache is a value: it is forked, saved, restored, and can be wrong
# ------------------------------------------------------------------------------------------------

HALF = SETTINGS["capped"]


@functools.cache
def halves():
  """The stream up to its last two chunks, and those: (cache) and (x, cache -> v) compiled."""
  x, t, s, cond = inputs(HALF)

  def first(params):
    cache = begin(HALF, params, x, cond)
    return go_on(HALF, params, x, t, s, cond, cache, HALF.chunks[:1])[1]

  def second(params, x, cache):
    return go_on(HALF, params, x, t, s, cond, cache, HALF.chunks[1:])[0]

  return jax.jit(first)(parameters()), functools.partial(jax.jit(second), parameters())


@functools.cache
def switched():
  """The cache of "all" behind a first chunk under another prompt, switched; and fn(cache) -> v."""
  setting = SETTINGS["all"]
  x, t, s, cond = inputs(setting)

  def first(params):
    other = cond.replace(text=-cond.text)
    cache = go_on(
      setting, params, x, t, s, other, begin(setting, params, x, other), setting.chunks[:1]
    )[1]
    return cache, setting.network.switch(params, cond, cache)

  def second(params, cache):
    return go_on(setting, params, x, t, s, cond, cache, setting.chunks[1:])[0]

  return jax.jit(first)(parameters()), functools.partial(jax.jit(second), parameters())


def test_after_a_switch_with_recache_the_new_prompt_was_there_from_the_start():
  setting = SETTINGS["all"]
  (before, after), go = switched()
  want = compiled(packed, setting)(*inputs(setting))[0][:, setting.chunks[1][0] :]
  np.testing.assert_allclose(go(after), want, atol=1e-5)
  assert np.abs(go(before) - want).max() > 1e-2


def save(cache):
  """Leaves in a file."""
  file = io.BytesIO()
  np.savez(file, *jax.tree.leaves(cache))
  return file.getvalue()


def restore(file, like):
  with np.load(io.BytesIO(file), allow_pickle=False) as leaves:
    return jax.tree.unflatten(jax.tree.structure(like), list(leaves.values()))


def check_second_half(cache):
  x, *_ = inputs(HALF)
  got, want = halves()[1](x, cache), compiled(packed, HALF)(*inputs(HALF))[0]
  np.testing.assert_allclose(got, want[:, HALF.chunks[1][0] :], atol=1e-5)
  return got


def test_a_stream_goes_on_bit_for_bit_after_a_fork_and_a_file():
  cache, go = halves()
  x, *_ = inputs(HALF)
  once = check_second_half(cache)
  file = save(cache)
  other = go(x + 1, cache)  # a fork, whose future is another
  assert np.abs(other - once).max() > 1e-2
  np.testing.assert_array_equal(go(x, cache), once)
  back = restore(file, cache)
  assert isinstance(back, KVCache)
  np.testing.assert_array_equal(go(x, back), once)
  np.testing.assert_array_equal(save(back), file)


MUTANTS = {
  "the next frame is one further": lambda cache: cache.replace(count=cache.count + 1),
  "a slot is lost": lambda cache: cache.replace(valid=cache.valid.at[:, -1].set(0)),
  "frames are told to be the ones before": lambda cache: cache.replace(frame=cache.frame - 1),
  "keys of two frames are exchanged": lambda cache: cache.replace(
    keys=jax.tree.map(lambda a: a[:, :, ::-1], cache.keys)
  ),
  "the window is shorter": lambda cache: cache.replace(window=cache.window - 1),
  "text of the other sample": lambda cache: cache.replace(
    text=jax.tree.map(lambda a: a[:, ::-1], cache.text)
  ),
}


@pytest.mark.parametrize("name", MUTANTS)
def test_a_wrong_cache_is_noticed(name):
  assert_caught(check_second_half, MUTANTS[name](halves()[0]))


# ------------------------------------------------------------------------------------------------
# Rolled out
# ------------------------------------------------------------------------------------------------


@functools.cache
def rolled(setting):
  """(noise, cond) -> video of two Euler steps a chunk."""

  def run(noise, cond):
    video, _ = rollout(
      setting.network, parameters(), noise, cond, jax.random.key(0),
      chunk=setting.chunk, times=(1.0, 0.5), solver="euler",
    )  # fmt: skip
    return video

  return jax.jit(run)


def test_a_rollout_is_the_video_that_its_own_packed_forward_gives_back():
  """Each step of all chunks, in one packed forward over the finished video."""
  setting = SETTINGS["capped"]
  noise, _, _, cond = inputs(setting)
  video = rolled(setting)(noise, cond)

  def x0(x, t):
    t = np.full(x.shape[:2], t, np.float32)
    return (
      x
      - t[:, :, None, None, None] * compiled(packed, setting)(x, t, t, cond.replace(clean=video))[0]
    )

  first = x0(noise, 1.0)
  np.testing.assert_allclose(x0(first + 0.5 * (noise - first), 0.5), video, atol=2e-5)
  assert np.abs(video - noise).max() > 0.3


def test_a_rollout_does_not_know_the_future_not_even_a_bit_of_it():
  setting = SETTINGS["capped"]
  noise, _, _, cond = inputs(setting)
  video, n = np.asarray(rolled(setting)(noise, cond)), setting.context
  for start, stop in setting.chunks:
    last = stop - 1
    later = np.array(cond.actions)
    later[:, n + last] += 1
    other = noise.copy()
    other[:, last] += 1
    for args in ((other, cond), (noise, cond.replace(actions=later))):
      moved = (np.asarray(rolled(setting)(*args)) != video).any((0, 2, 3, 4))
      np.testing.assert_array_equal(moved, np.arange(setting.frames) >= start)


def test_gradients_through_a_rollout_are_those_through_packed_forwards():
  """Of a loss over two chunks: through every step and every key that was kept."""
  setting = Setting(1, 2, 1, CachePolicy(window=1, sink=1), Window(2, sink=1))
  noise, _, _, cond = inputs(setting)
  key = jax.random.key(0)

  def by_rollout(params):
    return rollout(
      setting.network, params, noise, cond, key, chunk=1, times=(1.0,), gradient="all"
    )[0]

  def by_packing(params):
    video = jnp.zeros_like(noise)
    one = np.ones(noise.shape[:2], np.float32)
    for i in range(setting.frames):
      v = setting.velocity(params, noise, one, cond.replace(clean=video))
      video = video.at[:, i].set((noise - v)[:, i])
    return video

  both = [
    jax.jit(jax.value_and_grad(lambda p, run=run: jnp.square(run(p)).mean()))(parameters())
    for run in (by_rollout, by_packing)
  ]
  assert_close(*both)
  assert all(np.abs(leaf).max() > 1e-5 for leaf in jax.tree.leaves(both[1][1]))


# ------------------------------------------------------------------------------------------------
# Noisy context, fewer bits
# ------------------------------------------------------------------------------------------------


def test_noisy_context_is_a_packed_forward_over_noisy_frames():
  """Each chunk reads what the one before was *while* it was denoised: diffusion forcing's mask."""
  setting = SETTINGS["window and sink"]
  x, t, _, cond = inputs(setting)

  @jax.jit
  def together(params):
    cache, out = begin(setting, params, x, cond), []
    for start, stop in setting.chunks:
      own = slice(start, stop)
      now = Cond(actions=cond.actions[:, setting.context + start : setting.context + stop])
      v, cache = setting.network.read_append(params, x[:, own], t[:, own], now, cache)
      out.append(v)
    return jnp.concatenate(out, 1)

  packed = jax.jit(lambda params: setting.velocity(params, x, t, cond.replace(clean=None)))
  want = packed(parameters())
  np.testing.assert_allclose(together(parameters()), want, atol=1e-5)
  clean = compiled(cached, setting)(x, t, t, cond)[0]
  assert np.abs(clean - want).max() > 1e-2


LOGIT = 0.02  # largest error of an attention logit under int8, keys and queries RMS-normalised


def test_a_cache_in_int8_stays_within_its_error():
  keys = np.asarray(quantize.load(halves()[0].keys))  # of real frames; they stand for queries, too
  for smooth in (True, False):
    coarse = np.asarray(quantize.load(quantize.store("int8", jnp.asarray(keys), smooth=smooth)))
    logits = np.einsum("lbpshd,lbqthd->lbpsqth", keys, coarse - keys) * keys.shape[-1] ** -0.5
    assert 0 < np.abs(logits).max() < LOGIT

  setting = SETTINGS["window and sink"]
  few = dataclasses.replace(setting, policy=dataclasses.replace(setting.policy, dtype="int8"))
  got, want = (compiled(cached, one)(*inputs(setting))[0] for one in (few, setting))
  rms = lambda a: np.sqrt(np.mean(np.square(a)))
  assert 0 < rms(got - want) < 0.01 * rms(want)
