import jax.numpy as jnp
import numpy as np
import pytest

from vidstep.masks import CLEAN, NOISY, TeacherForcing, chunk_index, teacher_forcing_info
from vidstep.models.cond import Cond
from vidstep.models.layout import pack, pack_time, plain, teacher_forcing, unpack


@pytest.fixture
def video(normal):
  """Frames that carry their own number in channel 0, so that a test can read the order."""
  x = normal(2, 5, 2, 2, 3)
  x[..., 0] = np.arange(5)[None, :, None, None]
  return jnp.asarray(x)


def per_frame(frames):
  return jnp.arange(frames, dtype=jnp.float32)[None, :, None] * jnp.ones((2, 1, 4), jnp.float32)


def test_context_precedes_the_noisy_frames(video):
  cond = Cond(actions=per_frame(5), context=video[:, :2])
  t = jnp.float32([0.3, 0.7])
  x, times, cond, layout = pack(video[:, 2:], t, cond, clean=video[:, :2])
  assert layout.info.frame.tolist() == [0, 1, 2, 3, 4]
  assert layout.info.role.tolist() == [CLEAN] * 2 + [NOISY] * 3
  np.testing.assert_array_equal(x, video)
  np.testing.assert_array_equal(times, np.float32([[0, 0, 0.3, 0.3, 0.3], [0, 0, 0.7, 0.7, 0.7]]))
  np.testing.assert_array_equal(cond.actions[0, :, 0], np.arange(5))
  assert cond.context is None
  np.testing.assert_array_equal(unpack(x, layout), video[:, 2:])


def test_teacher_forcing_drops_the_last_clean_chunk(video):
  mask = TeacherForcing()
  t = jnp.broadcast_to(jnp.linspace(0.1, 0.5, 5, dtype=jnp.float32), (2, 5))
  x, times, cond, layout = teacher_forcing(
    video + 10, t, Cond(actions=per_frame(5), image=video), clean=video, mask=mask
  )
  frames = [0, 1, 2, 3, 0, 1, 2, 3, 4]
  assert layout.info.frame.tolist() == frames
  assert layout.info.role.tolist() == [CLEAN] * 4 + [NOISY] * 5
  assert layout.mask == mask
  np.testing.assert_array_equal(x[0, :, 0, 0, 0], [0, 1, 2, 3, 10, 11, 12, 13, 14])
  np.testing.assert_array_equal(cond.actions[1, :, 3], frames)
  np.testing.assert_array_equal(cond.image[1, :, 0, 0, 0], frames)
  np.testing.assert_array_equal(times, np.pad(t, ((0, 0), (4, 0))))
  np.testing.assert_array_equal(unpack(x, layout), video + 10)


@pytest.mark.parametrize(
  ("chunks", "clean"),
  [(chunk_index(5, 2), 4), (chunk_index(5, 2, first=1), 3), (chunk_index(5, 5), 0)],
)
def test_chunks_count_from_the_video_not_from_the_pack(video, chunks, clean):
  t = jnp.full(2, 0.5, jnp.float32)
  x, _, _, layout = teacher_forcing(video, t, Cond(), clean=video, chunks=chunks)
  assert x.shape[1] == clean + 5
  assert layout.info.chunk.tolist() == [*chunks[:clean], *chunks]


def test_equal_chunks_cost_half_of_the_dense_square():
  """Allowed pairs of the packed sequence: n(n-1)/2 clean, n(n-1)/2 noisy-to-clean, n own."""
  n = 6
  video = jnp.zeros((1, n, 1, 1, 1))
  _, _, _, layout = teacher_forcing(video, jnp.zeros(1), Cond(), clean=video, mask=TeacherForcing())
  column = lambda a: type(a)(*(f[:, None] for f in a))
  assert layout.mask(column(layout.info), layout.info).sum() == n * n


def test_second_times_are_packed_like_first_ones(video):
  *_, layout = pack(video[:, 2:], jnp.zeros(2), Cond(), clean=video[:, :2])
  s = jnp.float32([[0.1, 0.2, 0.3]] * 2)
  np.testing.assert_array_equal(pack_time(s, layout)[1], np.float32([0, 0, 0.1, 0.2, 0.3]))


def test_plain_layout_is_all_noisy():
  layout = plain(3, chunks=np.array([0, 0, 1]))
  assert layout.info.role.tolist() == [NOISY] * 3
  assert layout.info.chunk.tolist() == [0, 0, 1]


BAD = {
  "only the number of frames may differ": {"clean": (2, 2, 2, 4, 3)},
  "one entry for each of the 5 frames": {"actions": (2, 3, 4)},
  "clean_frames must number 2 frames": {"clean_frames": [0, 1, 2]},
  "chunks numbers 4 frames": {"chunks": np.arange(4)},
}


@pytest.mark.parametrize("sentence", BAD)
def test_misfits_are_named(video, sentence):
  bad = dict(BAD[sentence])
  clean = jnp.zeros(bad.pop("clean", (2, 2, 2, 2, 3)))
  cond = Cond(actions=jnp.zeros(bad.pop("actions", (2, 5, 4))))
  with pytest.raises(ValueError, match=sentence):
    pack(video[:, 2:], jnp.zeros(2), cond, clean=clean, **bad)


def test_teacher_forcing_needs_both_copies_alike(video):
  with pytest.raises(ValueError, match="alike"):
    teacher_forcing(video, jnp.zeros(2), Cond(), clean=video[:, 1:])


def test_shards_hold_clean_and_noisy_copies_of_their_own_frames(video):
  """`c0 n0 c1 n1 ...`; of a context that they do not divide, frames that nothing reads go."""
  noisy, clean = video[:, 1:] + 10, video[:, 1:]
  t = jnp.float32([[0.1, 0.2, 0.3, 0.4]] * 2)
  x, times, _, layout = teacher_forcing(
    noisy, t, Cond(), clean=clean, chunks=np.int32([0, 0, 1, 1]), shards=2
  )
  want = teacher_forcing_info(np.int32([0, 0, 1, 1]), shards=2)
  for got, field in zip(layout.info, want, strict=True):
    np.testing.assert_array_equal(got, field)
  np.testing.assert_array_equal(x[0, :, 0, 0, 0], [1, 2, 11, 12, 3, 4, 13, 14])
  np.testing.assert_array_equal(times[0], np.float32([0, 0, 0.1, 0.2, 0, 0, 0.3, 0.4]))
  np.testing.assert_array_equal(unpack(x, layout), noisy)

  cond = Cond(context=video[:, :1], actions=per_frame(5))
  chunks = np.int32([0, 1, 1, 2, 2])
  x, _, cond, layout = teacher_forcing(noisy, t, cond, clean=clean, chunks=chunks, shards=2)
  np.testing.assert_array_equal(x[0, :, 0, 0, 0], [0, 1, 11, 12, 2, 3, 13, 14])
  np.testing.assert_array_equal(cond.actions[0, :, 0], [0, 1, 1, 2, 2, 3, 3, 4])
  np.testing.assert_array_equal(layout.info.chunk, [0, 1, 1, 1, 1, 2, 2, 2])


@pytest.mark.parametrize(
  ("context", "noisy", "shards", "sentence"),
  [(0, 5, 2, "5 noisy frames do not divide"), (3, 4, 4, "3 frames of context do not divide")],
)
def test_frames_that_do_not_divide_are_named(context, noisy, shards, sentence):
  frames = lambda n: jnp.zeros((1, n, 1, 1, 1))
  cond = Cond(context=frames(context)) if context else Cond()
  with pytest.raises(ValueError, match=sentence):
    teacher_forcing(frames(noisy), jnp.zeros(1), cond, clean=frames(noisy), shards=shards)
