"""Self-forcing: a causal student learns from what it generates itself, chunk after chunk."""

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp

from vidstep.losses import parts
from vidstep.losses.base import Objective, Velocity
from vidstep.losses.dmd2 import TIME, check_times, distribution_matching
from vidstep.losses.gan import Critic, Features, adversarial_matching
from vidstep.losses.sid import identity_matching

DIVERGENCES = {"dmd": distribution_matching, "sid": identity_matching}


def self_forcing(
  rollout: Callable,
  teacher: Velocity,
  fake: Velocity,
  *,
  times: Sequence[float] = (1.0, 15 / 16, 5 / 6, 5 / 8),
  first_times: Sequence[float] = (),
  depth: str = "random",
  divergence: str = "dmd",
  time=TIME,
  ratio: int = 5,
  guidance: float = 1.0,
  unconditional: Callable[[Any], Any] | None = None,
  scale: float = 1.0,
) -> Objective:
  """Matches the student's own rollout to the teacher (Huang et al. 2025; SF-DMD of Causal-rCM).

      x0 = rollout(theta) in n steps a chunk,  n ~ U{1 .. N} for the whole batch and all chunks
      student, fake: `distribution_matching` (or `identity_matching`) of x0, the whole video at once

  Student and rollout are causal, teacher and fake see the whole clip. Teacher forcing trains each
  chunk behind *true* frames and asks at inference for the next one behind its own: errors that the
  student makes are inputs it never saw, and grow from chunk to chunk. Here they are its inputs.
  The optimum is the teacher's distribution of whole videos; for several depths, of their mixture
  (see `dmd2`). Start from a student of teacher-forced consistency: there all depths agree.

  Traps of public code that this avoids: a cycle of depths by the global step is tied to the roles
  when `ratio` and N share a factor, so that the student meets some depths only: each role counts
  its own updates here. The depth is one for all chunks, samples and devices. The frames that later
  chunks read are at time 0, not at the last time of the list.

  Args:
    rollout: the student's, `rollout(params, batch, key, *, times, first_times, depth) -> x0`, in at
      most `depth` steps a chunk, differentiable in params: `vidstep.causal.rollout.self_rollout`.
      The other roles ask it with `gradient=None`: they need none.
    teacher: frozen, `velocity(params, x [B, F, H, W, C], t [B], cond) -> v`.
    fake: learns the score of the rollouts; start it from the teacher's weights.
    times: the student's times, from 1 downwards; n steps use the first n.
    first_times: those of the first chunk, if they differ (Causal-rCM: 4 steps there, 1 or 2 later).
    depth: "random", or "cycle": 1, 2, .., N, 1, .. by updates of the role, as Causal-rCM does.
    divergence: "dmd", or "sid" as `identity_matching` has it by default.
    time, ratio, guidance, unconditional, scale: see `distribution_matching`.

  Returns:
    Objective with the roles "student" and "fake" and the frozen "teacher"; for its metrics and
    further errors see `distribution_matching` and `identity_matching`.

  Raises:
    ValueError: if times do not start at 1 and fall strictly, staying positive; on an unknown depth
      or divergence.
  """
  parts.check_choice("divergence", divergence, tuple(DIVERGENCES))

  def match(generate):
    return DIVERGENCES[divergence](
      generate,
      teacher,
      fake,
      time=time,
      ratio=ratio,
      guidance=guidance,
      unconditional=unconditional,
      scale=scale,
    )

  return of_rollouts(rollout, match, ratio, times=times, first_times=first_times, depth=depth)


def self_forcing_gan(
  rollout: Callable,
  teacher: Velocity,
  fake: Velocity,
  fake_features: Features,
  critic: Critic,
  *,
  times: Sequence[float] = (1.0, 15 / 16, 5 / 6, 5 / 8),
  first_times: Sequence[float] = (),
  depth: str = "random",
  gan_weight: float = 5e-3,
  fake_weight: float = 1e-2,
  r1: float = 0.0,
  sigma: float = 0.01,
  time=TIME,
  ratio: int = 5,
  guidance: float = 1.0,
  unconditional: Callable[[Any], Any] | None = None,
  scale: float = 1.0,
) -> Objective:
  """`self_forcing` beside a critic that knows real videos: `adversarial_matching` of rollouts.

  The matching term stays, as in DMD2; Self-Forcing's own variant is the adversarial term alone,
  relativistic, which `scale=0` comes near. It is the only variant that needs data beyond contexts
  and actions: batches of real videos.

  Args:
    rollout, teacher, fake: as in `self_forcing`.
    fake_features, critic: see `adversarial_matching`.
    times, first_times, depth: as in `self_forcing`.
    gan_weight, fake_weight, r1, sigma: see `adversarial_matching`.
    time, ratio, guidance, unconditional, scale: as in `self_forcing`.

  Returns:
    Objective with the roles "student", "fake" and "critic" and the frozen "teacher"; for its
    metrics and further errors see `adversarial_matching`.

  Raises:
    ValueError: as `self_forcing`.
  """

  def match(generate):
    return adversarial_matching(
      generate,
      teacher,
      fake,
      fake_features,
      critic,
      gan_weight=gan_weight,
      fake_weight=fake_weight,
      r1=r1,
      sigma=sigma,
      time=time,
      ratio=ratio,
      guidance=guidance,
      unconditional=unconditional,
      scale=scale,
    )

  return of_rollouts(rollout, match, ratio, times=times, first_times=first_times, depth=depth)


def of_rollouts(rollout, match, ratio, *, times, first_times=(), depth="random"):
  """The objective `match(generate)` where `generate` is a rollout of a depth of its own each step.

  Args:
    rollout: see `self_forcing`.
    match: generate -> `Objective` with a "student" that is updated at every ratio-th step.
    ratio: the same.
    times: see `self_forcing`.
    first_times: see `self_forcing`.
    depth: see `self_forcing`.
  """
  parts.check_choice("depth", depth, ("random", "cycle"))
  times = check_times(times)
  first_times = check_times(first_times) if first_times else ()
  most = max(len(times), len(first_times))

  def at(updates, **reach):
    """The objective at a step before which the role that asks was updated so many times."""

    def generate(params, batch, key):
      depth_key, key = jax.random.split(key)
      drawn = jax.random.randint(depth_key, (), 0, most, jnp.int32)
      n = 1 + (drawn if depth == "random" else jnp.asarray(updates, jnp.int32) % most)
      how = {"times": times, "first_times": first_times, "depth": n, **reach}
      return rollout(params, batch, key, **how)

    return match(generate)

  def loss(role):
    def at_step(trainable, nets, aux, batch, key, step):
      updates = step // ratio if role == "student" else step - step // ratio
      reach = {} if role == "student" else {"gradient": None}
      return at(updates, **reach).loss[role](trainable, nets, aux, batch, key, step)

    return at_step

  whole = at(0)
  return dataclasses.replace(whole, loss={role: loss(role) for role in whole.roles})
