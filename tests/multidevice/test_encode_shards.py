"""A video encoded in parts by 8 devices has the latents of the whole clip."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P
from mutation import assert_caught, mutant
from random_params import randomised

from vidstep.models import vae as vaes
from vidstep.parallel import vae as parallel
from vidstep.parallel.mesh import make_mesh

pytestmark = pytest.mark.usefixtures("unoptimized")
VAE = vaes.WanVAE(
  base=4, channels=2, multipliers=(1, 1), depth=1, temporal=(True,), mean=(0.1, 0), std=(1, 2)
)
TIME = 2


@pytest.fixture(scope="module")
def clip():
  """Parameters, a clip behind the frame that is not looked at, and its latents."""
  video = jax.random.uniform(jax.random.key(0), (2, 2 * 32, 4, 4, 3), minval=-1, maxval=1)
  params = jax.eval_shape(lambda: VAE.init(jax.random.key(1), video[:, :1])["params"])
  params = randomised(params)
  return params, video, jax.jit(lambda p, x: vaes.encode(VAE, p, x))(params, video[:, TIME - 1 :])


def check(module, clip, sizes):
  params, video, want = clip
  mesh = make_mesh(*sizes)
  place = NamedSharding(mesh, P(("data", "fsdp"), "sequence"))
  run = jax.jit(lambda p, x: module.encode_shards(VAE, p, x, mesh))
  got = run(params, jax.device_put(video, place))
  assert got.sharding.is_equivalent_to(place, 5)
  np.testing.assert_allclose(got, want, atol=1e-5 * float(jnp.abs(want).max()))


@pytest.mark.parametrize("sizes", [(2, 1, 4, 1), (1, 1, 8, 1)])
def test_parts_are_those_of_the_whole_clip(clip, sizes):
  check(parallel, clip, sizes)


def test_pixels_arrive_as_bytes_or_floats(clip):
  params, video, _ = clip
  pixels = jnp.round((video + 1) * 127.5).astype(jnp.uint8)
  mesh = make_mesh(1, 1, 8)
  got = jax.jit(lambda x: parallel.encode_shards(VAE, params, x, mesh))(pixels)
  floats = pixels[:, TIME - 1 :].astype(jnp.float32) / 127.5 - 1
  want = jax.jit(lambda x: vaes.encode(VAE, params, x))(floats)
  np.testing.assert_allclose(got, want, atol=1e-5 * float(jnp.abs(want).max()))


def test_a_device_computes_less_than_the_clip():
  assert parallel.halo(vaes.WanVAE()) == 28
  assert 0 < parallel.halo(VAE) < 32 - 32 // 4  # so that the tests above mean something


@pytest.mark.parametrize(
  ("old", "new"),
  [
    ("halo(vae), (devices", "halo(vae) // 2, (devices"),
    ("(i, i + hops)", "(i + hops, i)"),
    ("-time * (reach - before)", "0"),
    ("[:, time - 1 :]", "[:, : 1 - time]"),
    ("frames), before, own", "frames), 0, own"),
  ],
)
def test_a_wrong_halo_is_noticed(clip, old, new):
  assert_caught(check, mutant(parallel, old, new), clip, (1, 1, 8, 1))


def test_frames_that_do_not_divide_are_refused(clip):
  params, video, _ = clip
  with pytest.raises(ValueError, match="63 frames do not divide among 8 devices in groups of 2"):
    parallel.encode_shards(VAE, params, video[:, 1:], make_mesh(1, 1, 8))
