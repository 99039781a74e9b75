"""Latent adversarial distillation: the critic alone, on features of the frozen teacher."""

from collections.abc import Sequence

import jax
import jax.numpy as jnp

from vidstep import paths
from vidstep.losses import parts
from vidstep.losses.base import Objective, Velocity, network
from vidstep.losses.dmd2 import Generate, check_times, diffuse, student_last
from vidstep.losses.gan import FORMS, Critic, Features, separation

# LADD's renoising, logit-normal(1, 1), section 3: high noise judges layout, low noise texture.
TIME = paths.LogitNormal(1.0, 1.0)


def ladd(
  velocity: Velocity,
  teacher_features: Features,
  critic: Critic,
  *,
  times: Sequence[float] = (1.0, 0.75, 0.5, 0.25),
  chunk: int | tuple[int, int] | None = None,
  form: str = "hinge",
  r1: float = 0.0,
  sigma: float = 0.01,
  time=TIME,
  ratio: int = 2,
) -> Objective:
  """LADD (Sauer et al. 2024b): `adversarial` of one jump from noised data.

      t ~ U(times),  x_t = (1 - t) y0 + t eps,  x0 = x_t - t v_theta(x_t, t)

  Real videos y0 are `batch.x0`. The paper takes them from the teacher, guided: then guidance is
  learnt as well, and students end closer to prompts than real data would lead them.

  Only at t = 1 does the student draw videos from nothing; at lower times it is given part of the
  answer, and the mixture over times is what the critic judges. The critic does not know that time.

  Args:
    velocity: the student, `velocity(params, x [B, F, H, W, C], t, cond) -> v`, t [B], or [B, F]
      with chunk; start it from the teacher's weights.
    teacher_features: features of the frozen teacher.
    critic: heads over them; the paper has one a block, and a verdict a position.
    times: the student's times, from 1 downwards.
    chunk: number of frames that share a time; None: all.
    form, r1, sigma, time, ratio: see `adversarial`.

  Returns:
    Objective with the roles "student" and "critic" and the frozen "teacher".

  Raises:
    ValueError: if times do not start at 1 and fall strictly, staying positive, or as `adversarial`.
  """
  return adversarial(
    noised_data(velocity, times, chunk),
    teacher_features,
    critic,
    form=form,
    r1=r1,
    sigma=sigma,
    time=time,
    ratio=ratio,
  )


def noised_data(velocity: Velocity, times: Sequence[float], chunk=None) -> Generate:
  """The generator of `ladd`: noised data at a time out of a list, denoised in one jump."""
  grid = parts.OneOf(check_times(times))

  def generate(params, batch, key):
    time_key, noise_key = jax.random.split(key)
    y0 = parts.wide(batch.x0)
    t = parts.draw_times(grid, time_key, y0, chunk)
    x = paths.interpolate(y0, parts.noise_like(noise_key, y0), t)
    return paths.x0_from_v(x, parts.wide(velocity(params, x, t, batch.cond)), t)

  return generate


def adversarial(
  generate: Generate,
  teacher_features: Features,
  critic: Critic,
  *,
  form: str = "hinge",
  r1: float = 0.0,
  sigma: float = 0.01,
  time=TIME,
  ratio: int = 2,
) -> Objective:
  """A GAN of any generator against real data, on features of a frozen diffusion network.

      student   E g(D(x_t))                    hinge: g(d) = -d;  softplus: g(d) = softplus(-d)
      critic    E a(D(y_t)) + b(D(x_t)) + r1 E (D(y_t + sigma e) - D(y_t))^2
                hinge: a(d) = max(0, 1 - d), b(d) = max(0, 1 + d)
      with      x0 = generate(theta), y0 real, both noised to one t;  D = critic(features(., t))

  Its optimum is the *data's* distribution as far as the features tell it apart; the teacher lends
  its eyes, not its score, so nothing teaches what the data do not show. There is no distillation
  loss: start the student from the teacher.

  Traps: with hinge a critic that wins everywhere gives itself no gradient but the student a full
  one, of no direction: watch `right`, which should stay below 1, and use r1 or a lower rate of the
  critic. Hinge logits are no log ratio: `f_distill` cannot use them. The gradient goes through the
  frozen teacher into x_t, so the teacher must not be evaluated without gradients.

  Args:
    generate: `generate(params, batch, key) -> x0`.
    teacher_features: `(params of teacher, x, t, cond) -> features`.
    critic: `(params, features) -> logits` [B] or [B, P].
    form: "hinge" or "softplus".
    r1: weight of the approximate R1 (`vidstep.losses.gan`); 0 leaves it out, as the paper does.
    sigma: its step.
    time: sampler of the noise level at which videos are judged.
    ratio: the student is updated at every ratio-th step, the critic at all others.

  Returns:
    Objective with the roles "student" and "critic" and the frozen "teacher". Metrics of the
    student: `loss`, `loss_t0` .. `loss_t3`; of the critic: see `vidstep.losses.gan.separation`.

  Raises:
    ValueError: for an unknown form, a ratio below 2, a negative r1 or a sigma that is not positive.
  """
  separate = separation(generate, teacher_features, critic, form, time, r1, sigma)
  score = FORMS[form][2]

  def student_loss(trainable, nets, aux, batch, key, step):
    del step
    generate_key, diffuse_key = jax.random.split(key)
    x0 = parts.wide(generate(trainable, batch, generate_key))
    x_t, t, _ = diffuse(time, x0, diffuse_key)
    seen = teacher_features(network(nets, "teacher"), x_t, t, batch.cond)
    error = parts.mean_like(score(parts.wide(critic(network(nets, "critic"), seen))), t)
    value = jnp.mean(error)
    return value, ({"loss": value, **parts.by_time("loss", error, t, time)}, aux)

  def critic_loss(trainable, nets, aux, batch, key, step):
    del step
    value, metrics = separate(network(nets, "teacher"), trainable, nets, batch, key)
    return value, (metrics, aux)

  return Objective(
    roles=("student", "critic"),
    loss={"student": student_loss, "critic": critic_loss},
    due=student_last(ratio, ("critic",)),
    frozen=("teacher",),
  )
