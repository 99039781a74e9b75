"""A clip decoded or encoded in pieces is the clip decoded or encoded at once."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests.mutation import assert_caught
from vidstep.models import vae as vaes
from vidstep.models.vae import WanVAE, stream

VAE = WanVAE(
  base=2,
  channels=2,
  multipliers=(1, 2, 2),
  depth=1,
  temporal=(True, True),
  mean=(0.1, -0.2),
  std=(1.1, 2.0),
)


def random_params(vae, seed=0):
  """Every parameter random, variance kept by kernels."""
  blank = jnp.zeros((1, 1, 4, 4, 3))
  like = jax.eval_shape(lambda: vae.init(jax.random.key(0), blank))["params"]
  rng = np.random.default_rng(seed)

  def draw(path, a):
    name = path[-1].key
    width = np.prod(a.shape[:-1]) ** -0.5 if name == "kernel" else 0.2
    return ((name == "scale") + width * rng.standard_normal(a.shape)).astype(np.float32)

  return jax.tree_util.tree_map_with_path(draw, like)


PARAMS = random_params(VAE)
LATENTS = np.random.default_rng(1).standard_normal((2, 7, 2, 3, 2)).astype(np.float32)
VIDEO = np.random.default_rng(2).uniform(-1, 1, (1, 25, 8, 4, 3)).astype(np.float32)

decode = jax.jit(partial(vaes.decode, VAE))
encode = jax.jit(partial(vaes.encode, VAE))
decode_chunk = jax.jit(partial(vaes.decode_chunk, VAE))
encode_chunk = jax.jit(partial(vaes.encode_chunk, VAE))


def in_chunks(run, x, sizes, forget=False):
  """Runs over x in chunks of the given sizes, handing the state on."""
  state, parts, start = None, [], 0
  for n in sizes:
    y, state = run(PARAMS, x[:, start : start + n], state)
    state = jax.tree.map(jnp.zeros_like, state) if forget else state
    parts.append(y)
    start += n
  assert start == x.shape[1]
  return np.concatenate(parts, axis=1)


@pytest.mark.parametrize("sizes", [(1,) * 7, (2, 4, 1)])
def test_decoding_in_chunks_is_decoding_at_once_bit_for_bit(sizes):
  want = decode(PARAMS, LATENTS)
  assert want.shape == (2, 25, 8, 12, 3) and np.std(want) > 0.1
  np.testing.assert_array_equal(in_chunks(decode_chunk, LATENTS, sizes), want)


@pytest.mark.parametrize("sizes", [(1, 4, 4, 4, 4, 4, 4), (5, 8, 12)])
def test_encoding_in_chunks_is_encoding_at_once_bit_for_bit(sizes):
  want = encode(PARAMS, VIDEO)
  assert want.shape == (1, 7, 2, 1, 2) and np.std(want) > 0.1
  np.testing.assert_array_equal(in_chunks(encode_chunk, VIDEO, sizes), want)


def test_going_from_latent_to_latent_is_one_pass_over_all_frames():
  vae = VAE.clone(dtype=jnp.float64)
  one = jax.jit(partial(vae.apply, mutable=["stream"]), static_argnames="method")
  with jax.enable_x64(True):
    for run, method, x in ((vaes.decode, "decode", LATENTS), (vaes.encode, "encode", VIDEO)):
      x = x.astype(np.float64)
      want = one({"params": PARAMS}, x, method=method)[0]
      np.testing.assert_allclose(jax.jit(partial(run, vae))(PARAMS, x), want, atol=1e-12)


@pytest.mark.parametrize(("at_once", "sizes"), [(3, (2, 3, 2)), (9, (7,))])
def test_several_latents_in_one_pass_are_one_after_the_other(at_once, sizes):
  vae = VAE.clone(dtype=jnp.float64)
  with jax.enable_x64(True):
    want = jax.jit(partial(vaes.decode, vae))(PARAMS, LATENTS.astype(np.float64))
    run = jax.jit(partial(vaes.decode_chunk, vae, at_once=at_once))
    got = in_chunks(run, LATENTS.astype(np.float64), sizes)
  np.testing.assert_allclose(got, want, atol=1e-12)


def check_memory(forget):
  got = in_chunks(decode_chunk, LATENTS, (1,) * 7, forget)
  np.testing.assert_allclose(got, decode(PARAMS, LATENTS), atol=1e-3)


def test_a_decoder_that_forgets_is_noticed():
  check_memory(forget=False)
  assert_caught(check_memory, True)


def test_a_stream_compiles_for_its_first_chunk_and_once_more():
  run = jax.jit(partial(vaes.decode_chunk, VAE))
  in_chunks(run, LATENTS, (1,) * 7)
  assert run._cache_size() == 2


def test_frames_that_come_later_change_nothing():
  other = LATENTS.copy()
  other[:, 4:] = 0
  a, b = decode(PARAMS, LATENTS), decode(PARAMS, other)
  np.testing.assert_array_equal(a[:, :13], b[:, :13])
  assert (np.abs(a - b)[:, 13:].max((0, 2, 3, 4)) > 1e-3).all()


def reach(vae):
  """Pixel frames before its newest one that a latent depends on, by differentiation."""
  apply = lambda p, x: vae.apply({"params": p}, x, method="encode", mutable=["stream"])[0]
  length = 4 * (stream._halo(vae) + 3) + 1
  video = np.random.default_rng(0).uniform(-1, 1, (1, length, 4, 4, 3)).astype(np.float32)
  last = lambda x: apply(random_params(vae), x)[:, -1].sum()
  felt = np.abs(jax.jit(jax.grad(last))(video)).max((0, 2, 3, 4)) > 0
  return length - 1 - np.argmax(felt)


@pytest.mark.parametrize("multipliers, temporal", [((1, 1), (True,)), ((2, 1), (False,))])
def test_the_halo_is_what_a_latent_depends_on(multipliers, temporal):
  vae = WanVAE(base=2, channels=2, multipliers=multipliers, depth=1, temporal=temporal,
               mean=(0, 0), std=(1, 1))  # fmt: skip
  time = 2 ** sum(temporal)
  assert time * (stream._halo(vae) - 1) < reach(vae) <= time * stream._halo(vae)


def test_the_halo_of_wan():
  assert stream._halo(WanVAE()) == 28


def check_slice(start, stop, missing):
  vae = WanVAE(base=2, channels=2, multipliers=(1, 1), depth=1, temporal=(True,),
               mean=(0, 0), std=(1, 1))  # fmt: skip
  video = np.random.default_rng(3).uniform(-1, 1, (1, 55, 4, 4, 3)).astype(np.float32)
  params = random_params(vae)
  frames, drop = vaes.slice_to_read(vae, start, stop)
  frames = slice(frames.start + 2 * missing, frames.stop)
  run = jax.jit(partial(vaes.encode, vae))
  got = run(params, video[:, frames])[:, drop - missing :]
  want = run(params, video)[:, start:stop]
  np.testing.assert_allclose(got, want, atol=1e-6)


@pytest.mark.parametrize("start, stop", [(5, 9), (20, 28)])
def test_a_slice_with_its_halo_is_encoded_as_in_the_whole_clip(start, stop):
  check_slice(start, stop, missing=0)


def test_a_slice_with_too_little_before_it_is_noticed():
  assert_caught(check_slice, 20, 28, 14)


@pytest.mark.parametrize("frames, state", [(4, None), (2, None), (5, "going on")])
def test_frames_that_do_not_divide_are_refused(frames, state):
  with pytest.raises(ValueError, match=r"a clip starts with 1 \+ 4 n frames"):
    vaes.encode_chunk(VAE, PARAMS, VIDEO[:, :frames], state)


def test_sides_that_do_not_divide_are_refused():
  with pytest.raises(ValueError, match="multiples of 4"):
    vaes.encode(VAE, PARAMS, VIDEO[:, :5, :6])


def test_an_empty_range_is_refused():
  with pytest.raises(ValueError, match="empty range"):
    vaes.slice_to_read(VAE, 3, 3)
