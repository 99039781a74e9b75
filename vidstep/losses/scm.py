"""Continuous-time consistency (sCM): the jump to x0 does not change along a trajectory."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from vidstep import paths
from vidstep.losses import parts, tangents
from vidstep.losses.base import Objective, Velocity, network

TIME = paths.LogNormal()
TRIG = paths.TrigFlow()


def scm(
  velocity: Velocity,
  teacher: Velocity,
  *,
  path: str = "rf",
  norm: str = "rms",
  power: int = 1,
  c: float = 0.1,
  warmup: int = 1000,
  tangent: str = "jvp",
  delta: float = 1e-3,
  time=TIME,
  guidance: float = 1.0,
  unconditional: Callable[[Any], Any] | None = None,
  chunk: int | None = None,
  scale: float = 1.0,
) -> Objective:
  """Continuous-time consistency distillation (Lu and Song 2024; on rectified flow as Causal-rCM).

  With F = v_theta(x_t, t), F^- = sg F, r = min(1, step / warmup) and f(x, t) = x - t v_theta(x, t),

      rf     h = df/dt = v_T - F^- - r t dF^-/dt                                    Causal-rCM
      trig   g = cos df/dtau = -cos^2 (F^- - F_T) - r cos sin (x_tau + dF^-/dtau)   sCM
      L = E scale mean |F - F^- - h / (|h| + c)|^2

  where d/dt is along the teacher's trajectory, (dx/dt, dt) = (v_T, 1). trig is the same network
  seen through `paths.TrigFlow` (F, x_tau and the teacher's F_T are converted at the door): there
  g = cos(tau) b^2 h and dF = b dv with b = sqrt(t^2 + (1 - t)^2), so that with r = 1 and tiny c
  the two gradients differ by the factor b in [0.71, 1] alone.

  Its optimum is the consistency function of the guided teacher, where h = 0 for each sample:
  normalised or not. The value of the loss is |h|^2 / (|h| + c)^2, near 1 until |h| falls to c, and
  says nothing: watch `tangent_norm`.

  With times a frame (`chunk`) the frames move together, each in proportion to its own time (rf) or
  to t (1 - t) (trig), so that all become clean at once: `t d/dt` above is along (t v_T, t).

  Traps of public code that this avoids: the tangent comes with F from one `jax.jvp` of the network
  that is trained, and not from a second, no-gradient forward; times stay float32 up to the
  embedding (bfloat16 moves 937.5 to 936, which a derivative in time cannot take); c = 0.1 for the
  norm over *all* elements is inert on video (`tangents.normalize`). A NaN is not masked per sample,
  as rCM does: it comes from a network that overflows, and the trainer refuses and counts the step.
  Clip no gradients: with normalised tangents the clip would act on every step. A small network that
  embeds 1000 t (Wan's `time_scale`) has a dF/dt that is mostly noise: use a smaller scale.

  Args:
    velocity: the student, `velocity(params, x [B, F, H, W, C], t [B] or [B, F], cond) -> v`.
    teacher: the teacher, same signature.
    path: "rf" or "trig": in whose time, prediction and units the tangent is formed.
    norm: |h| is the "rms" (mean over elements) or, for c, the papers' "l2" (sum); "none" uses h.
    power: 1 for h / (|h| + c), 2 for h / (|h|^2 + c).
    c: see `power`.
    warmup: steps over which the derivative is faded in; 0: none. sCM 10000, Causal-rCM 1000.
    tangent: "jvp", or a difference in time ("semi") or in both ("difference"), see
      `tangents.derivative`.
    delta: step of the differences.
    time: sampler of t (of RF time, for trig too). Video adds log(F) / 2 to the mean in rCM.
    guidance: the teacher's, `v_u + w (v_c - v_u)`; 1 is none. It ends up in the student.
    unconditional: cond -> cond for the guidance (`vidstep.models.null_cond`).
    chunk: number of frames that share a time; None: all (as teacher forcing does too).
    scale: factor on the loss.

  Returns:
    Objective with the role "student", the frozen "teacher" and the metrics `loss`, `tangent_norm`
    (mean |h|, root mean square over elements) and both by quarter of t, `.._t0` .. `.._t3`.

  Raises:
    ValueError: on an unknown path, norm, power or tangent, a delta, c or warmup out of range, or
      guidance without `unconditional`.
  """
  teacher = parts.apply_guidance(teacher, guidance, unconditional)

  def field(nets, x, t, cond, x0, eps):
    del x0, eps
    return teacher(network(nets, "teacher"), x, t, cond)

  options = {"path": path, "norm": norm, "power": power, "c": c, "warmup": warmup, "scale": scale}
  options |= {"tangent": tangent, "delta": delta, "time": time, "chunk": chunk}
  loss = _consistency(velocity, field, **options)
  return Objective(roles=("student",), loss={"student": loss}, frozen=("teacher",))


def sct(
  velocity: Velocity,
  *,
  role: str = "model",
  path: str = "rf",
  norm: str = "rms",
  power: int = 1,
  c: float = 0.1,
  warmup: int = 1000,
  tangent: str = "jvp",
  delta: float = 1e-3,
  time=TIME,
  chunk: int | None = None,
  scale: float = 1.0,
) -> Objective:
  """Continuous-time consistency *training*: `scm` along `eps - x0`, without a teacher (sCM, sCT).

  h is linear in the velocity, and E[eps - x0 | x_t] is the velocity of the flow: with norm="none"
  the optimum is the consistency function of the data. **Normalised, it is another one.** h now has
  a spread even at the right network, and E[h / (|h| + c)] = 0 is a geometric median where E[h] = 0
  is a mean: modes that are rare or far away count for less. The bias goes as c grows, and where |h|
  hardly varies, as it does in many dimensions. The noise of h is df/dx (eps - x0 - v(x_t)): large
  where the flow expands, between modes.

  Args:
    velocity: the network, `velocity(params, x [B, F, H, W, C], t [B] or [B, F], cond) -> v`.
    role: its name.
    path: as all others, see `scm`.
    norm: see `scm`.
    power: see `scm`.
    c: see `scm`.
    warmup: see `scm`.
    tangent: see `scm`.
    delta: see `scm`.
    time: see `scm`.
    chunk: see `scm`.
    scale: see `scm`.

  Returns:
    Objective with one role and the metrics of `scm`.

  Raises:
    ValueError: as `scm`.
  """
  options = {"path": path, "norm": norm, "power": power, "c": c, "warmup": warmup, "scale": scale}
  options |= {"tangent": tangent, "delta": delta, "time": time, "chunk": chunk}
  field = lambda nets, x, t, cond, x0, eps: paths.velocity(x0, eps)
  return Objective(roles=(role,), loss={role: _consistency(velocity, field, **options)})


def _consistency(
  velocity, field, *, path, norm, power, c, warmup, tangent, delta, time, chunk, scale
):
  """The loss of both, along `field(nets, x, t, cond, x0, eps)`."""
  parts.check_choice("path", path, tuple(PATHS))
  tangents.check(tangent, delta)
  tangents.check_norm(norm, power, c)
  if warmup < 0:
    raise ValueError(f"warmup counts steps and must not be negative, got {warmup}.")

  def loss(trainable, nets, aux, batch, key, step):
    time_key, noise_key = jax.random.split(key)
    x0 = parts.wide(batch.x0)
    t = parts.draw_times(time, time_key, x0, chunk)
    eps = parts.noise_like(noise_key, x0)
    x = paths.interpolate(x0, eps, t)
    v = parts.wide(field(nets, x, t, batch.cond, x0, eps))
    network = lambda params, x, t: velocity(params, x, t, batch.cond)
    along = lambda *where: tangents.derivative(*where, tangent=tangent, delta=delta)
    value, g = PATHS[path](network, trainable, x, t, v, tangents.warmed_up(step, warmup), along)
    goal, size = tangents.normalize(jax.lax.stop_gradient(g), t, norm=norm, power=power, c=c)
    error = parts.mean_like((value - jax.lax.stop_gradient(value) - goal) ** 2, t)
    total = scale * jnp.mean(error)
    metrics = {"loss": total, "tangent_norm": jnp.mean(size)}
    metrics |= parts.by_time("loss", error, t, time)
    return total, (metrics | parts.by_time("tangent_norm", size, t, time), aux)

  return loss


def _rf(network, params, x, t, v, r, along):
  """F and h, for a network that takes RF states."""
  value, change = along(network, params, x, (t,), paths.expand(t, x) * v, (t,))
  return value, v - value - r * change


def _trig(network, params, x, t, v, r, along):
  """F and g of the same network as TrigFlow sees it."""
  tau = TRIG.time_from_rf(t)
  x, v = TRIG.from_rf(x, v, t)
  wrapped = lambda params, x, tau: TRIG.wrap(lambda x, t: network(params, x, t))(x, tau)
  cos, sin = (paths.expand(wave(tau), x) for wave in (jnp.cos, jnp.sin))
  value, change = along(wrapped, params, x, (tau,), cos * sin * v, (jnp.cos(tau) * jnp.sin(tau),))
  return value, -(cos**2) * (value - v) - r * (cos * sin * x + change)


PATHS = {"rf": _rf, "trig": _trig}
