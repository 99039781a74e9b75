"""DMD2-style distribution matching: a few-step generator steered by the gap between two scores."""

import itertools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from vidstep import paths
from vidstep.losses import parts
from vidstep.losses.base import Objective, Velocity, network

MIN_NORMALISER = 1e-5


def dmd2(
  velocity: Velocity,
  teacher: Velocity,
  fake: Velocity,
  *,
  times: tuple[float, ...] = (1.0, 15 / 16, 5 / 6, 5 / 8),
  ratio: int = 5,
  time=paths.Uniform(5.0),
  fake_time=paths.Uniform(),
  guidance: float = 1.0,
  unconditional: Callable[[Any], Any] | None = None,
) -> Objective:
  """Distribution matching distillation (Yin et al. 2024, DMD2), without its optional GAN.

  Two roles. The generator ("student") makes videos in n steps; the fake score ("fake") is trained
  on them, so that at a noised sample x_t = (1 - t) x0 + t eps the difference of the two denoisers
  is the gradient of KL(student || teacher), smoothed by the noise:

      student:  mean |x0 - sg[x0 - (f_fake(x_t) - f_teacher(x_t)) / mean |x0 - f_teacher(x_t)|]|^2
      fake:     mean |v_fake(x_t, t) - (eps - x0)|^2

  with f = x_t - t v and sg = stop_gradient; the normaliser is a number for each sample, at least
  1e-5. Samples come from backward simulation: noise at times[0]; jump to x0, re-noise to the next
  time, n times in all, n uniform on 1 .. len(times). Only the last jump carries a gradient, and
  the n - 1 before it are not computed twice. Steps alternate (`due`): the student is updated at
  every `ratio`-th step, the fake score at all others (two time-scale update rule).

  Start all three networks from the teacher. Its optimum: the student's samples have the teacher's
  distribution. Public trainers stop early, as motion and diversity fade with long training.

  Args:
    velocity: of the student, `velocity(params, x [B, F, H, W, C], t [B], cond) -> v`.
    teacher: of the frozen teacher.
    fake: of the fake score.
    times: the student's few-step list, falling from 1; sample it with `timestep_list`.
    ratio: steps for one update of the student, the others train the fake score; 2 or more.
    time: sampler of t in the student's loss (rCM: `Uniform(5)` for video).
    fake_time: sampler of t in the fake score's loss.
    guidance: weight of the teacher's guidance, `v_u + w (v_c - v_u)`; 1 is none.
    unconditional: cond -> cond without the condition, for guidance.

  Returns:
    Objective with roles "student" and "fake", frozen "teacher".

  Raises:
    ValueError: if times do not fall within (0, 1], ratio < 2, or guidance lacks `unconditional`.
  """
  times = tuple(float(t) for t in times)
  falling = all(a > b for a, b in itertools.pairwise(times))
  if not (times and falling and times[-1] > 0 and times[0] <= 1):
    raise ValueError(f"times must fall within (0, 1], from noise towards data, got {times}.")
  if ratio < 2:
    raise ValueError(f"ratio={ratio} leaves no step to the fake score: give 2 or more.")
  teacher = parts.apply_guidance(teacher, guidance, unconditional)
  denoise = lambda net, params, x, t, cond: paths.x0_from_v(
    x, parts.wide(net(params, x, t, cond)), t
  )

  def generate(params, batch, key):
    """A video of every sample, after a number of steps that is drawn for the whole batch."""
    steps_key, noise_key = jax.random.split(key)
    steps = jax.random.randint(steps_key, (), 1, len(times) + 1)
    noise = lambda i: parts.noise_like(jax.random.fold_in(noise_key, i), batch.x0)
    at = lambda i: jnp.full(batch.x0.shape[:1], jnp.asarray(times, jnp.float32)[i])
    still = jax.lax.stop_gradient(params)

    def jump(i, x):
      x0 = denoise(velocity, still, x, at(i), batch.cond)
      return paths.interpolate(x0, noise(i + 1), at(i + 1))

    x = jax.lax.stop_gradient(jax.lax.fori_loop(0, steps - 1, jump, noise(0)))
    return denoise(velocity, params, x, at(steps - 1), batch.cond)

  def student_loss(trainable, nets, aux, batch, key, step):
    del step
    sample_key, time_key, noise_key = jax.random.split(key, 3)
    x0 = generate(trainable, batch, sample_key)
    t = time.sample(time_key, x0.shape[:1])
    x_t = jax.lax.stop_gradient(paths.interpolate(x0, parts.noise_like(noise_key, x0), t))
    real = denoise(teacher, network(nets, "teacher"), x_t, t, batch.cond)
    gap = denoise(fake, network(nets, "fake"), x_t, t, batch.cond) - real
    normaliser = parts.mean_like(jnp.abs(x0 - real), t)
    gap = gap / paths.expand(jnp.maximum(normaliser, MIN_NORMALISER), gap)
    value = jnp.mean((x0 - jax.lax.stop_gradient(x0 - gap)) ** 2)
    metrics = {"loss": value, "normaliser": jnp.mean(normaliser)}
    return value, (metrics | parts.by_time("gap", parts.mean_like(jnp.abs(gap), t), t, time), aux)

  def fake_loss(trainable, nets, aux, batch, key, step):
    del step
    sample_key, time_key, noise_key = jax.random.split(key, 3)
    x0 = jax.lax.stop_gradient(generate(network(nets, "student"), batch, sample_key))
    t = fake_time.sample(time_key, x0.shape[:1])
    eps = parts.noise_like(noise_key, x0)
    v = parts.wide(fake(trainable, paths.interpolate(x0, eps, t), t, batch.cond))
    error = parts.mean_like((v - paths.velocity(x0, eps)) ** 2, t)
    value = jnp.mean(error)
    return value, ({"loss": value, **parts.by_time("loss", error, t, fake_time)}, aux)

  return Objective(
    roles=("student", "fake"),
    loss={"student": student_loss, "fake": fake_loss},
    due=lambda step: ("student",) if step % ratio == ratio - 1 else ("fake",),
    frozen=("teacher",),
  )
