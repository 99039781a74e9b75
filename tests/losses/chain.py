"""A Gaussian chain of three frames behind one of context, and its numbers in float64."""

import jax
import numpy as np
from videos import flat

from vidstep.teachers import gaussian

FRAMES, D = 3, 2
DIM, SHAPE = FRAMES * D, (FRAMES, 1, 1, D)
SHIFT = 3.0
CHAIN = gaussian.random_gaussian(0, shape=(1, 1, D), actions=1, memory=0.9, noise=0.5, push=1.0)
A, B, DRIFT, NOISE, START, SPREAD = (
  np.asarray(getattr(CHAIN, name), np.float64)
  for name in ("transition", "action", "drift", "noise_cov", "start_mean", "start_cov")
)
TRI = {"own": np.eye(FRAMES), "past": np.tri(FRAMES, k=-1), "until": np.tri(FRAMES)}


def gradient(objective, params, batch, **nets):
  role = objective.roles[0]
  loss = jax.jit(jax.value_and_grad(objective.loss[role], has_aux=True), static_argnums=5)
  nets = {"teacher": {}, role: params, **nets}
  (value, _), grads = loss(params, nets, {}, batch, jax.random.key(1), 10**6)
  return float(value), flat(grads)
