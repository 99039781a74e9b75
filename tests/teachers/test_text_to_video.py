"""Text to video: step by step and chunk by chunk are the whole, and every condition counts."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from mutation import assert_caught, mutant

from tests.wan_release import CHANNELS, TEXT_DIM, TEXT_TOKENS, make_release
from vidstep.causal.cached import CachedNetwork
from vidstep.causal.guided import Guided
from vidstep.causal.kv_cache import CachePolicy
from vidstep.causal.rollout import rollout
from vidstep.models.cond import Cond
from vidstep.paths import shift_time
from vidstep.samplers import guided, sample, timestep_list
from vidstep.teachers import text_to_video
from vidstep.teachers.text_to_video import Sampler, Setting, image_condition, release_times
from vidstep.teachers.wan import open_wan

pytestmark = pytest.mark.usefixtures("unoptimized")


@pytest.fixture(scope="module")
def wan(tmp_path_factory):
  return open_wan(make_release(tmp_path_factory.mktemp("wan")), dtype=jnp.float32)


def drawn(seed, *shape):
  return np.random.default_rng(seed).standard_normal(shape).astype(np.float32)


NOISE = drawn(0, 1, 3, 2, 2, CHANNELS)
COND, NULL = (Cond(text=drawn(s, 1, TEXT_TOKENS, TEXT_DIM)) for s in (1, 2))


def test_the_grid_of_the_release_starts_below_one():
  times = release_times(4, 5.0)
  np.testing.assert_allclose(times, shift_time(np.linspace(0.999, 0, 5), 5.0), rtol=1e-6)


TIMES = tuple(release_times(3, 5.0).tolist())


@pytest.fixture(scope="module")
def scanned(wan):
  """scanned(solver) -> what all steps in one program make of the noise."""
  field = lambda cond: lambda x, t: wan.model.apply({"params": wan.params}, x, t, cond=cond).v
  field = guided(field(COND), field(NULL), 3.0)
  walk = lambda x, key, solver: sample(field, x, TIMES, solver=solver, key=key)
  walk = jax.jit(walk, static_argnames="solver")
  return lambda solver, key: walk(NOISE, key, solver)


def check_steps(wan, scanned, key, solver, sampler=Sampler):
  seen, sampler = [], sampler(wan, Setting(TIMES, solver, 3.0))
  got = sampler(NOISE, COND, NULL, key, lambda *done: seen.append(done))
  np.testing.assert_allclose(got, scanned(solver, key), atol=2e-5)
  assert seen == [(1, 3), (2, 3), (3, 3)] and sampler.compile_seconds > 0
  spent = sampler.compile_seconds
  again = sampler(NOISE, NULL, NULL, key)
  assert sampler.compile_seconds == spent  # another prompt, the same program
  assert np.abs(again - got).max() > 1e-3


@pytest.mark.parametrize("solver", ["unipc", "consistency"])
def test_step_by_step_is_the_scan(wan, scanned, key, solver):
  check_steps(wan, scanned, key, solver)


def test_the_comparison_notices_a_repeated_step(wan, scanned, key):
  broken = mutant(text_to_video, "run.row(i))", "run.row(0))")
  assert_caught(check_steps, wan, scanned, key, "unipc", broken.Sampler)


@pytest.mark.parametrize("guidance, chunk, frames, more", [(1.0, 1, 2, 1), (3.0, (1, 2), 3, 0)])
def test_chunk_by_chunk_is_the_rollout(wan, key, guidance, chunk, frames, more):
  first = tuple(timestep_list("causal", 2 + more).tolist()) if more else ()
  times, noise = tuple(timestep_list("causal", 2).tolist()), NOISE[:, :frames]
  setting = Setting(times, "consistency", guidance, chunk, first_times=first)
  got = Sampler(wan, setting)(noise, COND, NULL, key)
  network = CachedNetwork(wan.model, CachePolicy(window=frames))
  if guidance != 1:
    # Rows without the condition hold the other text; only `start` sees one.
    other = lambda cond: cond if cond.text is None else cond.replace(text=NULL.text)
    network = Guided(network, guidance, other)
  how = {"chunk": chunk, "times": times[:-1], "first_times": first[:-1]}
  want = rollout(network, wan.params, noise, COND, key, **how)[0]
  np.testing.assert_allclose(got, want, atol=2e-5)
  assert setting.nfe(frames) == (2 * (2 + 1) + more) * (1 if guidance == 1 else 2)


def test_an_image_is_given_by_its_states_its_latents_and_a_mask(tmp_path):
  wan = open_wan(make_release(tmp_path, image=True), dtype=jnp.float32)
  picture = np.random.default_rng(0).integers(0, 256, (24, 20, 3), dtype=np.uint8)
  cond = image_condition(wan, picture, 16, 16, 9)
  assert cond.image.shape == (1, 3, 2, 2, 4 + CHANNELS)
  np.testing.assert_array_equal(cond.image[0, :, 0, 0, :4], [[1] * 4, [0] * 4, [0] * 4])
  other = image_condition(wan, 255 - picture, 16, 16, 9)
  for a, b in zip(jax.tree.leaves(cond), jax.tree.leaves(other), strict=True):
    assert np.abs(a - b).max() > 1e-2
  assert Sampler(wan, Setting((0.9, 0.0), "euler", 1.0))(
    NOISE, COND.replace(image=cond.image, image_tokens=cond.image_tokens), NULL, None
  ).shape == NOISE.shape  # fmt: skip


def test_text_to_video_refuses_an_image(wan):
  with pytest.raises(ValueError, match="from text alone"):
    image_condition(wan, np.zeros((4, 4, 3), np.uint8), 16, 16, 5)
