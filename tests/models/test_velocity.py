import jax
import numpy as np

from vidstep.masks import TeacherForcing
from vidstep.models.cond import Cond
from vidstep.models.layout import teacher_forcing, unpack
from vidstep.models.velocity import velocity_fn

T = np.float32([0.3, 0.8])


def test_without_context_it_is_the_network(net, normal):
  model, params, apply = net(action_dim=2)
  x, cond = normal(2, 3, 4, 4, 2), Cond(actions=normal(2, 3, 2))
  got = jax.jit(velocity_fn(model))(params, x, T, cond)
  np.testing.assert_allclose(got, apply(params, x, T, cond=cond).v, atol=1e-6)


def test_context_is_a_clean_prefix_at_time_zero(net, normal):
  model, params, apply = net(action_dim=2, second_time=True)
  x, context, actions = normal(2, 3, 4, 4, 2), normal(2, 2, 4, 4, 2), normal(2, 5, 2)
  velocity = jax.jit(velocity_fn(model))
  s = T / 2
  got = velocity(params, x, T, Cond(actions=actions, context=context), s=s)
  prefix = lambda t: np.repeat(t[:, None], 5, 1) * np.float32([0, 0, 1, 1, 1])
  want = apply(
    params, np.concatenate([context, x], 1), prefix(T), s=prefix(s), cond=Cond(actions=actions)
  ).v[:, 2:]
  assert got.shape == x.shape
  np.testing.assert_allclose(got, want, atol=1e-5)
  other = velocity(params, x, T, Cond(actions=actions, context=-context), s=s)
  assert np.abs(got - other).max() > 1e-3


def test_noisy_context_frames_do_not_see_the_future_under_a_mask(net, normal):
  """With TeacherForcing as mask a noisy frame sees the context and itself, no other noisy one."""
  model, params, _ = net()
  velocity = jax.jit(velocity_fn(model, mask=TeacherForcing()))
  x, context = normal(2, 3, 4, 4, 2), normal(2, 2, 4, 4, 2)
  base = velocity(params, x, T, Cond(context=context))
  x[:, 1] += 1
  change = np.abs(velocity(params, x, T, Cond(context=context)) - base).max((0, 2, 3, 4))
  assert change[1] > 1e-3 and change[0] < 1e-5 and change[2] < 1e-5


def test_teacher_forcing_lets_each_input_reach_exactly_what_it_should(net, normal):
  """Clean frame j reaches noisy frames after it, noisy frame j itself alone; no other mask does."""
  model, params, _ = net(action_dim=2)
  n = 4
  f = 2 * n - 1  # clean 0 .. n-2, noisy 0 .. n-1
  video, noisy = normal(1, n, 4, 4, 2), normal(1, n, 4, 4, 2)
  actions = np.repeat(normal(1, n, 2), f + 1, 0)
  clean, noisy = np.repeat(video, f + 1, 0), np.repeat(noisy, f + 1, 0)
  for j in range(f):  # sample j has packed frame j changed, the last one nothing
    (clean if j < n - 1 else noisy)[j, j if j < n - 1 else j - n + 1] += 1
  t = np.full(f + 1, 0.6, np.float32)

  def reach(mask):
    def run(clean, noisy):
      x, times, cond, layout = teacher_forcing(
        noisy, t, Cond(actions=actions), clean=clean, mask=mask
      )
      v = model.apply({"params": params}, x, times, cond=cond, layout=layout).v
      return unpack(v, layout)

    v = np.asarray(jax.jit(run)(clean, noisy))
    change = np.abs(v[:f] - v[f:]).max((2, 3, 4))
    assert not np.any((change > 1e-5) & (change < 1e-3))
    return change > 1e-4

  got = reach(TeacherForcing())
  np.testing.assert_array_equal(got[: n - 1], ~np.tri(n, dtype=bool)[: n - 1])
  np.testing.assert_array_equal(got[n - 1 :], np.eye(n, dtype=bool))
  assert reach(None).all()
