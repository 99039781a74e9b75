"""Self-forcing and CausVid are proven on a Gaussian chain: fixed points, and the gap they close."""

import importlib
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from chain import CHAIN, DIM, DRIFT, FRAMES, NOISE, SHAPE, SHIFT, SPREAD, START, TRI, A, D, gradient
from fit import fit
from mutation import assert_caught, mutant
from test_dmd2 import one_gaussian
from videos import flat, wasserstein

from vidstep import paths
from vidstep.causal.packed import PackedNetwork
from vidstep.causal.rollout import self_rollout
from vidstep.losses import Batch, self_forcing
from vidstep.models import Cond
from vidstep.teachers import gaussian

pytestmark = pytest.mark.usefixtures("unoptimized")

SOURCE = importlib.import_module("vidstep.losses.self_forcing")


# ------------------------------------------------------------------------------------------------
# Self-forcing
# ------------------------------------------------------------------------------------------------

TIMES = (1.0, 0.6)


def jumps(params, x, t, cond):
  """A few-step causal student: f = W_i x + N_i (the clean frame before) + b_i, i by its time."""
  at = jnp.stack([t > 0.8, t <= 0.8], -1).astype(jnp.float32)
  previous = jnp.pad(cond.clean[:, :-1, 0, 0], ((0, 0), (1, 0), (0, 0)))
  f = jnp.einsum("bfk,kfij,bfj->bfi", at, params["W"], x[:, :, 0, 0])
  f += jnp.einsum("bfk,kfij,bfj->bfi", at, params["N"], previous)
  f += jnp.einsum("bfk,kfi->bfi", at, params["b"])
  return paths.v_from_x0(x, f[:, :, None, None], t)


def student(jump):
  """Parameters from `jump(f, t) -> (W, N, b)`, the affine jump to x0 of frame f, float64."""
  rows = [[jump(f, t) for f in range(FRAMES)] for t in TIMES]
  stack = lambda k: jnp.float32([[row[k] for row in frames] for frames in rows])
  return {"W": stack(0), "N": stack(1), "b": stack(2)}


def laws_of_frames():
  """Per frame: covariance given the one before, slope of its mean in it, and the rest of it."""
  return [(SPREAD, 0 * A, START)] + [(NOISE, A, DRIFT)] * (FRAMES - 1)


def exact_jump(f, t):
  """The consistency function: `mean + cov^1/2 (cov (1-t)^2 + t^2)^-1/2 (x - (1-t) mean)`."""
  cov, slope, rest = laws_of_frames()[f]
  lam, u = np.linalg.eigh(cov)
  w = u * np.sqrt(lam / ((1 - t) ** 2 * lam + t**2)) @ u.T
  left = np.eye(D) - (1 - t) * w
  return w, left @ slope, left @ rest


def walked_jump(f, t, steps=4):
  """Where teacher-forced discrete consistency ends: the Euler walk down a grid, from t to 0."""
  cov, slope, rest = laws_of_frames()[f]
  w, left = np.eye(D), np.zeros((D, D))
  grid = paths.shift_time(np.linspace(paths.unshift_time(t, SHIFT), 0, steps + 1), SHIFT)
  for here, there in itertools.pairwise(grid):
    total = np.linalg.inv((1 - here) ** 2 * cov + here**2 * np.eye(D))
    gain = (here * np.eye(D) - (1 - here) * cov) @ total  # v = gain (x - (1-t) mean) - mean
    step = np.eye(D) - (here - there) * gain
    w, left = step @ w, step @ left + (here - there) * ((1 - here) * gain + np.eye(D))
  return w, left @ slope, left @ rest


def truth():
  mean, cov = gaussian.moments(jax.tree.map(jnp.asarray, CHAIN), 1, FRAMES)
  return np.asarray(mean[0], np.float64), np.asarray(cov, np.float64)


def rolled(params, depth):
  """Mean and covariance of what a student rolls out: a NumPy loop over affine maps of noise."""
  w, n, b = (np.asarray(params[name], np.float64) for name in "WNb")
  draws = depth * FRAMES * D
  video, previous = [], np.zeros((D, draws + 1))
  for f in range(FRAMES):
    x0 = np.zeros((D, draws + 1))
    for s, t in enumerate(TIMES[:depth]):
      eps = np.zeros((D, draws + 1))
      at = (f * depth + s) * D
      eps[:, at : at + D] = np.eye(D)
      x0 = w[s, f] @ ((1 - t) * x0 + t * eps) + n[s, f] @ previous
      x0[:, -1] += b[s, f]
    video.append(x0)
    previous = x0
  video = np.concatenate(video)
  return video[:, -1], video[:, :-1] @ video[:, :-1].T


def whole_clip(params, x, t, cond):
  """The teacher of whole clips."""
  return gaussian.velocity(CHAIN, x, t)


def generator(params, batch, key, **options):
  generate = self_rollout(PackedNetwork(jumps, 1), chunk=1)
  return generate(params, batch.replace(cond=Cond()), key, **options)


def moved(params, size=0.3, seed=0):
  rng = np.random.default_rng(seed)
  return jax.tree.map(lambda p: p + jnp.float32(size * rng.normal(size=p.shape)), params)


def fake_of(law):
  """A fake score that knows a law."""
  mean, cov = law
  return {"W": jnp.float32(np.linalg.cholesky(cov)), "b": jnp.float32(mean)}


def mixed(params, times):
  """The law of all depths together, as a Gaussian: their moments."""
  laws = [rolled(params, depth) for depth in range(1, len(times) + 1)]
  mean = sum(m for m, _ in laws) / len(laws)
  return mean, sum(c + np.outer(m, m) for m, c in laws) / len(laws) - np.outer(mean, mean)


def check_self_forcing(source, times, divergence="dmd"):
  """The exact causal sampler stays where it is, a student beside it is pulled back."""
  objective = source.self_forcing(
    generator, whole_clip, one_gaussian, times=times, divergence=divergence
  )
  home = student(exact_jump)
  for depth in range(1, len(times) + 1):
    assert wasserstein(*rolled(home, depth), *truth()) < 1e-4
  away = moved(home)
  batch = Batch(jnp.zeros((2**13, *SHAPE)))
  pull = lambda params: gradient(
    objective, params, batch, fake=fake_of(mixed(params, times)), teacher=None
  )[1]
  back, still = pull(away), pull(home)
  off = flat(away) - flat(home)
  assert np.linalg.norm(still) < 1e-2 * np.linalg.norm(back)
  if len(times) == 1:  # with more, a step moves the weights of one depth only
    assert back @ off > 0.1 * np.linalg.norm(back) * np.linalg.norm(off)

  # Every draw has the law of one depth, and every depth occurs.
  draw = generator_of(source, "self_forcing", generator, times=times)
  laws = [rolled(away, depth) for depth in range(1, len(times) + 1)]
  seen = set()
  for seed in range(4 * len(times)):
    gaps = [wasserstein(*moments(draw(away, batch, jax.random.key(seed))), *law) for law in laws]
    seen.add(int(np.argmin(gaps)))
    assert min(gaps) < 0.1
  assert len(seen) == len(times)


def generator_of(source, name, network, **options):
  """What an objective hands to distribution matching, compiled."""
  table = getattr(source, "DIVERGENCES", vars(source))
  key = "dmd" if table is not vars(source) else "distribution_matching"
  handed, matching = [], table[key]
  table[key] = lambda generate, *nets, **kw: (
    handed.append(generate) or matching(generate, *nets, **kw)
  )
  getattr(source, name)(network, whole_clip, one_gaussian, **options)
  table[key] = matching
  return jax.jit(handed[0])


def moments(videos):
  rows = np.asarray(videos, np.float64).reshape(len(videos), -1)
  return rows.mean(0), np.cov(rows.T)


@pytest.mark.parametrize(
  ("times", "divergence"), [((1.0,), "dmd"), (TIMES, "dmd"), ((1.0,), "sid")]
)
def test_the_exact_causal_sampler_is_the_fixed_point(times, divergence):
  check_self_forcing(SOURCE, times, divergence)


def test_a_critic_sits_beside_the_same_rollouts():
  """Three roles; a critic that does not tell leaves the student to the matching term."""
  features = lambda params, x, t, cond: [x.reshape(len(x), DIM)]
  critic = lambda params, seen: seen[0] @ params
  nets = {"teacher": {}, "critic": jnp.zeros(DIM), "student": moved(student(exact_jump))}
  nets["fake"] = fake_of(rolled(nets["student"], 1))
  fields = (generator, whole_clip, one_gaussian)
  judged = SOURCE.self_forcing_gan(*fields, features, critic, times=(1.0,), fake_weight=0.0)
  alone = self_forcing(*fields, times=(1.0,))
  assert judged.roles == ("student", "fake", "critic")
  assert judged.due(0) == ("fake", "critic") and judged.due(4) == ("student",)
  batch = Batch(gaussian.draw(CHAIN, jax.random.key(3), (512, *SHAPE)))

  def grads(objective, role):
    loss = jax.jit(jax.grad(objective.loss[role], has_aux=True))
    return flat(loss(nets[role], nets, {}, batch, jax.random.key(1), 0)[0])

  gap = lambda: np.abs(grads(judged, "student") - grads(alone, "student")).max()
  assert gap() < 1e-5 and np.abs(grads(judged, "critic")).max() > 0.01
  nets["critic"] += 100.0
  assert gap() > 0.01


@pytest.mark.parametrize(
  ("old", "new"),
  [
    ('{"times": times, "first_times": first_times, "depth": n', '{"times": (1.0,), "depth": n'),
    ("n = 1 + (", "n = 0 * drawn + ("),
    ("return rollout(params,", "return batch.x0 + 0 * rollout(params,"),
  ],
)
def test_a_wrong_self_forcing_fails_the_proof(old, new):
  assert_caught(check_self_forcing, mutant(SOURCE, old, new), TIMES)


def test_self_forcing_closes_the_gap_that_teacher_forcing_leaves():
  """A one-step student, right behind true frames to the error of its grid, drifts behind its own.

  Trained on its own rollout, with a fake score that learns, it reaches the joint law.
  """
  start = student(walked_jump)
  objective = self_forcing(
    generator, whole_clip, one_gaussian, times=(1.0,), time=paths.Uniform(SHIFT), ratio=2
  )
  nets = {"student": start, "fake": fake_of(rolled(start, 1)), "teacher": {}}
  rates = {"student": 0.01, "fake": 0.02}
  end = fit(objective, nets, jnp.zeros((257, *SHAPE)), steps=1500, rates=rates, b1=0.0)["student"]

  def drift(params):
    """W2 to the truth of each frame alone, and of the whole video."""
    (mean, cov), (mean0, cov0) = rolled(params, 1), truth()
    cut = [slice(f * D, f * D + D) for f in range(FRAMES)]
    each = [wasserstein(mean[c], cov[c, c], mean0[c], cov0[c, c]) for c in cut]
    return each, wasserstein(mean, cov, mean0, cov0)

  (frames, before), (_, after) = drift(start), drift(end)
  assert before > 0.8 and frames[2] > frames[1] > frames[0] > 0.3
  assert after < 0.08


def test_depths_cycle_by_the_updates_of_each_role():
  """With ratio 2 and two depths, a cycle by the step would give each role one depth for ever."""
  seen = []

  def rollout(params, batch, key, *, times, first_times, depth, **reach):
    seen.append(int(depth))
    return batch.x0 * params

  field = lambda params, x, t, cond: x
  objective = self_forcing(rollout, field, field, times=TIMES, depth="cycle", ratio=2)
  nets = {"student": jnp.float32(1), "fake": {}, "teacher": {}}
  depths = {"student": [], "fake": []}
  for step in range(8):
    (role,) = objective.due(step)
    batch = Batch(jnp.ones((2, *SHAPE)))
    objective.loss[role](nets[role], nets, {}, batch, jax.random.key(0), step)
    depths[role].append(seen.pop())
  assert depths == {"student": [1, 2, 1, 2], "fake": [1, 2, 1, 2]}


@pytest.mark.parametrize(
  ("options", "words"),
  [
    ({"times": (0.9,)}, "times must start at 1"),
    ({"first_times": (1.0, 1.0)}, "fall strictly"),
    ({"depth": "fixed"}, "depth must be one of random, cycle"),
    ({"divergence": "kl"}, "divergence must be one of dmd, sid"),
    ({"ratio": 1}, "ratio must be at least 2"),
  ],
)
def test_impossible_options_are_refused(options, words):
  with pytest.raises(ValueError, match=words):
    self_forcing(generator, whole_clip, one_gaussian, **options)


# ------------------------------------------------------------------------------------------------
# CausVid
# ------------------------------------------------------------------------------------------------

CAUSVID = importlib.import_module("vidstep.losses.causvid")


def triangular(params, x, t, cond):
  """A causal map of noisy frames: f = L x + b, L lower triangular by frames."""
  lower = params["W"] * jnp.float32(np.kron(TRI["until"], np.ones((D, D))))
  f = jnp.einsum("ij,nj->ni", lower, x.reshape(len(x), DIM)) + params["b"][None]
  return paths.v_from_x0(x, f.reshape(x.shape), t)


def check_causvid(source, times=(1.0,)):
  """From pure noise its fixed point is the block Cholesky factor of the data's covariance.

  From noised data, (1 - t) x0 + t eps with its own t for each frame, it matches the law of that.
  """
  mean, cov = truth()
  home = fake_of((mean, cov))
  objective = source.causvid(triangular, whole_clip, one_gaussian, times=times, chunk=1)
  x0 = gaussian.draw(CHAIN, jax.random.key(3), (2**13, *SHAPE))

  def law(params):
    w, b = np.asarray(params["W"] * np.kron(TRI["until"], np.ones((D, D)))), np.asarray(params["b"])
    keep = np.mean([1 - t for t in times])
    second = keep**2 * (cov + np.outer(mean, mean))
    own = np.mean([(1 - t) ** 2 for t in times]) * (cov + np.outer(mean, mean))
    second = np.where(np.kron(np.eye(FRAMES), np.ones((D, D))), own, second)
    second += np.mean(np.square(times)) * np.eye(DIM)
    inside = second - keep**2 * np.outer(mean, mean)
    return w @ (keep * mean) + b, w @ inside @ w.T

  away = moved(home)
  draw = generator_of(source, "causvid", triangular, times=times, chunk=1)
  assert wasserstein(*moments(draw(away, Batch(x0), jax.random.key(1))), *law(away)) < 0.05
  if times == (1.0,):
    pull = lambda params: gradient(objective, params, Batch(x0), fake=fake_of(law(params)))[1]
    off, back = flat(away) - flat(home), pull(away)
    assert np.linalg.norm(pull(home)) < 1e-2 * np.linalg.norm(back)
    assert back @ off > 0.1 * np.linalg.norm(back) * np.linalg.norm(off)


@pytest.mark.parametrize("times", [(1.0,), (1.0, 0.1)])
def test_causvid_matches_its_jumps_from_noised_data(times):
  check_causvid(CAUSVID, times)


@pytest.mark.parametrize(
  ("old", "new"),
  [
    ("time_key, x0, chunk)", "time_key, x0)[:, None] * jnp.ones(x0.shape[:2])"),
    ("interpolate(x0, ", "interpolate(0 * x0, "),
    ("x0_from_v(x, parts", "x0_from_v(x0, parts"),
  ],
)
def test_a_wrong_causvid_fails_the_proof(old, new):
  source = mutant(CAUSVID, old, new)
  source.jnp = jnp
  assert_caught(check_causvid, source, (1.0, 0.1))
