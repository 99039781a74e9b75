"""Streaming long tuning is proven on a Gaussian chain that goes on, its every clip known."""

import importlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from chain import CHAIN, DRIFT, NOISE, A, B, D
from fit import fit
from mutation import assert_caught, mutant
from videos import flat

from vidstep import paths
from vidstep.causal.packed import PackedNetwork
from vidstep.losses import Batch
from vidstep.models import Cond
from vidstep.teachers import gaussian

pytestmark = pytest.mark.usefixtures("unoptimized")

SOURCE = importlib.import_module("vidstep.losses.long_tuning")
STREAM = importlib.import_module("vidstep.causal.extension")
SEEN, OVERLAP, FRAMES, LONGEST = 1, 1, 3, 6  # so that a clip has two new frames
NEW = FRAMES - OVERLAP
OPTIONS = {"overlap": OVERLAP, "longest": LONGEST}


def student(params, x, t, cond):
  """One step: f = W x + N (the frame before) + P action + b, the same for all frames."""
  past = jnp.concatenate([cond.context, cond.clean], 1)[:, :-1, 0, 0]
  f = x[:, :, 0, 0] @ params["W"].T + past @ params["N"].T + params["b"]
  if cond.actions is not None:
    f += cond.actions[:, SEEN:] @ params["P"].T
  return paths.v_from_x0(x, f[:, :, None, None], t)


def chain(params):
  """The law of what a student generates in one step: a chain of its own."""
  return CHAIN.replace(
    transition=params["N"],
    action=params["P"],
    drift=params["b"].reshape(D),
    noise_cov=params["W"] @ params["W"].T,
  )


HOME = {"W": np.linalg.cholesky(NOISE), "N": A, "P": B, "b": DRIFT.reshape(1, 1, D)}
HOME = jax.tree.map(jnp.float32, HOME)
TEACHER = lambda params, x, t, cond: gaussian.velocity(CHAIN, x, t, cond)
FAKE = lambda params, x, t, cond: gaussian.velocity(chain(params), x, t, cond)


def moved(params, size, seed=0):
  rng = np.random.default_rng(seed)
  return jax.tree.map(lambda p: p + jnp.float32(size * rng.normal(size=p.shape)), params)


def batch_of(n, seed=0):
  keys = jax.random.split(jax.random.key(seed))
  actions = gaussian.random_actions(keys[0], n, SEEN + FRAMES, 1)
  video = gaussian.draw(CHAIN, keys[1], (n, SEEN + FRAMES, 1, 1, D), Cond(actions=actions))
  return Batch(video[:, SEEN:], Cond(actions=actions, context=video[:, :SEEN]))


def streaming(source=STREAM, n=2**12):
  blank, extend = source.extension(PackedNetwork(student, 1), chunk=1)
  return lambda **how: blank(HOME, batch_of(n), **how), extend


# ------------------------------------------------------------------------------------------------
# The objective
# ------------------------------------------------------------------------------------------------


def objective_of(source, stream, fake, n):
  generate = streaming(stream, n)
  return source.long_tuning(*generate, TEACHER, fake, times=(1.0,), ratio=2, **OPTIONS)


def late(objective, role, n, clips=3, differentiate=jax.value_and_grad):
  """(student, fake) -> loss, and gradient, of a role some clips after the beginning."""
  loss = jax.jit(differentiate(objective.loss[role], has_aux=True), static_argnums=5)

  def run(student, fake):
    nets, aux = {"student": student, "fake": fake, "teacher": {}}, objective.init_aux()
    for i in range(clips):
      (value, (_, aux)), grads = loss(nets[role], nets, aux, batch_of(n, i), jax.random.key(i), 0)
    return float(value), flat(grads)

  return run


def check_objective(source, stream=STREAM, n=2**12):
  """The chain itself stays, a student beside it is pulled back; its own law is the fake's home."""
  objective, away = objective_of(source, stream, FAKE, n), moved(HOME, 0.2)
  student_at = late(objective, "student", n)
  still, back = student_at(HOME, HOME)[1], student_at(away, away)[1]
  off = flat(away) - flat(HOME)
  assert np.linalg.norm(still) < 1e-2 * np.linalg.norm(back)
  assert back @ off > 0.1 * np.linalg.norm(back) * np.linalg.norm(off)

  fake_at = late(objective, "fake", n)
  known, unknown = fake_at(away, away)[1], fake_at(away, moved(away, 0.2, seed=1))[1]
  assert np.linalg.norm(known) < 0.2 * np.linalg.norm(unknown)


def check_past(source):
  """What a network says of the past frames counts nowhere, and what of the new ones wholly."""
  wrong = lambda params, x, t, cond: FAKE(params, x, t, cond).at[:, :OVERLAP].add(10.0)
  plain = lambda loss, has_aux: lambda *args: (loss(*args), 0.0)
  away, n = moved(HOME, 0.2), 64
  for role in ("student", "fake"):
    values = [
      late(objective_of(source, STREAM, fake, n), role, n, 1, plain)(away, away)[0]
      for fake in (FAKE, wrong)
    ]
    np.testing.assert_allclose(*values, rtol=1e-4)


def test_the_teachers_chain_is_the_fixed_point_also_late_in_a_video():
  check_objective(SOURCE)


def test_the_past_is_seen_and_not_scored():
  check_past(SOURCE)


@pytest.mark.parametrize(
  ("old", "new", "check"),
  [
    ("pull(x0[:, overlap:], direction[:, overlap:])", "-pull(x0, direction)", check_objective),
    ("x_t, t, eps = diffuse(time, jax", "x_t, t, eps = diffuse(time, 0 * jax", check_objective),
    ("pull(x0[:, overlap:], direction[:, overlap:])", "pull(x0, direction)", check_past),
    ("missed[:, overlap:]", "missed", check_past),
  ],
)
def test_a_wrong_objective_fails_the_proof(old, new, check):
  assert_caught(check, mutant(SOURCE, old, new))


def test_training_reaches_the_chain():
  """Both roles learn, one batch of videos going on and beginning anew all the while."""
  blank, extend = STREAM.extension(PackedNetwork(student, 1), chunk=1)
  given = lambda batch: Batch(batch.x0[:, SEEN:], Cond(context=batch.x0[:, :SEEN]))
  pool = np.asarray(gaussian.draw(CHAIN, jax.random.key(0), (1025, SEEN + FRAMES, 1, 1, D)))
  objective = SOURCE.long_tuning(
    lambda **how: blank(HOME, given(Batch(jnp.asarray(pool[:128]))), **how),
    lambda params, stream, batch, key, **how: extend(params, stream, given(batch), key, **how),
    TEACHER,
    FAKE,
    times=(1.0,),
    time=paths.Uniform(3.0),
    ratio=2,
    **OPTIONS,
  )
  start = moved(HOME, 0.25)
  nets = {"student": start, "fake": start, "teacher": {}}
  rates = {"student": 0.01, "fake": 0.02}
  end = fit(objective, nets, jnp.asarray(pool), steps=1200, rates=rates, batch=128, b1=0.0)

  def off(params):
    return max(
      np.abs(np.asarray(getattr(chain(params), name) - getattr(CHAIN, name))).max()
      for name in ("transition", "drift", "noise_cov")
    )

  assert off(start) > 0.3 and off(end["student"]) < 0.1 * off(start)


# ------------------------------------------------------------------------------------------------
# The videos
# ------------------------------------------------------------------------------------------------


def check_stream(source):
  """Without noise every frame follows from the one before: over clips, until they begin anew."""
  params = HOME | {"W": jnp.zeros((D, D))}
  blank, extend = streaming(source, 4)
  stream = blank(**OPTIONS)
  run = jax.jit(lambda *args: extend(params, *args, times=(1.0,), depth=1, **OPTIONS))
  counts, before, n, p, b = [], None, *(np.asarray(params[k]) for k in "NPb")
  for i in range(4):
    batch = batch_of(4, i)
    clip, stream = run(stream, batch, jax.random.key(i))
    counts.append(int(stream.count))
    actions = np.asarray(clip.cond.actions)
    whole = np.concatenate([clip.cond.context, clip.x0], 1)[:, :, 0, 0]
    past = np.concatenate([batch.cond.context, batch.x0], 1)[:, : SEEN + OVERLAP, 0, 0]
    told = np.asarray(batch.cond.actions)
    if i in (1, 2):  # it goes on: the past is its own
      past, old = before
      told = np.concatenate([old[:, NEW:], told[:, SEEN + OVERLAP :]], 1)
      past = past[:, NEW:]
    np.testing.assert_allclose(whole[:, : SEEN + OVERLAP], past, atol=1e-5)
    np.testing.assert_allclose(actions, told, atol=1e-6)
    for f in range(SEEN + OVERLAP, SEEN + FRAMES):
      want = whole[:, f - 1] @ n.T + actions[:, f] @ p.T + b[0]
      np.testing.assert_allclose(whole[:, f], want, atol=1e-4)
    before = whole, actions
  assert counts == [2, 4, 6, 2]


def test_a_video_goes_on_and_begins_anew():
  check_stream(STREAM)


@pytest.mark.parametrize(
  ("old", "new"),
  [
    ("stream.count + new > longest", "stream.count + new > 0"),
    ("stream.count + new > longest", "stream.count < 0"),
    ("a[:, n + overlap :])", "a[:, :new])"),
    ("a[:, new:]", "a[:, : n + overlap]"),
    ("for start in range(0, overlap, chunk)", "for start in range(0)"),
  ],
)
def test_another_stream_fails_the_proof(old, new):
  assert_caught(check_stream, mutant(STREAM, old, new))


@pytest.mark.parametrize(
  ("options", "words"),
  [
    ({"overlap": 3}, "at least one new one"),
    ({"longest": 1}, "longest=1 hold a clip"),
    ({"overlap": -1}, "must not be negative"),
    ({"depth": "deep"}, "depth must be one of random, cycle"),
    ({"times": (0.5,)}, "times must start at 1"),
  ],
)
def test_impossible_options_are_refused(options, words):
  with pytest.raises(ValueError, match=words):
    how = {"times": (1.0,), "overlap": OVERLAP, "longest": LONGEST} | options
    objective = SOURCE.long_tuning(*streaming(n=2), TEACHER, FAKE, **how)
    nets = {"student": HOME, "fake": HOME, "teacher": {}}
    objective.loss["student"](HOME, nets, objective.init_aux(), batch_of(2), jax.random.key(0), 0)


def test_streams_allow_no_microbatches():
  objective = SOURCE.long_tuning(*streaming(n=4), TEACHER, FAKE, times=(1.0,), **OPTIONS)
  nets = {"student": HOME, "fake": HOME, "teacher": {}}
  with pytest.raises(ValueError, match="accumulate=1"):
    objective.loss["student"](HOME, nets, objective.init_aux(), batch_of(2), jax.random.key(0), 0)
