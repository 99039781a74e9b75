"""A causal network over 8 simulated devices: the numbers of one, in every order of the frames."""

import functools
import importlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P
from mutation import assert_caught, mutant

from vidstep.causal.cached import CachedNetwork
from vidstep.causal.kv_cache import CachePolicy
from vidstep.causal.rollout import rollout
from vidstep.masks import TeacherForcing, Window
from vidstep.models import layout as layout_module
from vidstep.models.cond import Cond
from vidstep.models.dit import VideoDiT
from vidstep.models.positions import Positions
from vidstep.parallel.attention import ShardedAttention

# It compiles much: slow where others compute.
pytestmark = [pytest.mark.timeout(900), pytest.mark.usefixtures("unoptimized")]
SOURCE = importlib.import_module("vidstep.models.velocity")

# One frame of context, then chunks of 3, 3 and 2; a window of chunks, and a sink.
BATCH, SEEN, FRAMES, CHUNK = 2, 1, 8, 3
CHUNKS = np.arange(FRAMES) // CHUNK
MASK = Window(2, 1, "chunk")
MODEL = VideoDiT(
  dim=24, heads=4, depth=2, ffn_dim=32, in_channels=2, out_channels=2, text_dim=5, action_dim=2,
  scan=True,
)  # fmt: skip
ABSOLUTE, CAPPED = Positions(), Positions("capped", sink=1, cap=4)
HOW = {
  "ring": {"sequence": "seq", "method": "ring"},
  "all_to_all": {"sequence": "seq", "method": "all_to_all"},
}


@pytest.fixture(scope="module")
def mesh():
  return jax.make_mesh((2, 4), ("data", "seq"), axis_types=(AxisType.Auto,) * 2)


@functools.cache
def inputs():
  """Random parameters, none zero, and (x, t, cond)."""
  rng = np.random.default_rng(0)
  draw = lambda *shape: jnp.asarray(rng.standard_normal(shape), jnp.float32)
  x, t = draw(BATCH, FRAMES, 4, 4, 2), jnp.asarray(rng.uniform(size=(BATCH, FRAMES)), jnp.float32)
  cond = Cond(
    text=draw(BATCH, 6, 5),
    text_mask=jnp.arange(6)[None] < jnp.array([[6], [4]]),
    actions=draw(BATCH, SEEN + FRAMES, 2),
    context=draw(BATCH, SEEN, 4, 4, 2),
    clean=draw(BATCH, FRAMES, 4, 4, 2),
  )
  fresh = cond.replace(context=None, clean=None, actions=cond.actions[:, SEEN:])
  shapes = jax.eval_shape(lambda: MODEL.init(jax.random.key(0), x, t, cond=fresh))["params"]
  kernel = lambda path: path[-1].key == "kernel"
  params = jax.tree_util.tree_map_with_path(
    lambda path, a: draw(*a.shape) * (a.shape[-2] ** -0.5 if kernel(path) else 0.3), shapes
  )
  return params, x, t, cond


def velocity(source, shards=1, attend=None, positions=ABSOLUTE):
  model = MODEL.clone(attention="xla" if attend is None else attend)
  return source.velocity_fn(model, chunk=CHUNK, mask=MASK, shards=shards, positions=positions)


def everything(velocity):
  """fn(params, x, t, cond) -> gradients of a loss in all that is real, and the velocity."""

  def loss(reals, t, mask):
    params, x, cond = reals
    v = velocity(params, x, t, cond.replace(text_mask=mask))
    weights = jnp.cos(jnp.arange(v.size, dtype=jnp.float32)).reshape(v.shape)
    return (weights * v).sum(), v

  grad = jax.grad(loss, has_aux=True)
  return lambda p, x, t, c: grad((p, x, c.replace(text_mask=None)), t, c.text_mask)


def place(mesh, tree):
  """Frames over devices, as a packed sequence of them is; parameters, text, context everywhere."""
  params, x, t, cond = tree
  put = lambda a, *spec: jax.device_put(a, NamedSharding(mesh, P(*spec)))
  by_sample = jax.tree.map(lambda a: put(a, "data"), cond)
  cond = by_sample.replace(clean=put(cond.clean, "data", "seq"))
  return put(params), put(x, "data", "seq"), put(t, "data", "seq"), cond


@functools.cache
def alone():
  return jax.jit(everything(velocity(SOURCE)))(*inputs())


def assert_close(got, want):
  """To 1e-5 of the largest entry of each array."""
  paths = jax.tree_util.tree_leaves_with_path(want)
  for (path, b), a in zip(paths, jax.tree.leaves(got), strict=True):
    name, scale = jax.tree_util.keystr(path), max(1.0, float(jnp.abs(b).max()))
    np.testing.assert_allclose(a, b, rtol=0, atol=1e-5 * scale, err_msg=name)


@functools.cache
def over_devices(mesh, how, shards):
  """The velocity of the plain order; of the interleaved one its gradients, too."""
  run = velocity(SOURCE, shards, ShardedAttention(mesh, ("data",), **HOW[how]))
  run = run if shards == 1 else everything(run)
  return jax.jit(run).lower(*place(mesh, inputs())).compile()


@pytest.mark.parametrize("how", HOW)
def test_a_packed_forward_is_that_of_one_device(mesh, how):
  got = over_devices(mesh, how, 1)(*place(mesh, inputs()))
  assert_close(got, alone()[1])


def test_two_attentions_merged_are_those_of_one_device(mesh):
  """Capped positions, interleaved."""
  ring = ShardedAttention(mesh, ("data",), **HOW["ring"])
  got = jax.jit(velocity(SOURCE, 4, ring, CAPPED))(*place(mesh, inputs()))
  want = jax.jit(velocity(SOURCE, positions=CAPPED))(*inputs())
  assert_close(got, want)
  assert jnp.abs(want - alone()[1]).max() > 1e-2


@pytest.mark.parametrize("how", ["ring", "all_to_all"])
def test_interleaved_it_is_too_with_all_gradients(mesh, how):
  got = over_devices(mesh, how, 4)(*place(mesh, inputs()))
  assert_close(got, alone())


def test_every_frame_and_condition_has_a_gradient():
  (params, x, cond), v = alone()
  assert jnp.abs(v).max((0, 2, 3, 4)).min() > 0.1
  of = lambda a: np.abs(np.asarray(a)).max(tuple(i for i in range(a.ndim) if i != 1))
  assert of(x).min() > 1e-3 and of(cond.actions).min() > 1e-3 and of(cond.context).min() > 1e-3
  np.testing.assert_array_equal(of(cond.clean) > 1e-3, [True] * 6 + [False] * 2)
  assert of(cond.text).min() > 1e-3
  assert all(jnp.abs(leaf).max() > 0 for leaf in jax.tree.leaves(params))


@pytest.mark.parametrize("shards", [1, 4])
def test_nothing_later_changes_anything_earlier_bit_for_bit(mesh, shards):
  params, x, t, cond = inputs()
  last = lambda out: np.asarray(out if shards == 1 else out[1])
  run = lambda *args: last(over_devices(mesh, "ring", shards)(*place(mesh, args)))
  plain = run(params, x, t, cond)
  changes = {
    "noise": (params, x.at[:, 6].add(1), t, cond),
    "time": (params, x, t.at[:, 6].set(0.5), cond),
    "clean": (params, x, t, cond.replace(clean=cond.clean.at[:, 3].add(1))),
    "action": (params, x, t, cond.replace(actions=cond.actions.at[:, SEEN + 6].add(1))),
  }
  for name, args in changes.items():
    moved = np.abs(run(*args) - plain).max((0, 2, 3, 4))
    np.testing.assert_array_equal(moved[:6], 0, err_msg=name)
    assert moved[6:].min() > 1e-4, name


def check_orders(source):
  """On one device too the order of the frames in the sequence changes nothing."""
  run = jax.jit(velocity(source, shards=4))
  np.testing.assert_allclose(run(*inputs()), alone()[1], atol=1e-5)


def test_the_interleaved_order_is_only_an_order():
  check_orders(SOURCE)


@pytest.mark.parametrize(
  ("old", "new"),
  [
    ("number = _deal(clean_frames[None], noisy_frames[None], shards)[0]",
     "number = np.concatenate([clean_frames, noisy_frames])"),
    ("role = _deal(np.full((1, n), CLEAN), np.full((1, f), NOISY), shards)[0]",
     "role = np.repeat(np.int32([CLEAN, NOISY]), [n, f])"),
    ("t, layout.shards)", "t, 1)"),
    ("[:, :, n // p :]", "[:, ::-1, n // p :]"),
    ("clean=past[:, : len(kept)]", "clean=past[:, -len(kept) :]"),
  ],
)  # fmt: skip
def test_a_wrong_order_is_noticed(monkeypatch, old, new):
  broken = mutant(layout_module, old, new)
  for name in ("teacher_forcing", "pack_time", "unpack"):
    monkeypatch.setattr(SOURCE, name, getattr(broken, name))
  assert_caught(check_orders, SOURCE)


@pytest.mark.parametrize("shards", [1, 4])
def test_dealing_frames_out_moves_none_between_devices(mesh, shards):
  """Where video and clean copy lie by frames, packing is local; in the plain order not."""
  place = NamedSharding(mesh, P("data", "seq"))

  def there_and_back(x, t, clean):
    x, t, _, layout = layout_module.teacher_forcing(
      x, t, Cond(), clean=clean, chunks=CHUNKS, shards=shards
    )
    x, t = jax.lax.with_sharding_constraint((x, t), place)
    return layout_module.unpack(x, layout), layout_module.unpack(t, layout)

  x, t = jnp.zeros((BATCH, FRAMES, 4, 4, 2)), jnp.zeros((BATCH, FRAMES))
  args = jax.device_put((x, t, x), place)
  program = jax.jit(there_and_back, out_shardings=place).lower(*args).compile().as_text()
  moved = any(name in program for name in ("all-gather", "all-to-all", "collective-permute"))
  assert moved == (shards == 1)


# ------------------------------------------------------------------------------------------------
# Rolled out behind a cache
# ------------------------------------------------------------------------------------------------

ROLLED = 4  # frames, in chunks of 2
AXES = {
  "alone": None,
  "heads": {"batch": ("data",), "heads": "heads"},
  "heads and queries": {"batch": ("data",), "heads": "heads", "sequence": "seq"},
}


@functools.cache
def rolled(how):
  """fn(noise, cond) -> video: batch over two devices, heads and tokens of a chunk over others."""
  attend = "xla"
  mesh = jax.make_mesh((2, 2, 2), ("data", "seq", "heads"), axis_types=(AxisType.Auto,) * 3)
  if AXES[how] is not None:
    attend = ShardedAttention(mesh, **AXES[how])
  policy = CachePolicy(window=3, sink=1, positions="relative")
  network = CachedNetwork(
    MODEL.clone(attention=attend), policy, TeacherForcing() & Window(4, sink=1)
  )

  @jax.jit
  def run(params, noise, cond):
    return rollout(
      network, params, noise, cond, jax.random.key(0), chunk=2, times=(1.0, 0.5), solver="euler"
    )[0]

  def call(noise, cond):
    params = inputs()[0]
    if AXES[how] is not None:
      put = lambda a, *spec: jax.device_put(a, NamedSharding(mesh, P(*spec)))
      params, noise, cond = put(params), put(noise, "data"), put(cond, "data")
    return np.asarray(run(params, noise, cond))

  return call


def noise_and_cond():
  _, x, _, cond = inputs()
  return x[:, :ROLLED], cond.replace(clean=None, actions=cond.actions[:, : SEEN + ROLLED])


@pytest.mark.parametrize("how", ["heads", "heads and queries"])
def test_a_cached_rollout_is_that_of_one_device(how):
  noise, cond = noise_and_cond()
  want = rolled("alone")(noise, cond)
  assert np.abs(want - noise).max() > 0.3
  np.testing.assert_allclose(rolled(how)(noise, cond), want, atol=1e-5 * np.abs(want).max())


@pytest.mark.parametrize("how", ["heads", "heads and queries"])
def test_a_sharded_rollout_does_not_know_the_future(how):
  noise, cond = noise_and_cond()
  video = rolled(how)(noise, cond)
  later = cond.replace(actions=cond.actions.at[:, SEEN + 3].add(1))
  for args in ((noise.at[:, 3].add(1), cond), (noise, later)):
    moved = (rolled(how)(*args) != video).any((0, 2, 3, 4))
    np.testing.assert_array_equal(moved, [False, False, True, True])
