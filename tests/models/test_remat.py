"""What blocks keep changes how much memory a gradient takes and what is computed again, not it."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from random_params import randomised

from vidstep.masks import CausalFrames
from vidstep.models.dit import VideoDiT
from vidstep.models.layout import plain
from vidstep.models.remat import POLICIES
from vidstep.parallel.attention import sharded_attention
from vidstep.parallel.mesh import make_mesh

pytestmark = pytest.mark.usefixtures("unoptimized")
NAMES = [None, *(name for name in POLICIES if not name.endswith("_saveable"))]
FRAMES, SIDE = 4, 16


def gradient(remat, attend="xla_chunked"):
  """(params -> gradient of a network of six blocks, params)."""
  model = VideoDiT(
    dim=64, heads=4, depth=6, in_channels=2, out_channels=2, scan=True, remat=remat,
    attention=attend,
  )  # fmt: skip
  x = jnp.ones((1, FRAMES, SIDE, SIDE, 2)) * jnp.arange(4.0)[None, :, None, None, None]
  t, layout = jnp.full(1, 0.5), plain(FRAMES, mask=CausalFrames())
  init = lambda: model.clone(attention=None).init(jax.random.key(0), x, t)["params"]
  params = randomised(jax.eval_shape(init))
  loss = lambda params: (model.apply({"params": params}, x, t, layout=layout).v ** 2).sum()
  return jax.grad(loss), params


@functools.cache
def compiled(remat):
  fn, params = gradient(remat)
  program = jax.jit(fn).lower(params).compile()
  return jax.device_get(program(params)), program.memory_analysis().temp_size_in_bytes


@pytest.mark.parametrize("remat", NAMES[1:])
def test_the_gradient_is_that_of_a_network_that_keeps_everything(remat):
  for got, want in zip(*(jax.tree.leaves(compiled(r)[0]) for r in (remat, None)), strict=True):
    assert np.abs(want).max() > 0
    np.testing.assert_allclose(got, want, rtol=0, atol=1e-6 * np.abs(want).max())


def test_the_less_is_kept_the_less_memory_is_needed():
  need = {remat: compiled(remat)[1] for remat in NAMES}
  few, some = ("offload", "nothing", "attention"), ("dots", "dots_attention")
  assert max(need[r] for r in few) < min(need[r] for r in some) / 1.5
  assert max(need[r] for r in some) < need[None] / 2.5


def forwards(remat, attend="xla_chunked"):
  """How often a block computes the output of its attention, gradient included."""
  fn, params = gradient(remat, attend)
  return str(jax.make_jaxpr(fn)(params)).count("attention_forward[")


@pytest.mark.parametrize("place", ["one device", "heads", "ring"])
def test_attention_that_is_kept_is_not_computed_again(place):
  attend = "xla_chunked"
  if place != "one device":
    sizes = {"heads": (1, 1, 1, 2), "ring": (1, 1, 2, 1)}[place]
    attend = sharded_attention(make_mesh(*sizes, devices=jax.devices()[:2]))
  parts = 2 if place == "ring" else 1
  assert forwards("attention", attend) == forwards("dots_attention", attend) == parts
  assert forwards("nothing", attend) == forwards("dots", attend) == 2 * parts


def test_inputs_of_blocks_wait_in_the_memory_of_the_host():
  text = str(jax.make_jaxpr(gradient("offload")[0])(gradient("offload")[1]))
  assert "pinned_host" in text or "<host>" in text
  text = str(jax.make_jaxpr(gradient("nothing")[0])(gradient("nothing")[1]))
  assert not ("pinned_host" in text or "<host>" in text)


def test_beside_a_tangent_attention_that_is_kept_is_not_computed_again_either():
  def count(remat):
    model = VideoDiT(
      dim=32, heads=2, depth=2, in_channels=2, out_channels=2, scan=True, remat=remat,
      attention="xla_chunked",
    )  # fmt: skip
    x, one = jnp.ones((1, 2, 4, 4, 2)), jnp.ones(1)
    shapes = jax.eval_shape(lambda: model.init(jax.random.key(0), x, one))["params"]
    params = jax.tree.map(lambda a: jnp.ones(a.shape), shapes)

    def loss(params):
      apply = lambda x, t: model.apply({"params": params}, x, t).v
      v, dv = jax.jvp(apply, (x, one), (x, one))
      return ((v - jax.lax.stop_gradient(v + dv)) ** 2).sum()

    text = str(jax.make_jaxpr(jax.grad(loss))(params))
    return [text.count(f"attention_{name}[") for name in ("forward_tangent", "forward", "backward")]

  assert count("attention") == count(None) == [1, 0, 1]
  assert count("nothing") == [1, 1, 1]
