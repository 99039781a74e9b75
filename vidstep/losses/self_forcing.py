"""Self-forcing: a causal student learns from what it generates itself, chunk after chunk."""

from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp

from vidstep.losses import parts
from vidstep.losses.base import Objective, Velocity
from vidstep.losses.dmd2 import TIME, check_times, distribution_matching


def self_forcing(
  rollout: Callable,
  teacher: Velocity,
  fake: Velocity,
  *,
  times: Sequence[float] = (1.0, 15 / 16, 5 / 6, 5 / 8),
  first_times: Sequence[float] = (),
  depth: str = "random",
  time=TIME,
  ratio: int = 5,
  guidance: float = 1.0,
  unconditional: Callable[[Any], Any] | None = None,
  scale: float = 1.0,
) -> Objective:
  """Distribution matching of the student's own rollout (Huang et al. 2025; SF-DMD of Causal-rCM).

      x0 = rollout(theta) in n steps a chunk,  n ~ U{1 .. N} for the whole batch and all chunks
      student, fake: `distribution_matching` of x0, the whole video at once

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
    teacher: frozen, `velocity(params, x [B, F, H, W, C], t [B], cond) -> v`.
    fake: learns the score of the rollouts; start it from the teacher's weights.
    times: the student's times, from 1 downwards; n steps use the first n.
    first_times: those of the first chunk, if they differ (Causal-rCM: 4 steps there, 1 or 2 later).
    depth: "random", or "cycle": 1, 2, .., N, 1, .. by updates of the role, as Causal-rCM does.
    time: sampler of the noise level at which the distributions are compared.
    ratio: the student is updated at every ratio-th step, the fake at all others.
    guidance: the teacher's, `v_u + w (v_c - v_u)`; 1 is none.
    unconditional: cond -> cond for the guidance.
    scale: factor on the student's loss.

  Returns:
    Objective with the roles "student" and "fake" and the frozen "teacher"; for its metrics and
    further errors see `distribution_matching`.

  Raises:
    ValueError: if times do not start at 1 and fall strictly, staying positive; on an unknown depth.
  """
  parts.check_choice("depth", depth, ("random", "cycle"))
  times = check_times(times)
  first_times = check_times(first_times) if first_times else ()
  most = max(len(times), len(first_times))

  def matching(updates):
    """The objective of one step, before which the role that asks was updated so many times."""

    def generate(params, batch, key):
      depth_key, key = jax.random.split(key)
      drawn = jax.random.randint(depth_key, (), 0, most, jnp.int32)
      n = 1 + (drawn if depth == "random" else jnp.asarray(updates, jnp.int32) % most)
      return rollout(params, batch, key, times=times, first_times=first_times, depth=n)

    return distribution_matching(
      generate,
      teacher,
      fake,
      time=time,
      ratio=ratio,
      guidance=guidance,
      unconditional=unconditional,
      scale=scale,
    )

  def student_loss(trainable, nets, aux, batch, key, step):
    return matching(step // ratio).loss["student"](trainable, nets, aux, batch, key, step)

  def fake_loss(trainable, nets, aux, batch, key, step):
    return matching(step - step // ratio).loss["fake"](trainable, nets, aux, batch, key, step)

  whole = matching(0)
  return Objective(
    whole.roles,
    {"student": student_loss, "fake": fake_loss},
    whole.due,
    whole.init_aux,
    whole.frozen,
  )
