"""Low-rank factors: the gradient of the chain rule, at first the base, and little memory."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from mutation import assert_caught, mutant
from random_params import randomised

from configs.wan import sf_dmd
from experiments import setup
from vidstep.io import load_lora, merge_lora, save_lora
from vidstep.io.dit_names import dit_rules
from vidstep.losses import Batch, Objective
from vidstep.models import Cond, VideoDiT
from vidstep.training import lora, step
from vidstep.training.optim import Optimizer
from vidstep.training.state import init_state

pytestmark = pytest.mark.usefixtures("unoptimized")

DEPTH, WIDTH, RANK, ALPHA, BATCH = 2, 4, 2, 3.0, 3


# ------------------------------------------------------------------------------------------------
# The gradient of a step, against the chain rule in float64 NumPy
# ------------------------------------------------------------------------------------------------


def drawn(*shape, seed):
  return np.random.default_rng(seed).standard_normal(shape)


BASE = drawn(DEPTH, WIDTH, WIDTH, seed=0)
A, B = drawn(DEPTH, WIDTH, RANK, seed=1), drawn(DEPTH, RANK, WIDTH, seed=2)
X, Y = drawn(BATCH, WIDTH, seed=3), drawn(BATCH, WIDTH, seed=4)


def chain_rule():
  """Gradients in A and B of mean over samples of |x W_1 W_2 - y|^2, W = W0 + (alpha / r) A B."""
  weights = [BASE[i] + ALPHA / RANK * (A[i] @ B[i]) for i in range(DEPTH)]
  hidden = X @ weights[0]
  out = 2 * (hidden @ weights[1] - Y) / BATCH
  by_weight = [X.T @ (out @ weights[1].T), hidden.T @ out]
  grads = [
    (ALPHA / RANK * (g @ B[i].T), ALPHA / RANK * (A[i].T @ g)) for i, g in enumerate(by_weight)
  ]
  return {"a": np.stack([g[0] for g in grads]), "b": np.stack([g[1] for g in grads])}


def gradient_of_a_step(make_step, LoRA, accumulate):
  """What the real step hands to the optimizer, in float64."""

  def loss(trainable, nets, aux, batch, key, number):
    del nets, key, number
    first, second = trainable["blocks"]["q"]["kernel"]
    return jnp.mean(jnp.sum((batch.x0 @ first @ second - batch.cond) ** 2, -1)), ({}, aux)

  with jax.enable_x64(True):
    asis = Optimizer(lambda p: (), lambda grads, s, p: (grads, s), lambda n: jnp.float32(0))
    factors = {"blocks": {"q": {"a": jnp.asarray(A), "b": jnp.asarray(B)}}}
    how = LoRA(RANK, ALPHA, "q$")
    adapters = {"model": lambda trained, frozen: how.merge(frozen["model.base"], trained)}
    frozen = {"model.base": {"blocks": {"q": {"kernel": jnp.asarray(BASE)}}}}
    state = init_state({"model": factors}, {"model": asis}, {"model": None}, {}, jax.random.key(0))
    run = make_step(
      Objective(("model",), {"model": loss}), {"model": asis}, {"model": None}, ("model",),
      accumulate=accumulate, adapters=adapters,
    )  # fmt: skip
    after, _ = run(state, frozen, Batch(jnp.asarray(X), jnp.asarray(Y)))
    moved = jax.tree.map(
      lambda new, old: np.asarray(new - old), after.nets["model"].params, factors
    )
    np.testing.assert_array_equal(frozen["model.base"]["blocks"]["q"]["kernel"], BASE)
  return moved["blocks"]["q"]


def check_gradient(make_step, LoRA, accumulate=1):
  got = gradient_of_a_step(make_step, LoRA, accumulate)
  for side, want in chain_rule().items():
    np.testing.assert_allclose(got[side], want, rtol=1e-10)


@pytest.mark.parametrize("accumulate", [1, BATCH])
def test_the_gradient_in_the_factors_is_that_of_the_chain_rule(accumulate):
  check_gradient(step.make_step, lora.LoRA, accumulate)


@pytest.mark.parametrize(
  ("old", "new"),
  [
    ("self.scale * jnp.matmul(a, b,", "jnp.matmul(a, b,"),
    ("jnp.matmul(a, b,", "jnp.matmul(a, jax.lax.stop_gradient(b),"),
    ("self.alpha / self.rank", "self.alpha"),
  ],
)
def test_wrong_factors_are_caught(old, new):
  assert_caught(check_gradient, step.make_step, mutant(lora, old, new).LoRA)


def test_a_step_that_trains_on_the_frozen_copy_is_caught():
  wrong = mutant(step, "whole(role, trainable, frozen", "whole(role, nets_now[role], frozen")
  wrong.nets_now = {"model": {"blocks": {"q": {"a": jnp.asarray(A), "b": jnp.asarray(B)}}}}
  assert_caught(check_gradient, wrong.make_step, lora.LoRA)


# ------------------------------------------------------------------------------------------------
# The network
# ------------------------------------------------------------------------------------------------


@functools.cache
def network(scan, dtype=jnp.float32):
  model = VideoDiT(
    dim=16, heads=2, depth=2, ffn_dim=24, text_dim=5, in_channels=3, out_channels=3, scan=scan,
    dtype=dtype,
  )  # fmt: skip
  x, cond = jnp.asarray(drawn(1, 2, 2, 2, 3, seed=5), jnp.float32), Cond(text=jnp.ones((1, 3, 5)))
  init = lambda: model.init(jax.random.key(0), x, jnp.ones(1), cond=cond)["params"]
  params = randomised(jax.eval_shape(init))
  run = jax.jit(lambda params: model.apply({"params": params}, x, jnp.full(1, 0.7), cond=cond).v)
  return model, params, run


@pytest.mark.parametrize("scan", [True, False])
@pytest.mark.parametrize("targets", ["attention", "linear"])
def test_at_first_the_network_is_its_base_bit_for_bit(scan, targets):
  for dtype in (jnp.float32, jnp.bfloat16):
    _, params, run = network(scan, dtype)
    how = lora.LoRA(RANK, targets=targets)
    factors = how.init(jax.random.key(1), params)
    np.testing.assert_array_equal(run(how.merge(params, factors)), run(params))
    other = jax.tree.map(lambda x: x + 0.3, factors)  # and it can become another
    assert np.abs(run(how.merge(params, other)) - run(params)).max() > 1e-2


def check_export(LoRA, path):
  """Factors that are written, read and merged by others' names are those that were applied."""
  model, params, run = network(True)
  how = LoRA(RANK, ALPHA, "linear")
  factors = jax.tree.map(
    lambda x: x + 0.1 * jnp.cos(jnp.arange(x.size, dtype=x.dtype)).reshape(x.shape),
    how.init(jax.random.key(1), params),
  )
  save_lora(path, how.export(factors), dit_rules(model))
  there = merge_lora(params, load_lora(path, dit_rules(model)))
  here = how.merge(params, factors)
  for a, b in zip(jax.tree.leaves(there), jax.tree.leaves(here), strict=True):
    np.testing.assert_allclose(a, b, atol=2e-7)
  np.testing.assert_allclose(run(there), run(here), atol=1e-5)


def test_exported_factors_merge_to_what_was_applied(tmp_path):
  check_export(lora.LoRA, tmp_path / "lora.safetensors")
  wrong = mutant(lora, "b = self.scale * b", "b = 1.0 * b").LoRA
  assert_caught(check_export, wrong, tmp_path / "wrong.safetensors")


def test_targets_choose_layers_by_name_or_pattern():
  _, params, _ = network(False)
  paths = lambda targets: set(lora.LoRA(1, targets=targets).layers(params))
  blocks = ("blocks_0", "blocks_1")
  attention = {f"{b}/{k}_attn/{n}" for b in blocks for k in ("self", "cross") for n in "qkvo"}
  assert paths("attention") == attention
  assert paths("linear") == attention | {f"{b}/ffn_{s}" for b in blocks for s in ("in", "out")}
  assert paths("blocks_1/self_attn/[qv]$") == {f"blocks_1/self_attn/{n}" for n in "qv"}


def test_what_makes_no_sense_is_refused():
  _, params, _ = network(False)
  with pytest.raises(ValueError, match="'nowhere' fits no linear layer: choose one of attention,"):
    lora.LoRA(1, targets="nowhere").layers(params)
  with pytest.raises(ValueError, match="is no regular expression"):
    lora.LoRA(1, targets="(").layers(params)
  with pytest.raises(ValueError, match=r"lora\.rank=0"):
    lora.parse_lora({"rank": 0, "alpha": None})
  with pytest.raises(ValueError, match=r"lora\.alpha is given but no lora\.rank"):
    lora.parse_lora({"rank": None, "alpha": 2.0})
  assert lora.parse_lora(None) is None and lora.parse_lora({"rank": None}) is None


# ------------------------------------------------------------------------------------------------
# Memory
# ------------------------------------------------------------------------------------------------


def size(tree):
  return sum(x.size * x.dtype.itemsize for x in jax.tree.leaves(tree))


def test_what_is_trained_is_the_factors_and_bases_are_held_once():
  """Wan 14B as teacher, fake score and base at once: counted, nothing allocated."""
  run = setup.build(sf_dmd.get_config("14b,lora"), data=False)
  state = jax.eval_shape(lambda key: run.init(key, {}), jax.random.key(0))
  for role, (width, depth) in {"student": (1536, 30), "fake": (5120, 40)}.items():
    net = state.nets[role]
    factors = 4 * 8 * depth * 128 * (width + width)  # float32, 8 matrices a block
    assert size(net.params) == size(net.ema) == factors
    assert 2 * factors <= size(net.opt) <= 2 * factors + 64
  assert set(run.frozen) == {"teacher", "student.base"}
  assert set(run.references) == {"teacher", "student.base", "fake.base"}
  held = [size(run.frozen[name]) / 2e9 for name in ("teacher", "student.base")]
  np.testing.assert_allclose(held, [14.29, 1.42], rtol=0.02)  # two bytes a parameter
  whole = setup.build(sf_dmd.get_config("14b"), data=False)
  assert set(whole.frozen) == {"teacher"} and not whole.adapters
