"""Latents of a tiny Wan: those of sampling and encoding by hand, whoever makes them and where."""

import dataclasses
import itertools

import av
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from mutation import assert_caught, mutant
from wan_release import TEXT_DIM, TEXT_TOKENS, make_release

from experiments import synthesize_teacher, synthesize_videos
from experiments.flags import read_lines
from experiments.synthesize_text import Texts, fingerprint
from vidstep.data import latents
from vidstep.data.builder import describe, read_split
from vidstep.data.resample import cover
from vidstep.data.shards import write_shards
from vidstep.data.video_io import save_video
from vidstep.models.cond import Cond
from vidstep.models.vae import encode
from vidstep.parallel.attention import ShardedAttention
from vidstep.parallel.mesh import make_mesh
from vidstep.parallel.sharding import state_sharding
from vidstep.teachers.text_to_video import Setting
from vidstep.teachers.wan import open_wan

pytest.importorskip("tokenizers")
pytestmark = pytest.mark.usefixtures("unoptimized")

PROMPTS = ["a cat", "a red car in the rain", "waves"]
SHAPE, SEED, SHIFT, GUIDANCE, STEPS = (2, 4, 4, 4), 7, 3.0, 4.0, 3
SIZE, FRAMES, RATE = (16, 24), 5, 16.0


def times():
  """The grid, written down once more: uniform, shifted, from Wan's 0.999."""
  uniform = 0.999 * (1 - np.arange(STEPS + 1) / STEPS)
  shift = lambda t: SHIFT * t / (1 + (SHIFT - 1) * t)
  return shift(uniform)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
  return make_release(tmp_path_factory.mktemp("wan") / "tiny")


@pytest.fixture(scope="module")
def wan(folder):
  return open_wan(folder, dtype=jnp.float32)


def one_device():
  return make_mesh(devices=jax.devices()[:1])


def texts_of(wan, count=6, negative="dull"):
  return Texts(wan.embed, lambda i: PROMPTS[i % len(PROMPTS)], count, negative)


@pytest.fixture(scope="module")
def items(wan):
  return teacher(wan)


def teacher(wan, *, batch=2, module=synthesize_teacher, mesh=None, shape=SHAPE):
  mesh = mesh or one_device()
  setting = Setting(tuple(times().tolist()), "euler", GUIDANCE)
  how = {"shape": shape, "seed": SEED, "batch": batch, "mesh": mesh, "source": "tiny"}
  return module.TeacherItems(wan, texts_of(wan), setting, **how)


@pytest.fixture(scope="module")
def by_hand(wan):
  """item -> latents of Euler's steps under guidance, one item at a time."""
  apply = jax.jit(
    lambda x, t, text: wan.model.apply({"params": wan.params}, x, t, cond=Cond(text=text)).v
  )
  grid = times()

  def draw(item):
    x = np.asarray(jax.random.normal(jax.random.fold_in(jax.random.key(SEED), item), SHAPE))[None]
    text, null = wan.embed([PROMPTS[item % 3]]), wan.embed(["dull"])
    for t, s in itertools.pairwise(grid):
      now = np.full(1, t, np.float32)
      told, untold = np.asarray(apply(x, now, text)), np.asarray(apply(x, now, null))
      x = (x + (s - t) * (untold + GUIDANCE * (told - untold))).astype(np.float32)
    return x[0]

  return [draw(item) for item in range(4)]


def check_drawn(items, by_hand):
  for numbers in ((0, 1), (2, 3)):
    for item, made in zip(numbers, items(numbers), strict=True):
      (clip,) = made.examples
      np.testing.assert_allclose(clip["latents"], by_hand[item], rtol=2e-3, atol=2e-3)
      assert (clip["caption"], clip["index"], clip["source"]) == (PROMPTS[item % 3], item, "tiny")


def test_items_are_what_sampling_by_hand_gives(wan, items, by_hand):
  check_drawn(items, by_hand)
  for old, new in (
    ("jax.random.key(seed), item)", "jax.random.key(seed), 0)"),
    ("for x in (text, null)", "for x in (null, text)"),
    ("text = self._texts(rows.tolist())", "text = self._texts(rows[::-1].tolist())"),
  ):
    broken = teacher(wan, module=mutant(synthesize_teacher, old, new))
    broken._sampler = items._sampler  # it is compiled
    assert_caught(check_drawn, broken, by_hand)


def test_text_is_stored_as_it_was_embedded(wan, items):
  (first, second) = items([0, 1])
  for item, prompt in ((first, "a cat"), (second, "a red car in the rain")):
    stored = latents.with_padding(item.examples[0]["text"], TEXT_TOKENS)
    np.testing.assert_allclose(stored, wan.embed([prompt])[0], rtol=1e-3, atol=1e-6)
  assert len(first.examples[0]["text"]) < len(second.examples[0]["text"])


def test_an_item_does_not_depend_on_who_shares_its_batch(items):
  alone = [items([i])[0].examples[0]["latents"] for i in (0, 1, 2)]
  together = [m.examples[0]["latents"] for m in [*items([0, 1]), *items([2, 3])]][:3]
  for a, b in zip(alone, together, strict=True):
    np.testing.assert_allclose(a.astype(np.float32), b.astype(np.float32), atol=2e-3)


def store(make, path, part=(0, 1)):
  return write_shards(
    path,
    latents.KIND,
    make,
    features=latents.features(SHAPE, TEXT_DIM),
    splits={"train": 5, "test": 1},
    request={},
    meta={"kind": latents.KIND, "text_tokens": TEXT_TOKENS},
    batch=2,
    shard_items=2,
    part=part,
  )


def test_two_processes_and_a_resumed_one_make_the_bytes_of_one(items, tmp_path):
  assert store(items, tmp_path / "one")
  assert not store(items, tmp_path / "two", (1, 2)) and store(items, tmp_path / "two", (0, 2))
  calls = []

  def broken(numbers):
    calls.append(numbers)
    if len(calls) == 2:
      raise KeyboardInterrupt
    return items(numbers)

  with pytest.raises(KeyboardInterrupt):
    store(broken, tmp_path / "resumed")
  assert store(items, tmp_path / "resumed")
  content = lambda name: {f.name: f.read_bytes() for f in (tmp_path / name).iterdir()}
  assert content("one") == content("two") == content("resumed")
  source = read_split(tmp_path / "one", "test")
  assert int(source[0]["index"]) == 5 and describe(tmp_path / "one")["clips"]["train"] == 5


@pytest.mark.parametrize("sizes", [(2, 1, 1), (1, 2, 2)])
def test_devices_share_a_batch_the_weights_or_the_frames(folder, by_hand, sizes):
  mesh = make_mesh(*sizes, devices=jax.devices()[: np.prod(sizes)])
  shared = open_wan(folder, dtype=jnp.float32, shard=lambda like: state_sharding(like, mesh))
  sequence = "sequence" if sizes[2] > 1 else None
  model = shared.model.clone(attention=ShardedAttention(mesh, sequence=sequence))
  check_drawn(teacher(dataclasses.replace(shared, model=model), mesh=mesh), by_hand)


# ------------------------------------------------------------------------------------------------
# Text
# ------------------------------------------------------------------------------------------------


def test_prompts_are_read_ahead_and_each_is_embedded_once():
  asked = []

  def embed(prompts):
    asked.append(list(prompts))
    return np.stack([np.full((3, 2), len(p)) * (np.arange(3) < 2)[:, None] for p in prompts])

  texts = Texts(embed, lambda i: "x" * (1 + i % 5), 200, "")
  first = texts([0, 1])
  assert first.shape == (2, 3, 2) and first.dtype == np.float32
  assert (first[1, :, 0] == [2, 2, 0]).all()
  assert asked == [["", "x", "xx", "xxx", "xxxx", "xxxxx"]]
  texts(range(150, 170))
  assert texts.null().shape == (3, 2) and len(asked) == 1


def test_prompts_are_lines(tmp_path):
  (tmp_path / "p.txt").write_text("a\n\n  b été \n", encoding="utf-8")
  assert read_lines(tmp_path / "p.txt") == ["a", "b été"]
  (tmp_path / "p.txt").write_text("\n")
  with pytest.raises(ValueError, match="holds no prompt"):
    read_lines(tmp_path / "p.txt")
  with pytest.raises(FileNotFoundError, match="one prompt a line"):
    read_lines(tmp_path / "q.txt")
  assert fingerprint(["a", "b"]) != fingerprint(["a", "c"]) and len(fingerprint([])) == 16


# ------------------------------------------------------------------------------------------------
# Videos
# ------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def videos(tmp_path_factory):
  """Three noisy videos, two clips long, one and a half, and cut off; and one that is too short."""
  where, rng = tmp_path_factory.mktemp("videos"), np.random.default_rng(0)
  for name, frames in (("a", 20), ("b", 12), ("c", 20), ("d", 3)):
    small = rng.integers(0, 256, (frames, 3, 4, 3), dtype=np.uint8)
    save_video(where / f"{name}.mp4", small.repeat(12, 1).repeat(12, 2), 2 * RATE)
  data = (where / "c.mp4").read_bytes()
  (where / "c.mp4").write_bytes(data[: len(data) // 3])
  return where


def encoder(wan, videos, *, batch=3, module=synthesize_videos, refuse=False):
  files = sorted(videos.iterdir())
  texts = Texts(wan.embed, lambda i: PROMPTS[i // 2 % 3], 2 * len(files), "")
  return module.VideoItems(
    wan.vae, wan.vae_params, files, videos, texts, frames=FRAMES, size=SIZE, rate=RATE, clips=2,
    batch=batch, mesh=one_device(), refuse=refuse,
  )  # fmt: skip


def check_encoded(items, wan, videos):
  (first, second), (third, fourth) = items([0, 1]), items([2, 3])
  assert [len(i.examples) for i in (first, second, third, fourth)] == [1, 1, 1, 0]
  assert fourth.skipped is None  # the file gives one clip, as it is long
  whole = jax.jit(lambda video: encode(wan.vae, wan.vae_params, video))
  for item, name, start in ((first, "a", 0), (second, "a", FRAMES), (third, "b", 0)):
    with av.open(str(videos / f"{name}.mp4")) as container:
      frames = [f.to_ndarray(format="rgb24") for f in container.decode(video=0)][::2]
    clip = np.stack([cover(f, *SIZE) for f in frames[start : start + FRAMES]])
    expected = whole(clip[None].astype(np.float32) / 127.5 - 1)[0]
    (got,) = item.examples
    np.testing.assert_allclose(got["latents"], expected, rtol=2e-3, atol=2e-3)
    assert got["source"] == f"{name}.mp4#{start // FRAMES}"
    assert got["caption"] == PROMPTS[got["index"] // 2]


def test_videos_are_encoded_as_whole_clips_would_be(wan, videos):
  items = encoder(wan, videos)
  assert items.shape == (2, 2, 3, 4)
  check_encoded(items, wan, videos)
  for old, new in (
    ("cover(frame, *self._size)", "cover(frame, *self._size)[..., ::-1]"),
    ("start = clip * self._frames", "start = 0"),
  ):
    broken = encoder(wan, videos, module=mutant(synthesize_videos, old, new))
    broken._first, broken._next = items._first, items._next  # they are compiled
    assert_caught(check_encoded, broken, wan, videos)


def test_damaged_and_short_videos_are_left_out_by_name_or_refused(wan, videos):
  made = encoder(wan, videos)([4, 6])
  assert [len(item.examples) for item in made] == [0, 0]
  assert "c.mp4 cannot be decoded" in made[0].skipped
  assert made[1].skipped == "d.mp4#0 is shorter than 0.312 seconds"
  with pytest.raises(ValueError, match=r"c\.mp4 cannot be decoded"):
    encoder(wan, videos, refuse=True)([4])


def test_clips_that_do_not_fit_are_told_in_a_sentence(wan, videos):
  with pytest.raises(ValueError, match=r"6 frames of 16 x 20 pixels do not fit: .* 1 \+ 4 n"):
    synthesize_videos.VideoItems(
      wan.vae, wan.vae_params, [], videos, None, frames=6, size=(16, 20), rate=16, clips=1,
      batch=1, mesh=one_device(),
    )  # fmt: skip
