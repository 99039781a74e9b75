"""A rollout is a plain loop over chunks, to rounding; gradients reach as far as they are told."""

import dataclasses
import functools
import importlib
import inspect

import flax.struct
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from mutation import assert_caught, mutant

from vidstep import samplers
from vidstep.causal.packed import PackedNetwork
from vidstep.models import Cond
from vidstep.models.cond import null_cond

pytestmark = pytest.mark.usefixtures("unoptimized")

SOURCE = importlib.import_module("vidstep.causal.rollout")
DENOISE = importlib.import_module("vidstep.causal.denoise")
SEEN, FRAMES, CHUNK = 2, 4, (1, 2)
CHUNKS = np.int32([0, 0, 1, 2, 2, 3])  # of all frames: context, one frame, two, the rest
OF = CHUNKS[SEEN:] - 1
TIMES, FIRST = (1.0, 0.6), (1.0, 0.8, 0.4)
ALL = (1.0, 0.8, 0.6, 0.4)
KEY = jax.random.key(5)
B, D = 2, 3


# ------------------------------------------------------------------------------------------------
# A linear student with keys, against NumPy
# ------------------------------------------------------------------------------------------------


@flax.struct.dataclass
class Keys:
  keys: jax.Array  # [B, F, D]
  count: jax.Array
  chunks: jax.Array


@dataclasses.dataclass(frozen=True)
class Linear:
  """`f = W_t x + N_t (sum of past keys) + P_t action`, the key of a frame `(1 + t) K x`.

  W mixes the frames of a chunk; t is one of `ALL`. Keys depend on parameters and on the time.
  """

  calls: list | None = None

  def start(self, params, like, cond):
    rows = jnp.zeros(like.shape[0], jnp.int32)
    return Keys(jnp.zeros((*like.shape[:2], D)), rows, rows)

  def read(self, params, x, t, cond, cache, *, s=None):
    if self.calls is not None:
      jax.debug.callback(self.calls.append, t[0])
    which = jnp.argmin(jnp.abs(t[:, None] - jnp.float32(ALL)[None]), 1)
    past = jnp.arange(cache.keys.shape[1])[None] < cache.count[:, None]
    total = jnp.sum(jnp.where(past[:, :, None], cache.keys, 0), 1)
    rows, c = x[:, :, 0, 0], x.shape[1]
    f = jnp.einsum("bij,bfg,bgj->bfi", params["W"][which], params["mix"][which][:, :c, :c], rows)
    f += jnp.einsum("bij,bj->bi", params["N"][which], total)[:, None]
    f += params["P"][which][:, None, None] * cond.actions
    return ((rows - f) / t[:, None, None])[:, :, None, None]

  def append(self, params, x, cond, cache, *, t=None):
    if self.calls is not None:
      jax.debug.callback(self.calls.append, 0.0)
    t = jnp.zeros(len(x)) if t is None else t
    new = (1 + t)[:, None, None] * (x[:, :, 0, 0] @ params["K"])
    put = lambda k, v, i: jax.lax.dynamic_update_slice_in_dim(k, v, i, 0)
    keys = jax.vmap(put)(cache.keys, new, cache.count)
    return Keys(keys, cache.count + x.shape[1], cache.chunks + 1)

  def read_append(self, params, x, t, cond, cache, *, s=None):
    v = self.read(params, x, t, cond, cache)
    return v, Linear().append(params, x, cond, cache, t=t)


def setting():
  rng = np.random.default_rng(0)
  draw = lambda *shape: np.float32(rng.normal(size=shape))
  params = {"W": draw(4, D, D) / 2, "mix": draw(4, 2, 2), "N": draw(4, D, D) / 4, "P": draw(4)}
  params["K"] = draw(D, D) / 2
  params = jax.tree.map(jnp.asarray, params)
  shape = lambda n: (B, n, 1, 1, D)
  cond = Cond(actions=draw(B, SEEN + FRAMES, D), context=draw(*shape(SEEN)))
  return params, cond, draw(*shape(FRAMES)), draw(*shape(FRAMES))


@functools.cache
def fresh(chunk, step, frames):
  """The noise that a solver adds, as the docstring of samplers.sample has it."""
  with jax.ensure_compile_time_eval():
    key = jax.random.fold_in(jax.random.fold_in(KEY, chunk), step)
    return np.asarray(jax.random.normal(key, (B, frames, 1, 1, D)), np.float64)[:, :, 0, 0]


def loop(xp, params, cond, start, depth, context, cut=lambda chunk, keys: keys, last=lambda f: f):
  """Chunk after chunk, step after step; xp is NumPy in float64, or JAX to be differentiated."""
  part = lambda a: a[:, :, 0, 0] if a.ndim == 5 else a
  keys = part(cond.context) @ params["K"]
  video = []
  for i in range(OF[-1] + 1):
    own = FIRST if i == 0 else TIMES
    now = np.flatnonzero(i == OF)
    keys = cut(i, keys)
    x = f = None
    for s, t in enumerate(own[:depth]):
      k, c = ALL.index(t), len(now)
      x = part(start)[:, now] if s == 0 else (1 - t) * f + t * fresh(i, s - 1, c)
      end = s + 1 == min(depth, len(own))
      p = params if end else last(params)
      x = last(x) if end else x
      f = xp.einsum("ij,fg,bgj->bfi", p["W"][k], p["mix"][k][:c, :c], x)
      f = f + (keys.sum(1) @ p["N"][k].T)[:, None] + p["P"][k] * cond.actions[:, SEEN + now]
    noisy, when = f, 0.0
    if context == "last_step":
      when = own[-1]  # where fewer steps were made, noised again
      noisy = x if t == when else (1 - when) * f + when * fresh(i, 1 << 16, c)
    video.append(f)
    keys = xp.concatenate([keys, (1 + when) * (noisy @ params["K"])], 1)
  return xp.concatenate(video, 1)


@functools.cache
def compiled(source, context, gradient):
  """(params, depth) -> video and the gradient of a scalar of it; depth is traced."""
  _, cond, start, weights = setting()

  def scalar(params, depth):
    how = {"chunk": CHUNK, "times": TIMES, "first_times": FIRST, "depth": depth}
    how |= {"context": context, "gradient": gradient}
    video, _ = source.rollout(Linear(), params, start, cond, KEY, **how)
    return jnp.sum(video * weights), video[:, :, 0, 0]

  return jax.jit(jax.grad(scalar, has_aux=True))


def check_values(source, context, depths=(1, 2, 3)):
  params, cond, start, _ = setting()
  double = jax.tree.map(np.float64, params)
  for depth in depths:
    got = compiled(source, context, "last_step")(params, jnp.int32(depth))[1]
    want = loop(np, double, cond, np.float64(start), depth, context)
    np.testing.assert_allclose(got, want, rtol=1e-4, atol=1e-4)


def check_gradient(source, context, gradient, depths=(1, 3), reach=None):
  """Against jax.grad of the plain loop, with its past held fixed as far as it should be."""
  reach = gradient if reach is None else reach
  params = setting()[0]
  for depth in depths:
    got, _ = compiled(source, context, gradient)(params, jnp.int32(depth))
    for name, want in plain_gradient(context, reach, depth).items():
      np.testing.assert_allclose(got[name], want, rtol=2e-3, atol=2e-3, err_msg=name)


@functools.cache
def plain_gradient(context, reach, depth):
  params, cond, start, weights = setting()
  stop = jax.lax.stop_gradient
  cut = {
    "last_step": lambda i, keys: stop(keys),
    "all": lambda i, keys: keys,
    2: lambda i, keys: stop(keys) if i % 2 == 0 else keys,
  }
  last = stop if reach == "last_step" else (lambda a: a)

  @jax.jit
  def scalar(params):
    video = loop(jnp, params, cond, start, depth, context, cut[reach], last)
    return jnp.sum(video * weights[:, :, 0, 0])

  return jax.grad(scalar)(params)


@pytest.mark.parametrize("context", ["clean", "last_step"])
def test_it_is_a_plain_loop(context):
  check_values(SOURCE, context)


@pytest.mark.parametrize("gradient", ["last_step", 2, "all"])
def test_gradients_reach_as_far_as_they_are_told(gradient):
  check_gradient(SOURCE, "clean", gradient)


def test_the_reaches_differ():
  for gradient, reach in (("last_step", 2), (2, "all"), ("all", 2)):
    assert_caught(check_gradient, SOURCE, "clean", gradient, (2,), reach)


def test_gradients_of_noisy_context():
  check_gradient(SOURCE, "last_step", "last_step", (2,))
  check_gradient(SOURCE, "last_step", "all", (2,))


@pytest.mark.parametrize(
  ("old", "new", "context"),
  [
    ("_noise(fold(key, i), x), below)", "_noise(fold(key, i), x), t)", "clean"),
    ("fold(key, inputs.number)", "fold(key, 0)", "clean"),
    ("lists = [first_times, *", "lists = [times, *", "clean"),
    ("more = jnp.asarray(i + 1 < steps)", "more = jnp.asarray(i < steps)", "clean"),
    ("a.shape[1] - frames :]", ": frames]", "clean"),
    ("if n == 0:", "if True:", "clean"),
    ("x, _ = walk(steps - 1)", "_, x = walk(steps - 1)", "last_step"),
    ("append(params, noisy, cond, cache, t=until)", "append(params, x, cond, cache)", "last_step"),
    ("jnp.all(t == until)", "jnp.all(t > 0)", "last_step"),
  ],
)
def test_another_rollout_fails_the_proof(old, new, context):
  source = mutant(SOURCE, *(("", "") if old in inspect.getsource(DENOISE) else (old, new)))
  if old in inspect.getsource(DENOISE):
    source.denoise = mutant(DENOISE, old, new).denoise
  assert_caught(check_values, source, context, (2,))


@pytest.mark.parametrize(
  ("old", "new", "gradient"),
  [
    ("base.count + inputs.start", "cache.count", "last_step"),
    ("inputs.number % gradient == 0", "inputs.number == 0", 2),
    ('gradient != "all"', "not isinstance(gradient, int)", 2),
  ],
)
def test_another_reach_fails_the_proof(old, new, gradient):
  assert_caught(check_gradient, mutant(SOURCE, old, new), "clean", gradient, (2,))


# ------------------------------------------------------------------------------------------------
# One chunk, sessions of a batch
# ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("context", ["clean", "last_step"])
def test_each_row_has_its_own_times_steps_and_noise(context):
  """A batch of sessions makes what each makes alone."""
  params, cond, start, _ = setting()
  cache = SOURCE.begin(Linear(), params, start, cond)
  times = jnp.float32([[1.0, 0.8, 0.4], [1.0, 0.6, 0.6]])
  steps, keys = jnp.int32([3, 2]), jax.random.split(KEY, 2)
  now = Cond(actions=cond.actions[:, SEEN : SEEN + 2])

  @jax.jit
  def together(times, steps, keys):
    how = {"times": times, "steps": steps, "context": context}
    return SOURCE.next_chunk(Linear(), params, start[:, :2], now, cache, keys, **how)

  x0, after = together(times, steps, keys)
  for row, n in enumerate(steps.tolist()):
    one = lambda tree, row=row: jax.tree.map(lambda a: a[row : row + 1], tree)
    how = {"times": times[row].tolist()[:n], "context": context}
    alone = SOURCE.next_chunk(
      Linear(), params, one(start[:, :2]), one(now), one(cache), keys[row : row + 1], **how
    )
    for got, want in zip(*map(jax.tree.leaves, (one((x0, after)), alone)), strict=True):
      np.testing.assert_allclose(got, want, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("context", ["clean", "last_step"])
def test_only_the_forwards_that_are_needed_are_executed(context):
  params, cond, start, _ = setting()
  calls = []

  @functools.partial(jax.jit, static_argnums=1)
  def run(depth, gradient=None):
    how = {"times": TIMES, "first_times": FIRST, "gradient": gradient, "context": context}
    return SOURCE.rollout(Linear(calls), params, start, cond, KEY, chunk=CHUNK, depth=depth, **how)

  for depth, own in ((1, (1, 1, 1)), (2, (2, 2, 2)), (3, (3, 2, 2))):
    lists = [TIMES[:1] * n for n in own]
    again = sum(n < full for n, full in zip(own, (3, 2, 2), strict=True))  # noised to the context
    want = SOURCE.forwards(lists, context=context, context_frames=SEEN)
    want += again if context == "last_step" else 0
    calls.clear()
    jax.block_until_ready(run(depth))
    jax.effects_barrier()
    assert len(calls) == want


def test_a_rollout_goes_on_behind_its_cache():
  params, cond, start, _ = setting()
  how = {"chunk": 1, "times": (1.0,)}
  whole, _ = SOURCE.rollout(Linear(), params, start, cond, KEY, **how)
  cache = SOURCE.begin(Linear(), params, start, cond)
  for cut in (slice(0, 3), slice(3, 4)):
    part = Cond(actions=cond.actions[:, SEEN:][:, cut])
    x0, cache = SOURCE.rollout(Linear(), params, start[:, cut], part, KEY, cache=cache, **how)
    np.testing.assert_allclose(x0, whole[:, cut], rtol=1e-5, atol=1e-6)


# ------------------------------------------------------------------------------------------------
# Solvers and guidance
# ------------------------------------------------------------------------------------------------


def forced(params, x, t, cond, *, s=None):
  """A teacher-forced toy: later frames lean on the clean ones before them; s is felt."""
  past = jnp.pad(cond.clean[:, :-1], ((0, 0), (1, 0), (0, 0), (0, 0), (0, 0)))
  wide = lambda t: t[:, :, None, None, None]
  v = params * x * (1 + wide(t)) - 0.5 * past + cond.actions[:, :, None, None]
  return v if s is None else v * (1 + wide(t - s))


@pytest.mark.parametrize("solver", samplers.SOLVERS)
def test_a_chunk_is_the_sampler_given_its_past(solver):
  """Chunk 2 of two: the same call of `samplers.sample` with the first one known."""
  rng = np.random.default_rng(0)
  x = np.float32(rng.normal(size=(B, 2, 1, 1, D)))
  cond = Cond(actions=np.float32(rng.normal(size=(B, 2, D))))
  times = (1.0, 0.8, 0.5)
  network = PackedNetwork(forced, 1)
  how = {"chunk": 1, "times": times, "solver": solver}
  video, _ = jax.jit(
    lambda x: SOURCE.rollout(network, jnp.float32(0.7), x, cond, KEY, **how)
  )(x)  # fmt: skip
  clean = jnp.zeros_like(video)
  wide = lambda t: jnp.broadcast_to(t[:, None], (B, 2))
  for i in range(2):

    def field(x, t, i=i, clean=clean, **s):
      s = {k: wide(v) for k, v in s.items()}
      known = cond.replace(clean=clean)
      return forced(jnp.float32(0.7), jnp.tile(x, (1, 2, 1, 1, 1)), wide(t), known, **s)[:, [i]]

    key = jax.random.fold_in(KEY, i)
    x0 = samplers.sample(field, jnp.asarray(x[:, [i]]), (*times, 0.0), solver=solver, key=key)
    np.testing.assert_allclose(video[:, [i]], x0, rtol=1e-4, atol=1e-5)
    clean = clean.at[:, i].set(x0[:, 0])


def test_guidance_doubles_the_batch():
  """As a function that is guided itself; behind the cache each half has rows of its own."""
  rng = np.random.default_rng(0)
  x = np.float32(rng.normal(size=(B, 3, 1, 1, D)))
  cond = Cond(actions=np.float32(rng.normal(size=(B, 3, D))))

  def guided(params, x, t, cond):
    known, unknown = (forced(params, x, t, c) for c in (cond, null_cond(cond)))
    return unknown + 2.5 * (known - unknown)

  draw = lambda fn, **how: SOURCE.rollout(
    PackedNetwork(fn, 1), jnp.float32(0.7), x, cond, KEY, chunk=1, times=TIMES, **how
  )[0]  # fmt: skip
  want = draw(guided)
  np.testing.assert_allclose(draw(forced, guidance=2.5), want, rtol=1e-5, atol=1e-5)
  assert float(jnp.abs(draw(forced) - want).max()) > 0.1
  lists = SOURCE.schedule(TIMES, FIRST, 3)
  assert SOURCE.forwards(lists, guidance=2.5) == 2 * (3 + 2 + 2 + 3)
  assert SOURCE.forwards(lists, context="last_step") == 3 + 2 + 2


@pytest.mark.parametrize(
  ("times", "first", "want"),
  [
    ((1.0, 0.6), (), [(1.0, 0.6)] * 3),
    ((1.0,), FIRST, [FIRST, (1.0,), (1.0,)]),
    ((FIRST, (1.0, 0.6), (1.0,)), (), [FIRST, (1.0, 0.6), (1.0,)]),
    ((FIRST, (1.0,)), (), [FIRST, (1.0,), (1.0,)]),
  ],
)
def test_every_chunk_has_its_list(times, first, want):
  assert SOURCE.schedule(times, first, 3) == want


@pytest.mark.parametrize(
  ("options", "words"),
  [
    ({"times": (1.0, 0.0)}, r"fall within \(0, 1\]"),
    ({"times": (0.5, 0.8)}, r"fall within \(0, 1\]"),
    ({"solver": "rk4"}, "Unknown solver 'rk4'"),
    ({"context": "noisy"}, "context must be one of clean, last_step"),
    ({"gradient": 0}, "a number of chunks"),
    ({"gradient": True}, "a number of chunks"),
    ({"solver": "heun", "gradient": "last_step"}, "no last step of one network call"),
    ({"solver": "unipc", "context": "last_step"}, "no last step of one network call"),
    ({"chunk": 2}, r"A chunk of 2 frames: this network's have \[1\]"),
    ({"context": "last_step"}, "Packed frames are clean"),
  ],
)
def test_impossible_options_are_refused(options, words):
  x, cond = jnp.zeros((1, 2, 1, 1, D)), Cond(actions=jnp.zeros((1, 2, D)))
  how = {"chunk": 1, "times": (1.0,)} | options
  with pytest.raises((ValueError, NotImplementedError), match=words):
    SOURCE.rollout(PackedNetwork(forced, 1), jnp.float32(1), x, cond, KEY, **how)
