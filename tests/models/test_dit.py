import jax
import jax.numpy as jnp
import numpy as np
import pytest

from vidstep.masks import CausalFrames, token_info
from vidstep.models.cond import Cond
from vidstep.models.dit import VideoDiT, stack_blocks, unstack_blocks
from vidstep.models.layout import Layout, plain

T = np.float32([0.3, 0.8])


def close(a, b, atol=2e-5):
  np.testing.assert_allclose(np.float32(a), np.float32(b), atol=atol, rtol=0)


def differ(a, b, least=1e-3):
  assert np.abs(np.float32(a) - np.float32(b)).max() > least


@pytest.mark.parametrize("patch", [(1, 2, 2), (2, 1, 4)])
def test_output_has_the_shape_of_the_input_and_is_float32(net, normal, patch):
  _, params, apply = net(patch=patch)
  out = apply(params, normal(2, 4, 2, 8, 2), T)
  assert out.v.shape == (2, 4, 2, 8, 2) and out.v.dtype == jnp.float32
  assert out.cache is None and out.features == ()


def test_a_fresh_network_predicts_zero(normal):
  x = normal(2, 3, 4, 4, 2)
  fields = {"dim": 24, "heads": 2, "depth": 1, "in_channels": 2, "out_channels": 2}
  model = VideoDiT(**fields, text_dim=3, second_time=True, action_dim=2)
  params = jax.jit(model.init)(jax.random.key(0), x, T)["params"]
  assert all(a.dtype == jnp.float32 for a in jax.tree.leaves(params))
  cond = Cond(text=normal(2, 2, 3), actions=normal(2, 3, 2))
  apply = jax.jit(lambda p: model.apply({"params": p}, x, T, s=T * 0, cond=cond).v)
  assert not np.any(apply(params))


def test_per_frame_times_that_are_equal_give_the_per_sample_result(net, normal):
  _, params, apply = net()
  x = normal(2, 3, 4, 4, 2)
  together = apply(params, x, T).v
  close(together, apply(params, x, np.repeat(T[:, None], 3, 1)).v)
  differ(together, apply(params, x, np.repeat(T[:, None], 3, 1) * np.float32([1, 0.9, 1])).v)


def test_x0_prediction_is_the_same_network_read_otherwise(net, normal):
  """v = (x - x0) / max(t, t_min) with x0 what the v-network of the same parameters returns."""
  _, params, raw = net()
  x = normal(2, 3, 4, 4, 2)
  t = np.float32([[0.01, 0.05, 0.4], [0.0, 0.7, 1.0]])
  x0 = raw(params, x, t).v
  _, _, apply = net(prediction="x0", t_min=0.05)
  want = (x - x0) / np.maximum(t, 0.05)[:, :, None, None, None]
  close(apply(params, x, t).v, want, atol=1e-3)
  close((x - t[..., None, None, None] * apply(params, x, t).v)[1, 1:], x0[1, 1:])


def test_bfloat16_compute_keeps_times_and_output_in_float32(net, normal):
  _, params, full = net()
  _, _, low = net(dtype=jnp.bfloat16)
  x = normal(2, 3, 4, 4, 2)
  out = low(params, x, T).v
  assert out.dtype == jnp.float32
  assert np.abs(out - full(params, x, T).v).max() < 0.1 * np.std(full(params, x, T).v) + 0.05
  # bfloat16 cannot tell these times apart; a network whose time is float32 must.
  a, b = (low(params, x, np.float32([t, t])).v for t in (0.9375, 0.936))
  differ(a, b)


def numbered(model, params, x, frames):
  return model.apply({"params": params}, x, T, layout=Layout(token_info(frames))).v


def test_position_in_time_is_the_frame_number_not_the_index(net, normal):
  model, params, _ = net()
  x = normal(2, 3, 4, 4, 2)
  at = jax.jit(lambda x, frames: numbered(model, params, x, frames))
  base = at(x, jnp.int32([0, 1, 2]))
  close(base, at(x, jnp.int32([7, 8, 9])))  # only distances matter
  differ(base, at(x, jnp.int32([0, 1, 5])))
  close(base[:, ::-1], at(x[:, ::-1], jnp.int32([2, 1, 0])))  # the order of the sequence does not
  differ(base[:, ::-1], at(x[:, ::-1], jnp.int32([0, 1, 2])))
  # Numbers known while tracing, and numbers of each sample, give the same.
  close(base, jax.jit(lambda x: numbered(model, params, x, np.arange(3)))(x))
  each = at(x, jnp.int32([[0, 1, 2], [0, 1, 5]]))
  close(each[0], base[0])
  close(each[1], at(x, jnp.int32([0, 1, 5]))[1])


def test_patches_in_time_count_positions_in_patches(net, normal):
  model, params, _ = net(patch=(2, 2, 2))
  x = normal(2, 6, 4, 4, 2)
  at = jax.jit(lambda frames: numbered(model, params, x, frames))
  close(at(jnp.arange(6)), at(jnp.arange(2, 8)))
  differ(at(jnp.arange(6)), at(jnp.array([0, 1, 2, 3, 8, 9])))


def test_a_mask_hides_exactly_the_future(net, normal):
  """Frame i depends on frame j under CausalFrames if and only if j <= i."""
  model, params, _ = net()
  n = 4
  x = np.repeat(normal(1, n, 4, 4, 2), n + 1, 0)
  x[np.arange(n), np.arange(n)] += 1  # sample j has frame j changed, the last one none
  t = np.full((n + 1, n), 0.5, np.float32)

  def dependence(mask):
    v = np.asarray(
      jax.jit(lambda x: model.apply({"params": params}, x, t, layout=plain(n, mask=mask)).v)(x)
    )
    change = np.abs(v[:n] - v[n:]).max((2, 3, 4))
    assert not np.any((change > 1e-5) & (change < 1e-3))
    return change.T > 1e-4

  np.testing.assert_array_equal(dependence(CausalFrames()), np.tri(n, dtype=bool))
  assert dependence(None).all()


def test_every_time_of_a_frame_reaches_it(net, normal):
  model, params, _ = net(second_time=True)
  x, n = normal(1, 3, 4, 4, 2), 3
  t = np.full((1, n), 0.5, np.float32)
  s = np.full((1, n), 0.2, np.float32)
  run = jax.jit(
    lambda t, s: model.apply({"params": params}, x, t, s=s, layout=plain(n, mask=CausalFrames())).v
  )
  base = run(t, s)
  for which in (0, 1):
    for j in range(n):
      times = [t.copy(), s.copy()]
      times[which][0, j] += 0.1
      change = np.abs(run(*times) - base).max((0, 2, 3, 4))
      assert (change[j:] > 1e-4).all() and (change[:j] < 1e-5).all()


def test_no_second_time_means_equal_times(net, normal):
  _, params, apply = net(second_time=True)
  x = normal(2, 3, 4, 4, 2)
  close(apply(params, x, T).v, apply(params, x, T, s=T).v)
  differ(apply(params, x, T).v, apply(params, x, T, s=T * 0).v)


def test_time_scale_scales_every_time(net, normal):
  model, params, apply = net(second_time=True)
  x = normal(2, 3, 4, 4, 2)
  half = VideoDiT(**{f: getattr(model, f) for f in _fields(model)} | {"time_scale": 500.0})
  run = jax.jit(lambda t, s: half.apply({"params": params}, x, t, s=s).v)
  close(run(T, T / 4), apply(params, x, T / 2, s=T / 8).v)
  differ(run(T, T / 4), apply(params, x, T, s=T / 4).v)


def test_second_time_starts_as_nothing(net, normal):
  model, params, apply = net()
  x = normal(2, 3, 4, 4, 2)
  two = VideoDiT(**{f: getattr(model, f) for f in _fields(model)} | {"second_time": True})
  grown = jax.jit(two.init)(jax.random.key(0), x, T)["params"] | params
  run = jax.jit(lambda p: two.apply({"params": p}, x, T, s=T * 0).v)
  close(run(grown), apply(params, x, T).v)


def _fields(model):
  return [f for f in model.__dataclass_fields__ if f not in ("parent", "name")]


def test_text_counts_where_its_mask_is_true(net, normal):
  _, params, apply = net(text_dim=5)
  x, text = normal(2, 3, 4, 4, 2), normal(2, 4, 5)
  mask = np.array([[1, 1, 0, 0], [1, 0, 0, 0]], bool)
  run = lambda text, mask: apply(params, x, T, cond=Cond(text=text, text_mask=mask)).v
  base = run(text, mask)
  close(base, run(np.where(mask[..., None], text, 9).astype(np.float32), mask))
  differ(base[0], run(text + np.float32([0, 1, 0, 0])[:, None], mask)[0])
  differ(base, run(text, ~mask))
  close(run(text, np.ones((2, 4), bool)), apply(params, x, T, cond=Cond(text=text)).v)
  close(run(text, np.zeros((2, 4), bool)), apply(params, x, T).v)


def test_a_network_without_text_has_no_cross_attention(net):
  _, with_text, _ = net(text_dim=5)
  _, without, _ = net()
  assert {"cross_attn", "cross_norm"} <= set(with_text["blocks_0"]) and "text_embed" in with_text
  assert set(with_text["blocks_0"]) - set(without["blocks_0"]) == {"cross_attn", "cross_norm"}
  assert set(with_text) - set(without) == {"text_embed"}


def test_image_channels_reach_the_output(net, normal):
  _, params, apply = net(in_channels=5)
  x, image = normal(2, 3, 4, 4, 2), normal(2, 3, 4, 4, 3)
  differ(
    apply(params, x, T, cond=Cond(image=image)).v, apply(params, x, T, cond=Cond(image=-image)).v
  )


def test_features_are_the_outputs_of_the_blocks_asked_for(net, normal):
  _, params, apply = net(depth=3, features=(2, 0))
  x = normal(2, 3, 4, 6, 2)
  out = apply(params, x, T)
  assert [f.shape for f in out.features] == [(2, 3, 2, 3, 24)] * 2
  _, _, shallow = net(depth=1, features=(0,))
  close(out.features[1], shallow({k: params[k] for k in net(depth=1)[1]}, x, T).features[0])
  differ(*out.features)


@pytest.mark.parametrize("features", [(), (1,)])
def test_scanned_blocks_equal_unrolled_ones(net, normal, features):
  _, params, apply = net(text_dim=5, features=features)
  _, stacked, scanned = net(text_dim=5, features=features, scan=True)
  x, cond = normal(2, 3, 4, 4, 2), Cond(text=normal(2, 3, 5))
  converted = stack_blocks(params, 2)
  assert jax.tree.map(jnp.shape, converted) == jax.tree.map(jnp.shape, stacked)
  jax.tree.map(np.testing.assert_array_equal, unstack_blocks(converted, 2), params)
  jax.tree.map(close, apply(params, x, T, cond=cond), scanned(converted, x, T, cond=cond))


def test_rematerialisation_changes_no_gradient(net, normal):
  x = normal(2, 3, 4, 4, 2)
  params = net()[1]

  def gradient(params, **fields):
    model = net(**fields)[0]
    gradient = jax.grad(lambda p: jnp.square(model.apply({"params": p}, x, T).v).mean())
    jaxpr = str(jax.make_jaxpr(gradient)(params))
    return jax.jit(gradient)(params), "remat" in jaxpr or "checkpoint" in jaxpr

  base, off = gradient(params)
  unrolled, on = gradient(params, remat="nothing_saveable")
  scanned, also = gradient(stack_blocks(params, 2), remat="nothing_saveable", scan=True)
  assert (off, on, also) == (False, True, True)
  jax.tree.map(close, base, unrolled)
  jax.tree.map(close, base, unstack_blocks(scanned, 2))


def test_forward_mode_equals_differences_in_float64(net, rng):
  """d/dh F(x + h dx, t + h dt, s + h ds, p + h dp): five-point differences of the whole network."""
  with jax.enable_x64(True):
    model, params, _ = net(
      text_dim=3, action_dim=2, second_time=True, dtype=jnp.float64, prediction="x0"
    )
    wide = lambda a: jnp.asarray(a, jnp.float64)
    draw = lambda *shape: wide(rng.standard_normal(shape))
    cond = Cond(text=draw(1, 3, 3), text_mask=jnp.array([[True, True, False]]))
    layout = plain(3, mask=CausalFrames())

    def f(point):
      x, t, s, actions, p = point
      given = cond.replace(actions=actions)
      return model.apply({"params": p}, x, t, s=s, cond=given, layout=layout).v

    times = (wide([[0.5, 0.6, 0.7]]), wide([[0.2, 0.3, 0.1]]))
    point = (draw(1, 3, 2, 4, 2), *times, draw(1, 3, 2), jax.tree.map(wide, params))
    direction = jax.tree.map(lambda a: draw(*a.shape), point)
    _, got = jax.jit(lambda a, b: jax.jvp(f, (a,), (b,)))(point, direction)
    step = 1e-6
    run = jax.jit(lambda h: f(jax.tree.map(lambda a, b: a + h * b, point, direction)))
    at = lambda k: np.asarray(run(k * step))
    want = (8 * (at(1.0) - at(-1.0)) - (at(2.0) - at(-2.0))) / (12 * step)
    assert got.dtype == jnp.float64
    np.testing.assert_allclose(got, want, rtol=1e-5, atol=1e-5 * np.abs(want).max())
