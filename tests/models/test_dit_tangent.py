"""The tangent of a whole video DiT, as continuous-time objectives take it: exact, in one pass."""

import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from mutation import assert_caught

from vidstep.losses import mean_flow, scm
from vidstep.losses.base import Batch
from vidstep.losses.tangents import derivative
from vidstep.models.cond import Cond
from vidstep.models.velocity import velocity_fn

BATCH, SEEN, FRAMES, CHUNK = 2, 1, 4, 2
SHAPE = (BATCH, FRAMES, 4, 4, 2)


def teacher_forced(rng):
  """A condition with everything in it: context, clean frames, actions and padded text."""
  draw = lambda *shape: jnp.asarray(rng.standard_normal(shape))
  return Cond(
    text=draw(BATCH, 5, 3),
    text_mask=jnp.arange(5)[None] < jnp.asarray([[5], [2]]),
    actions=draw(BATCH, SEEN + FRAMES, 2),
    context=draw(BATCH, SEEN, *SHAPE[2:]),
    clean=draw(*SHAPE),
  )


def network(net, implementation, dtype):
  options = {"text_dim": 3, "action_dim": 2, "second_time": True, "time_scale": 10.0}
  model, params, _ = net(attention=implementation, dtype=dtype, **options)
  params = jax.tree.map(lambda a: jnp.asarray(a, dtype), params)
  return velocity_fn(model, chunk=CHUNK), params


def check_tangent(net, rng, implementation, moves, stray=0.0):
  """Along (v, 1, 0), or (v, 1, 1) if s moves, `derivative` equals central differences, float64."""
  with jax.enable_x64(True):
    velocity, params = network(net, implementation, jnp.float64)
    cond = teacher_forced(rng)
    x, v = (jnp.asarray(rng.standard_normal(SHAPE)) for _ in range(2))
    t = jnp.asarray(rng.uniform(0.3, 0.9, BATCH))
    s, one = 0.5 * t, jnp.ones_like(t)
    fn = lambda params, x, t, s: velocity(params, x, t, cond, s=s)
    exact = lambda: derivative(fn, params, x, (t, s), v, (one, one if moves else None))
    call, h = jax.jit(fn), 1e-5
    value, change = jax.jit(exact)()
    ahead = call(params, x + h * v, t + h, s + h * moves)
    behind = call(params, x - h * v, t - h, s - h * (moves + stray))
    wanted = np.asarray(ahead - behind) / (2 * h)
    np.testing.assert_allclose(value, call(params, x, t, s), atol=1e-12)
    np.testing.assert_allclose(change, wanted, atol=1e-7 * np.abs(wanted).max())


@pytest.mark.parametrize(("implementation", "moves"), [("xla", 1), ("xla_chunked", 0)])
def test_the_tangent_of_a_teacher_forced_network_equals_differences(
  net, rng, implementation, moves
):
  check_tangent(net, rng, implementation, moves)


def test_a_second_time_that_moves_a_little_fails_the_proof(net, rng):
  assert_caught(lambda: check_tangent(net, rng, "xla", 1, stray=0.01))


def kernels(program):
  found = re.findall(r"attention_(forward|forward_tangent|tangent|backward)\[", program)
  return {name: found.count(name) for name in found}


def test_a_step_of_a_continuous_objective_runs_the_network_once(net, rng):
  """Two blocks of self- and cross-attention: value, tangent and gradient in 4 + 4 kernels."""
  velocity, params = network(net, "xla_chunked", jnp.float32)
  cond = jax.tree.map(
    lambda a: a if a.dtype == bool else a.astype(jnp.float32), teacher_forced(rng)
  )
  batch = Batch(cond.clean, cond)
  teacher = lambda params, x, t, cond: 0 * x
  for objective in (scm(velocity, teacher), mean_flow(velocity, role="student")):
    loss = lambda params, loss=objective.loss["student"]: loss(
      params, {"teacher": None}, {}, batch, jax.random.key(0), 0
    )[0]
    program = str(jax.make_jaxpr(jax.value_and_grad(loss))(params))
    assert kernels(program) == {"forward_tangent": 4, "backward": 4}
