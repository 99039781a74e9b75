"""A critic on a diffusion network's features: adversarial losses, and DMD2 with its GAN."""

from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp

from vidstep import paths
from vidstep.losses import parts
from vidstep.losses.base import Objective, Velocity, network
from vidstep.losses.dmd2 import (
  TIME,
  Generate,
  backward_simulation,
  diffuse,
  fake_regression,
  pull,
  score_gap,
  student_last,
)

# features(params, x [B, F, H, W, C], t [B], cond) -> list of [B, F', h, w, C']
Features = Callable[..., Sequence[jax.Array]]
# critic(params, features) -> logits [B] or [B, P]; large says real.
Critic = Callable[..., jax.Array]


def dmd2_gan(
  velocity: Velocity,
  teacher: Velocity,
  fake: Velocity,
  fake_features: Features,
  critic: Critic,
  *,
  times: Sequence[float] = (1.0, 15 / 16, 5 / 6, 5 / 8),
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
  """DMD2 as published, with its GAN (Yin et al. 2024b, sections 4.3 to 4.5).

  `adversarial_matching` of the samples of `backward_simulation`. The critic sees real data, so the
  student can become better than its teacher's score is. Its features are those of the fake score.

  Args:
    velocity: the student, `velocity(params, x [B, F, H, W, C], t [B], cond) -> v`.
    teacher: frozen, same signature.
    fake: learns the score of the student's samples; start it from the teacher's weights.
    fake_features: features of the fake's network.
    critic: a small head over them.
    times: the student's times, from 1 downwards; n steps use the first n.
    gan_weight, fake_weight, r1, sigma, time, ratio, guidance, unconditional, scale: see
      `adversarial_matching`; the defaults are those of the paper's SDXL.

  Returns:
    Objective with the roles "student", "fake", "critic" and the frozen "teacher".

  Raises:
    ValueError: as `backward_simulation` and `adversarial_matching`.
  """
  return adversarial_matching(
    backward_simulation(velocity, times),
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


def adversarial_matching(
  generate: Generate,
  teacher: Velocity,
  fake: Velocity,
  fake_features: Features,
  critic: Critic,
  *,
  gan_weight: float = 5e-3,
  fake_weight: float = 1e-2,
  r1: float = 0.0,
  sigma: float = 0.01,
  time=TIME,
  ratio: int = 5,
  guidance: float = 1.0,
  unconditional: Callable[[Any], Any] | None = None,
  scale: float = 1.0,
  emphasis: Callable | None = None,
  init_aux: Callable[[], Any] = dict,
) -> Objective:
  """Distribution matching of any generator, beside a critic that knows real data.

      student   scale E mean |x0 - sg[x0 - h (f_fake - f_T) / n]|^2 + gan_weight E softplus(-D(x_t))
      critic    E softplus(-D(y_t)) + softplus(D(x_t)) + r1 E (D(y_t + sigma e) - D(y_t))^2
      fake      E mean |v_fake(x_t, t) - (eps - sg x0)|^2 + fake_weight (the critic's loss)
      with      x0 = generate(theta), y0 real, both noised to one t;  D = critic(features(., t))

  At its optimum D = log(p_t / q_t), the log ratio of noised data to noised samples, and the student
  then descends E softplus(-D), which is least where q = p. h = 1 but for `f_distill`.

  The features are the fake score's own. As in the paper the critic's loss trains them too: that is
  the last term of the role "fake", which costs it a forward and backward more. fake_weight = 0
  trains the head alone and leaves the fake a pure score. Both roles are due at the same steps and
  each sees the other as it was: together that is the paper's joint step.

  r1 is APT's approximate R1 (Lin et al. 2025): for small sigma, r1 sigma^2 E |grad D|^2. It moves
  y_t, what the critic is asked about; public code moves y0 and then tells the critic the time of
  y_t, at which it never sees an input with so little noise.

  Args:
    generate: `generate(params, batch, key) -> x0`.
    teacher: frozen velocity.
    fake: velocity that learns the generator's distribution.
    fake_features: `(params of fake, x, t, cond) -> features`.
    critic: `(params of critic, features) -> logits` [B], or [B, P] for P verdicts a video, whose
      losses are averaged.
    gan_weight: of the adversarial term in the student's loss.
    fake_weight: of the critic's loss in the fake's.
    r1: weight of the approximate R1; 0 leaves it (and a forward) out.
    sigma: its step; APT takes 0.01 for images and 0.1 for video.
    time: sampler of t.
    ratio: the student is updated at every ratio-th step, fake and critic at all others.
    guidance: the teacher's; 1 is none. It pulls away from the data, to which the critic pulls back.
    unconditional: cond -> cond for the guidance.
    scale: factor on the matching term.
    emphasis: `(logits, t, aux) -> (h [B], aux, metrics)` (`f_distill`).
    init_aux: first value of aux.

  Returns:
    Objective with the roles "student", "fake" and "critic" and the frozen "teacher". Metrics of the
    student: those of `distribution_matching` and `adversarial`; of the fake: `loss`, `denoising`,
    `loss_t0` .. `loss_t3` (of the denoising); of the critic: see `separation`.

  Raises:
    ValueError: if ratio < 2, a weight is negative, sigma is not positive, or guidance comes without
      `unconditional`.
  """
  check_weights(gan_weight=gan_weight, fake_weight=fake_weight, r1=r1)
  teacher = parts.apply_guidance(teacher, guidance, unconditional)
  separate = separation(generate, fake_features, critic, "softplus", time, r1, sigma)
  regress = fake_regression(generate, fake, time)

  def student_loss(trainable, nets, aux, batch, key, step):
    del step
    generate_key, diffuse_key = jax.random.split(key)
    x0 = parts.wide(generate(trainable, batch, generate_key))
    x_t, t, _ = diffuse(time, x0, diffuse_key)
    held = jax.lax.stop_gradient(x_t)
    direction, metrics = score_gap(nets, teacher, fake, x0, held, t, batch.cond, time)
    seen = fake_features(network(nets, "fake"), x_t, t, batch.cond)
    logits = parts.wide(critic(network(nets, "critic"), seen))
    if emphasis is not None:
      h, aux, more = emphasis(jax.lax.stop_gradient(logits), t, aux)
      direction, metrics = direction * paths.expand(h, x0), {**metrics, **more}
    adversarial = jnp.mean(jax.nn.softplus(-logits))
    value = scale * pull(x0, direction) + gan_weight * adversarial
    return value, ({"loss": value, "adversarial": adversarial, **metrics}, aux)

  def fake_loss(trainable, nets, aux, batch, key, step):
    denoising_key, critic_key = jax.random.split(key)
    value, (metrics, aux) = regress(trainable, nets, aux, batch, denoising_key, step)
    metrics = {**metrics, "denoising": value}
    if fake_weight:
      head = network(nets, "critic")
      value += fake_weight * separate(trainable, head, nets, batch, critic_key)[0]
    return value, ({**metrics, "loss": value}, aux)

  def critic_loss(trainable, nets, aux, batch, key, step):
    del step
    value, metrics = separate(network(nets, "fake"), trainable, nets, batch, key)
    return value, (metrics, aux)

  return Objective(
    roles=("student", "fake", "critic"),
    loss={"student": student_loss, "fake": fake_loss, "critic": critic_loss},
    due=student_last(ratio, ("fake", "critic")),
    init_aux=init_aux,
    frozen=("teacher",),
  )


# ------------------------------------------------------------------------------------------------
# The critic's loss
# ------------------------------------------------------------------------------------------------

# name -> (loss on real logits, loss on generated logits, the generator's loss), elementwise
FORMS = {
  # Goodfellow et al. 2014, non-saturating: D -> log(p / q)
  "softplus": (lambda d: jax.nn.softplus(-d), jax.nn.softplus, lambda d: jax.nn.softplus(-d)),
  # Lim and Ye 2017, as in LADD: D -> sign(p - q), no ratio
  "hinge": (lambda d: jax.nn.relu(1 - d), lambda d: jax.nn.relu(1 + d), lambda d: -d),
}


def separation(
  generate: Generate, features: Features, critic: Critic, form: str, time, r1: float, sigma: float
):
  """The loss of a critic that tells noised data from noised samples.

  Args:
    generate: the generator; its samples are not differentiated.
    features: of the network that the critic sits on.
    critic: the head.
    form: a name in `FORMS`.
    time: sampler of t.
    r1: weight of the approximate R1.
    sigma: its step.

  Returns:
    separate(params of the features, params of the critic, nets, batch, key) -> (loss, metrics).
    Both kinds are noised to the same times, one for each pair. Metrics: `loss`, `real` and
    `generated` (mean logits; a critic that cannot tell gives the same to both), `right` (share of
    logits with the right sign), `r1`, `loss_t0` .. `loss_t3`.

  Raises:
    ValueError: for an unknown form, a negative r1 or a sigma that is not positive.
  """
  parts.check_choice("form", form, tuple(FORMS))
  check_weights(r1=r1)
  if not sigma > 0:
    raise ValueError(f"sigma, the step of the approximate R1, must be positive, got {sigma}.")
  real_loss, generated_loss, _ = FORMS[form]

  def separate(host, head, nets, batch, key):
    generate_key, diffuse_key, real_key, r1_key = jax.random.split(key, 4)
    x0 = jax.lax.stop_gradient(generate(network(nets, "student"), batch, generate_key))
    x_t, t, _ = diffuse(time, parts.wide(x0), diffuse_key)
    y0 = parts.wide(batch.x0)
    y_t = paths.interpolate(y0, parts.noise_like(real_key, y0), t)
    judge = lambda x: parts.wide(critic(head, features(host, x, t, batch.cond)))
    real, generated = judge(y_t), judge(x_t)
    error = parts.mean_like(real_loss(real) + generated_loss(generated), t)
    value = jnp.mean(error)
    right = (jnp.mean(real > 0) + jnp.mean(generated < 0)) / 2
    metrics = {"real": jnp.mean(real), "generated": jnp.mean(generated), "right": right}
    if r1:
      roughness = approximate_r1(judge, y_t, real, sigma, r1_key)
      value, metrics = value + r1 * roughness, {**metrics, "r1": roughness}
    return value, {**metrics, "loss": value, **parts.by_time("loss", error, t, time)}

  return separate


def approximate_r1(judge, x, logits, sigma, key):
  """`E (D(x + sigma e) - D(x))^2`, about `sigma^2 E |grad D|^2` (APT, Lin et al. 2025).

  R1 without the second derivatives that attention kernels lack.

  Args:
    judge: x -> logits.
    x: [B, ...] inputs.
    logits: `judge(x)`.
    sigma: size of the step.
    key: PRNG key.
  """
  return jnp.mean((judge(x + sigma * parts.noise_like(key, x)) - logits) ** 2)


def check_weights(**weights):
  """Raises a ValueError that names the first negative weight."""
  for name, value in weights.items():
    if not value >= 0:
      raise ValueError(f"{name} is the weight of a loss and must not be negative, got {value}.")
