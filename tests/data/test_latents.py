"""Latents on disk: what is stored comes back, and streams of them are streams like others."""

import json
from itertools import islice

import numpy as np
import pytest
from grown import SHAPE, TOKENS, WIDTH, clip_of, grow
from mutation import assert_caught, mutant

from vidstep.data import latents
from vidstep.data.builder import describe, read_split
from vidstep.data.loader import Loader


@pytest.fixture(scope="module")
def dataset(tmp_path_factory):
  path = tmp_path_factory.mktemp("latents") / "wan"
  assert grow(path)
  return str(path)


def test_every_example_comes_back_as_it_was(dataset):
  assert describe(dataset)["clips"] == {"train": 13, "test": 3}
  assert describe(dataset)["shape"] == list(SHAPE)
  train, test = read_split(dataset, "train"), read_split(dataset, "test")
  for i in range(16):
    got, expected = (train[i] if i < 13 else test[i - 13]), clip_of(i)
    np.testing.assert_array_equal(got["latents"], expected["latents"])
    np.testing.assert_array_equal(got["text"], expected["text"])
    assert len(got["text"]) == 1 + i % (TOKENS - 1)  # padding is not stored
    assert (got["caption"].decode(), got["index"]) == (f"été {i}", i)


def check_batches(dataset, reader):
  stream = Loader(dataset, "test", batch_size=2, frames=3, prefetch=0)
  source = read_split(dataset, "test")
  assert stream.latent_shape == SHAPE and stream.text_shape == (TOKENS, WIDTH)
  (batch,) = islice(stream, 1)
  for row in (0, 1):
    item = reader.read(source[row], 3, TOKENS)
    expected = clip_of(13 + row)
    text = expected["text"].astype(np.float32)
    np.testing.assert_array_equal(item["latents"], expected["latents"][:3].astype(np.float32))
    np.testing.assert_array_equal(item["text"][: len(text)], text)
    np.testing.assert_array_equal(item["text"][len(text) :], 0)
    for name in ("latents", "text"):
      np.testing.assert_array_equal(batch[name][row], item[name])
      assert batch[name].dtype == np.float32
    assert batch["caption"][row] == f"été {13 + row}"


def test_a_batch_is_the_first_latents_with_padded_text(dataset):
  check_batches(dataset, latents)
  middle = mutant(latents, 'clip["latents"][:frames]', 'clip["latents"][-frames:]')
  assert_caught(check_batches, dataset, middle)
  aligned = mutant(latents, "padded[: len(text)] = text", "padded[-len(text) :] = text")
  assert_caught(check_batches, dataset, aligned)


def drawn(stream, n):
  return [batch["caption"].tolist() for batch in islice(stream, n)]


def test_the_stream_is_shuffled_by_seed_resumes_and_is_shared_by_processes(dataset):
  make = lambda **o: Loader(dataset, "train", **({"batch_size": 4, "frames": 5, "seed": 1} | o))
  stream = make()
  first, state = drawn(stream, 3), json.loads(json.dumps(stream.state()))
  after = list(islice(stream, 4))
  again = make(prefetch=0)
  again.restore(state)
  for a, b in zip(after, islice(again, 4), strict=True):
    for name in a:
      np.testing.assert_array_equal(a[name], b[name])
  assert drawn(make(), 3) == first and drawn(make(seed=2), 3) != first
  halves = [drawn(make(batch_size=2, shard=(i, 2)), 3) for i in (0, 1)]
  assert [a + b for a, b in zip(*halves, strict=True)] == first


def test_what_float16_cannot_hold_is_refused():
  with pytest.raises(ValueError, match="Latents of item 3 holds numbers that are not finite"):
    latents.example(np.full(SHAPE, 7e4), np.ones((1, 2)), caption="", index=3, source="")
  with pytest.raises(ValueError, match="Text of item 3"):
    latents.example(np.zeros(SHAPE), [[np.nan]], caption="", index=3, source="")


def test_too_many_frames_or_tokens_are_told_in_a_sentence(dataset):
  with pytest.raises(ValueError, match="clips of 5 latent frames, so windows of 6"):
    Loader(dataset, "train", batch_size=2, frames=6)
  with pytest.raises(ValueError, match=r"\d tokens does not fit into 2: raise data\.text_tokens"):
    list(islice(Loader(dataset, "train", batch_size=4, frames=1, text_tokens=2, prefetch=0), 4))


def test_the_null_text_lies_beside_the_clips(tmp_path):
  assert latents.null_text(tmp_path, 4) is None
  latents.save_null_text(tmp_path, [[1.0, 2.0], [0.0, 3.0], [0.0, 0.0]])
  np.testing.assert_array_equal(latents.null_text(tmp_path, 3), [[1, 2], [0, 3], [0, 0]])
  assert [p.name for p in tmp_path.iterdir()] == [latents.NULL_TEXT]
