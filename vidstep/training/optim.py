"""Optimizers, schedules and EMA decays, each a function of a role's own update count."""

import functools
import math
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
import optax.contrib

from vidstep.models.dit import layer_axes

SCHEDULES = {
  "constant": lambda u: jnp.ones_like(u),
  "linear": lambda u: 1 - u,
  "cosine": lambda u: (1 + jnp.cos(math.pi * u)) / 2,
}


class Optimizer(NamedTuple):
  """An optax transformation with its learning rate in sight.

  Attributes:
    init: params -> optimizer state.
    update: (grads, state, params) -> (updates, state).
    lr: update count -> learning rate, for the log.
  """

  init: Callable
  update: Callable
  lr: Callable


def learning_rate(lr, *, warmup=0, schedule="constant", steps=1):
  """`lr min(1, (n + 1) / warmup) s((n - warmup) / (steps - warmup))` at update n.

  s falls from 1 to 0 over the rest of the run: "constant" (never), "linear" or "cosine"
  (Loshchilov and Hutter 2017). The first update already has a rate above 0.

  Args:
    lr: peak learning rate.
    warmup: updates of linear warm-up.
    schedule: a name in `SCHEDULES`.
    steps: updates in all.

  Returns:
    A function update count -> float32 learning rate.

  Raises:
    ValueError: for an unknown schedule or a warm-up that leaves nothing to schedule.
  """
  if schedule not in SCHEDULES:
    raise ValueError(f"Unknown schedule {schedule!r}: choose one of {sorted(SCHEDULES)}.")
  if schedule != "constant" and steps <= warmup:
    raise ValueError(f"A {schedule} schedule of {steps} steps ends within its warm-up ({warmup}).")

  def at(count):
    n = jnp.asarray(count, jnp.float32)
    ramp = jnp.minimum(1.0, (n + 1) / max(warmup, 1))
    return (
      lr * ramp * SCHEDULES[schedule](jnp.clip((n - warmup) / max(steps - warmup, 1), 0.0, 1.0))
    )

  return at


def adamw(lr, *, b1=0.9, b2=0.999, eps=1e-8, weight_decay=0.0, clip=None, muon=None, **schedule):
  """AdamW (Loshchilov and Hutter 2019), behind global-norm clipping and a schedule.

  Weight decay spares vectors and scalars (biases, norms, embeddings of one axis). Blocks that are
  stacked (`VideoDiT.scan`) are updated as they are one by one: an axis of layers makes no matrix of
  a vector, nor three axes of a matrix.

  Args:
    lr: peak learning rate.
    b1: decay of the first moment; consistency and distribution matching use 0.
    b2: decay of the second moment.
    eps: added to the root of the second moment.
    weight_decay: decoupled weight decay, multiplied by the learning rate.
    clip: largest global gradient norm; None does not clip.
    muon: peak rate of matrices under Muon (Jordan 2024: momentum 0.95, made orthogonal); what is no
      matrix stays with AdamW at `lr`. None: AdamW for all.
    **schedule: `warmup`, `schedule`, `steps` of `learning_rate`.

  Returns:
    An `Optimizer`.

  Raises:
    ValueError: if lr, clip or muon is not positive.
  """
  if lr <= 0:
    raise ValueError(f"The learning rate must be positive, got {lr}.")
  if clip is not None and clip <= 0:
    raise ValueError(f"clip must be positive (or None for no clipping), got {clip}.")
  if muon is not None and muon <= 0:
    raise ValueError(f"muon must be positive (or None for AdamW alone), got {muon}.")
  rate = learning_rate(lr, **schedule)
  if muon is None:
    decayed = functools.partial(_by_axes, lambda axes: axes > 1)
    descend = optax.adamw(rate, b1=b1, b2=b2, eps=eps, weight_decay=weight_decay, mask=decayed)
  else:
    matrix = optax.contrib.MuonDimensionNumbers(-2, -1)
    descend = optax.contrib.muon(
      learning_rate(muon, **schedule),
      weight_decay=weight_decay,
      adam_learning_rate=rate,
      adam_b1=b1,
      adam_b2=b2,
      muon_weight_dimension_numbers=functools.partial(
        _by_axes, lambda axes: matrix if axes == 2 else None
      ),
    )
  tx = optax.chain(optax.identity() if clip is None else optax.clip_by_global_norm(clip), descend)

  def update(grads, state, params):
    # Optax raises floats to integer powers, which strict promotion forbids.
    with jax.numpy_dtype_promotion("standard"):
      return tx.update(grads, state, params)

  return Optimizer(tx.init, update, rate)


def _by_axes(choose, params):
  """choose(axes) for every leaf: how many it has in a single block."""
  return jax.tree_util.tree_map_with_path(lambda path, p: choose(p.ndim - layer_axes(path)), params)


def constant_ema(decay):
  """`beta_n = min(decay, (1 + n) / (10 + n))` at update n: constant once the start is forgotten.

  Without the ramp a short run would average its random initialisation in.
  """
  if not 0 <= decay < 1:
    raise ValueError(f"A constant EMA decay lies in [0, 1), got {decay}.")

  def at(count):
    n = jnp.asarray(count, jnp.float32)
    return jnp.minimum(decay, (1 + n) / (10 + n))

  return at


def power_ema(length):
  """`beta_n = (1 - 1/n)^(gamma + 1)` at update n = 1, 2, ...: a profile that grows with the run.

  The weight of update i in the average at n goes as (i/n)^gamma. Its standard deviation relative
  to n is `length = sqrt(gamma + 1) / ((gamma + 2) sqrt(gamma + 3))`, which fixes gamma: the largest
  real root of `g^3 + 7 g^2 + (16 - length^-2) g + 12 - length^-2` (Karras et al. 2024, section 3
  and appendix C). rCM uses length 0.05 to 0.1.
  """
  if not 0 < length < 0.28:
    raise ValueError(f"A power EMA needs a relative length in (0, 0.28), got {length}.")
  inverse = float(length) ** -2
  gamma = float(np.roots([1, 7, 16 - inverse, 12 - inverse]).real.max())
  return lambda n: (1 - 1 / jnp.maximum(jnp.asarray(n, jnp.float32), 1.0)) ** (gamma + 1)


EMAS = {"constant": constant_ema, "power": power_ema}


def parse_ema(text):
  """ "constant:0.999", "power:0.05" or "none" -> decay function or None.

  Raises:
    ValueError: for anything else, naming the three forms.
  """
  name, _, number = str(text).partition(":")
  if text == "none":
    return None
  try:
    number = float(number)
  except ValueError:
    name = None
  if name not in EMAS:
    raise ValueError(f'Unknown EMA {text!r}: write "constant:0.999", "power:0.05" or "none".')
  return EMAS[name](number)
