"""Schedules and EMA decays against their definitions."""

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from vidstep.models.dit import stack_blocks
from vidstep.training.optim import adamw, constant_ema, learning_rate, parse_ema, power_ema


def test_warmup_rises_linearly_and_starts_above_zero():
  rate = learning_rate(2.0, warmup=4)
  np.testing.assert_allclose([rate(n) for n in range(6)], [0.5, 1, 1.5, 2, 2, 2])


@pytest.mark.parametrize(("name", "middle"), [("linear", 0.5), ("cosine", 0.5), ("constant", 1)])
def test_schedules_fall_from_peak_to_zero_over_the_rest_of_the_run(name, middle):
  rate = learning_rate(1.0, warmup=10, schedule=name, steps=110)
  np.testing.assert_allclose(rate(10), 1, atol=1e-6)
  np.testing.assert_allclose(rate(60), middle, atol=1e-6)
  np.testing.assert_allclose(rate(110), 1 if name == "constant" else 0, atol=1e-6)
  quarter = {"linear": 0.75, "cosine": (1 + np.sqrt(0.5)) / 2, "constant": 1}[name]
  np.testing.assert_allclose(rate(35), quarter, atol=1e-6)


def weights(decay, n):
  """Weight of each update in the average after n of them."""
  w = np.zeros(n)
  for i in range(1, n + 1):
    beta = float(decay(i))
    w = beta * w
    w[i - 1] += 1 - beta
  return w


@pytest.mark.parametrize("length", [0.05, 0.1])
def test_power_ema_has_the_relative_width_it_names(length):
  n = 1500
  w = weights(power_ema(length), n)
  i = np.arange(1, n + 1)
  np.testing.assert_allclose(w.sum(), 1, rtol=1e-5)
  mean = np.sum(w * i)
  np.testing.assert_allclose(np.sqrt(np.sum(w * (i - mean) ** 2)) / n, length, rtol=0.01)


def test_power_ema_forgets_the_initial_weights_and_constant_ema_nearly():
  assert power_ema(0.05)(1) == 0
  decay = constant_ema(0.9)
  assert float(decay(np.int32(1))) == pytest.approx(2 / 11)
  assert float(decay(1000)) == pytest.approx(0.9)


@pytest.mark.parametrize("text", ["power", "power:", "exp:0.9", "none:1", "constant:x"])
def test_unknown_emas_name_the_three_forms(text):
  with pytest.raises(ValueError, match=r'"power:0.05"'):
    parse_ema(text)


def test_numbers_out_of_range_are_refused():
  for build, sentence in [
    (lambda: parse_ema("constant:1"), r"lies in \[0, 1\)"),
    (lambda: parse_ema("power:0.5"), "relative length"),
    (lambda: adamw(0.0), "learning rate must be positive"),
    (lambda: adamw(1.0, clip=-1.0), "clip must be positive"),
    (lambda: learning_rate(1.0, schedule="step"), "Unknown schedule"),
    (lambda: learning_rate(1.0, schedule="linear", warmup=5, steps=5), "within its warm-up"),
  ]:
    with pytest.raises(ValueError, match=sentence):
      build()


def test_muon_makes_steps_of_matrices_orthogonal_and_leaves_vectors_to_adam():
  params = {"w": jnp.zeros((4, 6)), "b": jnp.zeros(3)}
  grads = {"w": jax.random.normal(jax.random.key(0), (4, 6)), "b": jnp.asarray([1.0, -2.0, 0.5])}
  optimizer = adamw(1e-3, muon=0.1)
  updates, _ = optimizer.update(grads, optimizer.init(params), params)
  spread = lambda a: np.divide(*np.linalg.svd(np.asarray(a), compute_uv=False)[[0, -1]])
  assert spread(updates["w"]) < 1.3 < 2 < spread(grads["w"])  # all directions at one rate
  assert (np.sign(updates["w"]) == -np.sign(grads["w"])).mean() > 0.7
  np.testing.assert_array_equal(np.sign(updates["b"]), -np.sign(grads["b"]))
  assert np.abs(updates["b"]).max() < 2e-3  # of AdamW, at lr
  with pytest.raises(ValueError, match="muon must be positive"):
    adamw(1e-3, muon=0.0)


@pytest.mark.parametrize("options", [{"weight_decay": 0.3}, {"weight_decay": 0.3, "muon": 0.1}])
def test_stacked_blocks_are_updated_as_they_are_one_by_one(options):
  keys = iter(jax.random.split(jax.random.key(0), 20))
  shapes = {"kernel": (6, 4), "bias": (4,), "modulation": (1, 6, 4)}
  draw = lambda: {
    **{
      f"blocks_{i}": {k: jax.random.normal(next(keys), s) for k, s in shapes.items()}
      for i in (0, 1)
    },
    "head": {"kernel": jax.random.normal(next(keys), (4, 6)), "bias": jnp.ones(6)},
  }
  params, grads = draw(), draw()
  optimizer = adamw(1e-2, **options)
  one_by_one, _ = optimizer.update(grads, optimizer.init(params), params)
  grads, params = stack_blocks(grads, 2), stack_blocks(params, 2)
  stacked, _ = optimizer.update(grads, optimizer.init(params), params)
  chex.assert_trees_all_close(stacked, stack_blocks(one_by_one, 2), rtol=1e-5, atol=1e-7)
