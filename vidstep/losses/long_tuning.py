"""Streaming long tuning: a causal student learns late in its own long videos, clip after clip."""

from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp

from vidstep import paths
from vidstep.losses import parts
from vidstep.losses.base import Objective, Velocity, network
from vidstep.losses.dmd2 import TIME, check_times, diffuse, pull, score_gap, student_last

LONGEST = 240  # LongLive: 240 latent frames, a minute


def long_tuning(
  blank: Callable,
  extend: Callable,
  teacher: Velocity,
  fake: Velocity,
  *,
  times: Sequence[float] = (1.0, 15 / 16, 5 / 6, 5 / 8),
  depth: str = "random",
  overlap: int = 0,
  longest: int = LONGEST,
  time=TIME,
  ratio: int = 5,
  guidance: float = 1.0,
  unconditional: Callable[[Any], Any] | None = None,
  scale: float = 1.0,
) -> Objective:
  """Distribution matching along a video that goes on (LongLive, 2509.22622, section 3.3).

      clip, aux = extend(theta, aux)     [o frames of the past | new], from the detached cache
      student   E scale mean_new |x0 - sg[x0 - (f_fake(x_t, t) - f_T(x_t, t)) / n]|^2
      fake      E mean_new |v_fake(x_t, t) - (eps - sg x0)|^2

  with x_t and n as in `distribution_matching`, and both means over the new frames only. Every
  update of either role continues the videos in `aux` by one clip, so the student meets its own
  errors as they are after minutes, at the memory of one clip; the teacher, which knows short clips
  only, judges each given what came just before. At `longest` frames the videos begin anew, from
  data. Self-forcing, in contrast, ends where its teacher's clip ends. Start from its student.

  The optimum is a student whose every clip, given the n context frames before it (and, with
  overlap, what of the past is scored along), has the teacher's distribution: that of long videos as
  far as they are Markov in those frames.

  Args:
    blank: `blank(overlap=, longest=)` -> aux that is not begun.
    extend: `extend(params, aux, batch, key, *, times, depth, overlap, longest) -> (clip, aux)`,
      both from `vidstep.causal.extension.extension`. The fake asks it with `gradient=None`.
    teacher: frozen, `velocity(params, x [B, F, H, W, C], t [B], cond) -> v`; sees the whole clip,
      and the frames before it as `cond.context`.
    fake: learns the score of the clips; start it from that of self-forcing, or the teacher.
    times: the student's times, from 1 downwards; n steps use the first n.
    depth: as in `self_forcing`.
    overlap: o, frames of the past that are scored along with the new ones, without gradient. For a
      teacher that takes no context frames; others are given the past clean, and need none.
    longest: frames after which videos begin anew.
    time, ratio, guidance, unconditional, scale: see `distribution_matching`.

  Returns:
    Objective with the roles "student" and "fake", the frozen "teacher" and the videos as aux; its
    metrics are those of `distribution_matching`, and `frames`, how long the videos are.

  Raises:
    ValueError: as `self_forcing`; when called, for clips that are no whole chunks, and for batches
      of another size than aux.
  """
  parts.check_choice("depth", depth, ("random", "cycle"))
  times = check_times(times)
  if overlap < 0 or longest < 1:
    raise ValueError(f"overlap={overlap} must not be negative and longest={longest} at least 1.")
  teacher = parts.apply_guidance(teacher, guidance, unconditional)

  def one_more(params, aux, batch, key, updates, **reach):
    """The clip, and everything that is drawn for it."""
    depth_key, roll_key, noise_key = jax.random.split(key, 3)
    drawn = jax.random.randint(depth_key, (), 0, len(times), jnp.int32)
    n = 1 + (drawn if depth == "random" else jnp.asarray(updates, jnp.int32) % len(times))
    how = {"times": times, "depth": n, "overlap": overlap, "longest": longest}
    how |= reach
    clip, aux = extend(params, aux, batch, roll_key, **how)
    x0 = parts.wide(clip.x0)
    x_t, t, eps = diffuse(time, jax.lax.stop_gradient(x0), noise_key)
    return clip.cond, x0, x_t, t, eps, aux

  def student_loss(trainable, nets, aux, batch, key, step):
    cond, x0, x_t, t, _, aux = one_more(trainable, aux, batch, key, step // ratio)
    direction, metrics = score_gap(nets, teacher, fake, x0, x_t, t, cond, time)
    value = scale * pull(x0[:, overlap:], direction[:, overlap:])
    return value, ({"loss": value, "frames": _frames(aux), **metrics}, aux)

  def fake_loss(trainable, nets, aux, batch, key, step):
    updates, student = step - step // ratio, network(nets, "student")
    cond, x0, x_t, t, eps, aux = one_more(student, aux, batch, key, updates, gradient=None)
    v = parts.wide(fake(trainable, x_t, t, cond))
    missed = (v - paths.velocity(jax.lax.stop_gradient(x0), eps)) ** 2
    error = parts.mean_like(missed[:, overlap:], t)
    value = jnp.mean(error)
    return value, ({"loss": value, **parts.by_time("loss", error, t, time)}, aux)

  return Objective(
    roles=("student", "fake"),
    loss={"student": student_loss, "fake": fake_loss},
    due=student_last(ratio, ("fake",)),
    init_aux=lambda: blank(overlap=overlap, longest=longest),
    frozen=("teacher",),
  )


def _frames(aux):
  return aux.count.astype(jnp.float32)
