"""Distribution matching (DMD2): samples move along the gap between fake and teacher score."""

import itertools
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp

from vidstep import paths
from vidstep.losses import parts
from vidstep.losses.base import Batch, Objective, Velocity, network

TIME = paths.Uniform(5.0)
# A generator: (params, batch, key) -> x0, shaped like batch.x0 and differentiable in params.
Generate = Callable[[Any, Batch, jax.Array], jax.Array]


def dmd2(
  velocity: Velocity,
  teacher: Velocity,
  fake: Velocity,
  *,
  times: Sequence[float] = (1.0, 15 / 16, 5 / 6, 5 / 8),
  time=TIME,
  ratio: int = 5,
  guidance: float = 1.0,
  unconditional: Callable[[Any], Any] | None = None,
  scale: float = 1.0,
) -> Objective:
  """DMD2 without its GAN (Yin et al. 2024b, sections 4.2, 4.3 and 4.5; normaliser as in rCM).

  `distribution_matching` of the samples of `backward_simulation`: the student is trained on the
  inputs that it meets when it samples, in 1 .. len(times) steps in turn.

  One fake score serves all depths, so what is matched is the mixture of the samples of 1 .. N steps
  and not each depth for itself: start from a student whose depths already agree (a consistency
  model, or the teacher), and judge it at the depth that will be used.

  Args:
    velocity: the student, `velocity(params, x [B, F, H, W, C], t [B], cond) -> v`.
    teacher: frozen, same signature.
    fake: learns the score of the student's samples; start it from the teacher's weights.
    times: the student's times, from 1 downwards; n steps use the first n.
    time, ratio, guidance, unconditional, scale: see `distribution_matching`.

  Returns:
    Objective with the roles "student" and "fake" and the frozen "teacher"; for its metrics and
    errors see `distribution_matching`.
  """
  return distribution_matching(
    backward_simulation(velocity, times),
    teacher,
    fake,
    time=time,
    ratio=ratio,
    guidance=guidance,
    unconditional=unconditional,
    scale=scale,
  )


def backward_simulation(velocity: Velocity, times: Sequence[float]) -> Generate:
  """Few-step sampling with gradients through its last step (DMD2, section 4.5).

      n ~ U{1 .. N} for the whole batch,   x = eps_1
      f = x - t_i v(x, t_i),   x = (1 - t_{i+1}) f + t_{i+1} eps_{i+1}     i = 1 .. n-1, no gradient
      x0 = x - t_n v(x, t_n)                                               with gradient

  Only the n forwards that are needed are executed, and the program holds two, whatever N is.

  Args:
    velocity: the student.
    times: t_1 = 1 > t_2 > ... > t_N > 0.

  Returns:
    `generate(params, batch, key) -> x0`; of `batch.x0` only the shape is used.

  Raises:
    ValueError: if times do not start at 1 and fall strictly, staying positive.
  """
  times = check_times(times)

  def generate(params, batch, key):
    depth_key, noise_key = jax.random.split(key)
    shape = batch.x0.shape
    grid = jnp.asarray(times, jnp.float32)

    def noise(i):
      return parts.noise_like(jax.random.fold_in(noise_key, i), batch.x0)

    def jump(params, x, i):
      t = jnp.broadcast_to(grid[i], shape[:1])
      return paths.x0_from_v(x, parts.wide(velocity(params, x, t, batch.cond)), t)

    def step(i, x):
      return paths.interpolate(jump(jax.lax.stop_gradient(params), x, i), noise(i + 1), grid[i + 1])

    x, last = noise(0), jnp.int32(0)
    if len(times) > 1:
      last = jax.random.randint(depth_key, (), 0, len(times), jnp.int32)
      x = jax.lax.fori_loop(0, last, step, x)
    return jump(params, jax.lax.stop_gradient(x), last)

  return generate


def check_times(times):
  """A student's times as a tuple; ValueError unless they start at 1 and fall, staying positive."""
  times = tuple(float(t) for t in times)
  falling = all(a > b for a, b in itertools.pairwise((*times, 0.0)))
  if not times or times[0] != 1 or not falling:
    raise ValueError(f"times must start at 1 and fall strictly, staying positive, got {times}.")
  return times


def distribution_matching(
  generate: Generate,
  teacher: Velocity,
  fake: Velocity,
  *,
  time=TIME,
  ratio: int = 5,
  guidance: float = 1.0,
  unconditional: Callable[[Any], Any] | None = None,
  scale: float = 1.0,
) -> Objective:
  """Matches the distribution of any generator to the teacher's (Yin et al. 2024a, 2024b).

      student   E scale mean |x0 - sg[x0 - (f_fake(x_t, t) - f_T(x_t, t)) / n]|^2
                n = max(mean |x0 - f_T|, 1e-5), a number for each sample
      fake      E mean |v_fake(x_t, t) - (eps - sg x0)|^2
      with      x0 = generate(theta),  x_t = (1 - t) sg x0 + t eps,  f(x, t) = x - t v(x, t)

  With the fake at its optimum, f_fake - f_T = t^2 / (1 - t) (s_fake - s_T): the student descends a
  weighted KL(student | teacher) over noise levels. Its optimum is the teacher's distribution (with
  guidance 1), where f_fake = f_T. The value of the student's loss says nothing: watch `gap`.

  Self-forcing and the like are this with another generator.

  Args:
    generate: `generate(params, batch, key) -> x0`.
    teacher: frozen velocity.
    fake: velocity that learns the generator's distribution; start it from the teacher's weights.
    time: sampler of t, the noise level at which the distributions are compared.
    ratio: the student is updated at every ratio-th step (the last of each group, so that the fake
      leads), the fake at all others.
    guidance: the teacher's, `v_u + w (v_c - v_u)`, 1 being none; the fake has none.
    unconditional: cond -> cond for the guidance (`vidstep.models.null_cond`).
    scale: factor on the student's loss.

  Returns:
    Objective with the roles "student" and "fake" and the frozen "teacher". Metrics of the student:
    `loss`, `gap` = mean |f_fake - f_T| / n, `gap_t0` .. `gap_t3` by quarter of time, `normalizer`.
    Of the fake: `loss`, `loss_t0` .. `loss_t3`.

  Raises:
    ValueError: if ratio < 2, or guidance comes without `unconditional`.
  """
  teacher = parts.apply_guidance(teacher, guidance, unconditional)

  def student_loss(trainable, nets, aux, batch, key, step):
    del step
    generate_key, diffuse_key = jax.random.split(key)
    x0 = parts.wide(generate(trainable, batch, generate_key))
    x_t, t, _ = diffuse(time, jax.lax.stop_gradient(x0), diffuse_key)
    direction, metrics = score_gap(nets, teacher, fake, x0, x_t, t, batch.cond, time)
    value = scale * pull(x0, direction)
    return value, ({"loss": value, **metrics}, aux)

  return Objective(
    roles=("student", "fake"),
    loss={"student": student_loss, "fake": fake_regression(generate, fake, time)},
    due=student_last(ratio, ("fake",)),
    frozen=("teacher",),
  )


# ------------------------------------------------------------------------------------------------
# What the family shares
# ------------------------------------------------------------------------------------------------


def diffuse(time, x0, key):
  """`x_t = (1 - t) x0 + t eps` with fresh t [B] and eps; returns (x_t, t, eps)."""
  time_key, noise_key = jax.random.split(key)
  t = parts.draw_times(time, time_key, x0)
  eps = parts.noise_like(noise_key, x0)
  return paths.interpolate(x0, eps, t), t, eps


def score_gap(nets, teacher, fake, x0, x_t, t, cond, time):
  """`(f_fake - f_T) / n` at x_t, the way down KL(student | teacher), and its metrics.

  n = max(mean |x0 - f_T|, 1e-5) for each sample; f(x, t) = x - t v(x, t). The metrics are `gap`,
  its quarters of time and `normalizer`.
  """
  v_fake = parts.wide(fake(network(nets, "fake"), x_t, t, cond))
  v_teacher = parts.wide(teacher(network(nets, "teacher"), x_t, t, cond))
  x0_fake, x0_teacher = paths.x0_from_v(x_t, v_fake, t), paths.x0_from_v(x_t, v_teacher, t)
  size = jnp.maximum(parts.mean_like(jnp.abs(x0 - x0_teacher), t), 1e-5)
  direction = (x0_fake - x0_teacher) / paths.expand(size, x0)
  gap = parts.mean_like(jnp.abs(direction), t)
  metrics = {"gap": jnp.mean(gap), "normalizer": jnp.mean(size)}
  return direction, {**metrics, **parts.by_time("gap", gap, t, time)}


def pull(x0, direction):
  """`mean |x0 - sg[x0 - direction]|^2`, whose gradient in x0 is 2 direction / D."""
  return jnp.mean((x0 - jax.lax.stop_gradient(x0 - direction)) ** 2)


def fake_regression(generate: Generate, fake: Velocity, time):
  """The loss of the role "fake": flow matching on the samples of the role "student"."""

  def loss(trainable, nets, aux, batch, key, step):
    del step
    generate_key, diffuse_key = jax.random.split(key)
    x0 = jax.lax.stop_gradient(generate(network(nets, "student"), batch, generate_key))
    x0 = parts.wide(x0)
    x_t, t, eps = diffuse(time, x0, diffuse_key)
    v = parts.wide(fake(trainable, x_t, t, batch.cond))
    error = parts.mean_like((v - paths.velocity(x0, eps)) ** 2, t)
    value = jnp.mean(error)
    return value, ({"loss": value, **parts.by_time("loss", error, t, time)}, aux)

  return loss


def student_last(ratio: int, others: tuple[str, ...]):
  """The student at every ratio-th step, the last of each group; the others at all other steps.

  Raises:
    ValueError: if ratio < 2.
  """
  if ratio < 2:
    raise ValueError(f"ratio must be at least 2 (one update of the student in 2), got {ratio}.")
  return lambda step: ("student",) if (step + 1) % ratio == 0 else others
