"""f-distill: distribution matching in any f-divergence, by weighing the score gap."""

from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp

from vidstep.losses import parts
from vidstep.losses.base import Objective, Velocity
from vidstep.losses.dmd2 import TIME, Generate, backward_simulation
from vidstep.losses.gan import Critic, Features, adversarial_matching

# h(r) = r^2 f''(r) up to a factor, for D_f = E_q f(p / q) with r = p / q, teacher over student.
DIVERGENCES = {
  "rkl": jnp.ones_like,  # f = -log r: DMD; seeks modes
  "srkl": lambda r: 1 / (1 + r),  # softened reverse KL, f = (r + 1) log(1/2 + 1/(2 r))
  "neyman": lambda r: 1 / r,  # f = (1 - r)^2 / r; seeks modes hardest
  "hellinger": jnp.sqrt,  # squared Hellinger, f = (1 - sqrt r)^2
  "js": lambda r: r / (1 + r),  # Jensen-Shannon, f = r log r - (r + 1) log((r + 1) / 2)
  "jeffreys": lambda r: 1 + r,  # f = (r - 1) log r, both KL
  "kl": lambda r: r,  # forward KL, f = r log r: covers modes
}
RANGE = (0.1, 20.0)
BINS = 10


def f_distill(
  velocity: Velocity,
  teacher: Velocity,
  fake: Velocity,
  fake_features: Features,
  critic: Critic,
  *,
  times: Sequence[float] = (1.0,),
  divergence: str = "js",
  decay: float = 0.99,
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
  """f-distill (Xu, Nie and Vahdat 2025): `f_matching` of the samples of `backward_simulation`.

  Args:
    velocity: the student, `velocity(params, x [B, F, H, W, C], t [B], cond) -> v`.
    teacher: frozen, same signature.
    fake: learns the score of the student's samples; start it from the teacher's weights.
    fake_features: features of the fake's network.
    critic: a small head over them; one logit a video.
    times: the student's times, from 1 downwards; n steps use the first n. The paper has one.
    divergence, decay: see `f_matching`.
    gan_weight, fake_weight, r1, sigma, time, ratio, guidance, unconditional, scale: see
      `vidstep.losses.gan.adversarial_matching`.

  Returns:
    Objective with the roles "student", "fake", "critic" and the frozen "teacher".

  Raises:
    ValueError: as `backward_simulation` and `f_matching`.
  """
  return f_matching(
    backward_simulation(velocity, times),
    teacher,
    fake,
    fake_features,
    critic,
    divergence=divergence,
    decay=decay,
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


def f_matching(
  generate: Generate,
  teacher: Velocity,
  fake: Velocity,
  fake_features: Features,
  critic: Critic,
  *,
  divergence: str = "js",
  decay: float = 0.99,
  **options,
) -> Objective:
  """Matches any generator to the teacher in an f-divergence (Xu et al. 2025, theorem 1).

      grad D_f(p_t | q_t) = E_q r^2 f''(r) (s_q - s_p) dx/dtheta,    r = p_t / q_t at x_t
      student   E scale mean |x0 - sg[x0 - h(r) / mean h (f_fake - f_T) / n]|^2 + the GAN's term
      with      r = clip(exp D(x_t)) / m(t),   h of `DIVERGENCES`

  p is the teacher's distribution, q the student's. The more h rises with r, the more weight samples
  have where the teacher is likelier than the student: towards covering modes. With "rkl" h = 1 and
  this is `dmd2_gan`, with gan_weight 0 `dmd2`.

  The ratio is the critic's, exp of its logit, which softplus leads to log(data / samples): where
  the data are not the teacher's own samples, r is not theirs either. Two things tame it, as in the
  authors' code: r is clipped to [0.1, 20] and divided by m(t), its running mean in each of 10 bins
  of time, since E_q r = 1 at every t; then h is divided by its mean over the batch, so that the
  divergence says where the gradient looks and not how long it is. m lives in `aux` and is updated
  before it is used. A mean over the batch is over all devices here.

  What weighing cannot do: r is only ever looked up at samples of the student. A mode that it never
  visits has r large nowhere and does not pull: "kl" covers modes among those in reach (the noise of
  x_t is the reach), and its weights grow so uneven that few samples of a batch count.

  Args:
    generate: `generate(params, batch, key) -> x0`.
    teacher: frozen velocity.
    fake: velocity that learns the generator's distribution.
    fake_features: features of the fake's network.
    critic: `(params, features) -> logits`; of several logits a video the mean is taken, which is a
      log ratio only for one.
    divergence: a name in `DIVERGENCES`.
    decay: of the running mean of r.
    **options: of `vidstep.losses.gan.adversarial_matching`.

  Returns:
    Objective as that of `adversarial_matching`; metrics of the student also `ratio` (mean of r
    before normalisation: 1 where the critic is right), `h_min` and `h_max` (of the normalised h).

  Raises:
    ValueError: on an unknown divergence, or a decay outside [0, 1).
  """
  parts.check_choice("divergence", divergence, tuple(DIVERGENCES))
  if not 0 <= decay < 1:
    raise ValueError(f"decay of the ratio's running mean must lie in [0, 1), got {decay}.")

  def emphasis(logits, t, aux):
    ratio = jnp.clip(jnp.exp(parts.mean_like(logits, t)), *RANGE)
    index = jnp.minimum((t * BINS).astype(jnp.int32), BINS - 1)
    member = jax.nn.one_hot(index, BINS, dtype=ratio.dtype)
    count, total = jnp.sum(member, 0), jnp.sum(member * ratio[:, None], 0)
    seen = decay * aux["ratio"] + (1 - decay) * total / jnp.maximum(count, 1)
    mean = jnp.where(count > 0, seen, aux["ratio"])
    h = DIVERGENCES[divergence](ratio / mean[index])
    h = h / jnp.mean(h)
    metrics = {"ratio": jnp.mean(ratio), "h_min": jnp.min(h), "h_max": jnp.max(h)}
    return h, aux | {"ratio": mean}, metrics

  init_aux = lambda: {"ratio": jnp.ones(BINS, jnp.float32)}
  return adversarial_matching(
    generate, teacher, fake, fake_features, critic, emphasis=emphasis, init_aux=init_aux, **options
  )
