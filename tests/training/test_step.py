"""The step against AdamW, clipping and EMA written out in NumPy float64."""

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from vidstep.training.state import all_networks
from vidstep.training.step import make_step


def build(toy, roles=("a", "b"), **kwargs):
  return jax.jit(make_step(toy.objective, toy.optimizers, toy.emas, roles, **kwargs))


def oracle(toy, steps, mutation=None):
  """Weights and average of role a after `steps` updates, b being frozen."""
  f64 = lambda tree: {k: np.asarray(v, np.float64) for k, v in tree.items()}
  p, x = f64(toy.state.nets["a"].params), np.asarray(toy.batch.x0, np.float64)
  target = f64(toy.state.nets["b"].params)["b"]
  ema = dict(p)
  m, v = ({k: np.zeros_like(a) for k, a in p.items()} for _ in range(2))
  lr, warmup, decay, clip = 0.1, 3, 0.2, 0.7
  # The power profile of relative width 0.1, found by bisection instead of the cubic's root.
  width = lambda g: np.sqrt(g + 1) / ((g + 2) * np.sqrt(g + 3))
  low, high = 0.0, 100.0
  for _ in range(100):
    middle = (low + high) / 2
    low, high = (middle, high) if width(middle) > 0.1 else (low, middle)
  norms = []
  for n in range(1, steps + 1):
    grad = {"w": np.mean(x * (p["w"] * x - 1), 0), "b": p["b"] - target}
    norm = np.sqrt(sum(np.sum(g**2) for g in grad.values()))
    norms.append(norm)
    if mutation != "clip":
      grad = {k: g * min(1, clip / norm) for k, g in grad.items()}
    rate = lr * min(1, (n if mutation != "warmup" else n - 1) / warmup)
    for k, g in grad.items():
      m[k] = 0.9 * m[k] + 0.1 * g
      v[k] = 0.999 * v[k] + 0.001 * g**2
      shrink = decay * p[k] if k == "w" or mutation == "decay" else 0
      hat = m[k] / (1 - 0.9**n) / (np.sqrt(v[k] / (1 - 0.999**n)) + 1e-8)
      p = p | {k: p[k] - rate * (hat + shrink)}
    beta = (1 - 1 / n) ** (low + (0 if mutation == "ema" else 1))
    ema = {k: beta * ema[k] + (1 - beta) * p[k] for k in p}
  return p, ema, norms


def run(toy, steps, **kwargs):
  step, state, norms = build(toy, ("a",), **kwargs), toy.state, []
  for _ in range(steps):
    state, metrics = step(state, toy.frozen, toy.batch)
    norms.append(metrics["a/grad_norm"])
  return state, norms


def test_follows_adamw_clipping_schedule_and_power_ema(toy):
  state, norms = run(toy, 5)
  params, ema, expected = oracle(toy, 5)
  chex.assert_trees_all_close(state.nets["a"].params, params, rtol=2e-5, atol=2e-6)
  chex.assert_trees_all_close(state.nets["a"].ema, ema, rtol=2e-5, atol=2e-6)
  np.testing.assert_allclose(norms, expected, rtol=1e-5)
  assert max(expected) > 0.7  # clipping was at work, and the norm is that before it


@pytest.mark.parametrize("mutation", ["clip", "warmup", "decay", "ema"])
def test_the_oracle_notices_mutations(toy, mutation):
  state, _ = run(toy, 5)
  params, ema, _ = oracle(toy, 5, mutation)
  ours = (state.nets["a"].params, state.nets["a"].ema)
  with pytest.raises(AssertionError):
    chex.assert_trees_all_close(ours, (params, ema), rtol=1e-3)


def test_accumulation_equals_the_big_batch(toy):
  whole, _ = run(toy, 3)
  parts, _ = run(toy, 3, accumulate=4)
  chex.assert_trees_all_close(whole.nets, parts.nets, rtol=2e-5, atol=1e-6)
  assert int(parts.aux["calls"]) == 12


def test_microbatches_draw_their_own_noise_and_metrics_are_their_mean(toy):
  _, metrics = build(toy, ("a",), accumulate=2)(toy.state, toy.frozen, toy.batch)
  key = jax.random.fold_in(jax.random.fold_in(jax.random.key(3), 0), 0)
  draws = [jax.random.normal(jax.random.fold_in(key, m)) for m in range(2)]
  np.testing.assert_allclose(metrics["a/draw"], np.mean(draws), rtol=1e-6)


def test_only_due_roles_change_and_keep_their_own_clock(toy):
  state = toy.state
  for number in range(3):
    before = state
    roles = toy.objective.due(number)
    state, _ = build(toy, roles)(state, toy.frozen, toy.batch)
    same = jax.tree.all(jax.tree.map(lambda x, y: bool((x == y).all()), *(
      s.nets["b"] for s in (before, state)
    )))  # fmt: skip
    assert same == ("b" not in roles)
  assert [int(state.nets[r].count) for r in "ab"] == [3, 2]
  assert int(state.step) == 3 and int(state.aux["calls"]) == 5


def test_keys_come_from_run_step_and_role(toy):
  state = toy.state.replace(step=jnp.int32(7))
  _, metrics = build(toy)(state, toy.frozen, toy.batch)
  for index, role in enumerate("ab"):
    key = jax.random.fold_in(jax.random.fold_in(jax.random.key(3), 7), index)
    assert metrics[f"{role}/draw"] == jax.random.normal(key)
    assert metrics[f"{role}/step"] == 7
  alone = build(toy, ("b",))(state, toy.frozen, toy.batch)[1]
  assert alone["b/draw"] == metrics["b/draw"]


def test_roles_see_each_other_as_the_step_began(toy):
  together, _ = build(toy, ("a", "b"))(toy.state, toy.frozen, toy.batch)
  swapped, _ = build(toy, ("b", "a"))(toy.state, toy.frozen, toy.batch)
  chex.assert_trees_all_close(together.nets, swapped.nets, rtol=1e-6)


def test_losses_are_given_every_network_by_name(toy):
  nets = all_networks(toy.state, toy.frozen)
  assert set(nets) == {"a", "a.ema", "b", "b.ema", "teacher"}
  assert nets["b.ema"] is nets["b"]  # no EMA: the weights themselves


def test_a_step_that_is_not_finite_changes_nothing(toy):
  bad = toy.batch.replace(x0=toy.batch.x0.at[0].set(jnp.nan))
  state, metrics = build(toy)(toy.state, toy.frozen, bad)
  assert not np.isfinite(metrics["a/loss"])
  data = lambda s: s.replace(key=jax.random.key_data(s.key))
  chex.assert_trees_all_equal(data(state), data(toy.state))


def test_bad_requests_say_what_to_change(toy):
  with pytest.raises(ValueError, match=r"must be among \('a', 'b'\)"):
    build(toy, ("c",))
  with pytest.raises(ValueError, match=r"batch of 8 cannot be cut into 3"):
    build(toy, ("a",), accumulate=3)(toy.state, toy.frozen, toy.batch)
