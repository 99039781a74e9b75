"""The engine with codecs that remember: its pixels are those of the whole clip decoded at once."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from mutation import assert_caught, mutant
from toy_world import ToyNetwork, toy_params

from vidstep.causal import batch, programs, streaming
from vidstep.models.vae import TinyDecoder, VAECodec, WanVAE

pytestmark = pytest.mark.usefixtures("unoptimized")

FRAME, TIMES = (2, 3, 2), (1.0, 0.6)
VAE = WanVAE(
  base=2, channels=2, multipliers=(1, 1, 1), depth=1, temporal=(True, True), mean=(0.1, -0.2),
  std=(1.1, 2.0),
)  # fmt: skip
TINY = TinyDecoder(channels=2, widths=(4, 4, 4), temporal=(True, True), depth=1)


def random_params(module, x):
  """Every parameter random, variance kept by kernels."""
  like = jax.eval_shape(lambda: module.init(jax.random.key(0), x))["params"]
  rng = np.random.default_rng(0)

  def draw(path, a):
    name = path[-1].key
    width = np.prod(a.shape[:-1]) ** -0.5 if name == "kernel" else 0.2
    return ((name == "scale") + width * rng.standard_normal(a.shape)).astype(np.float32)

  return jax.tree_util.tree_map_with_path(draw, like)


WAN = VAECodec(VAE, random_params(VAE, jnp.zeros((1, 1, 4, 4, 3))))
SMALL = VAECodec(VAE, WAN.params, TINY, random_params(TINY, jnp.zeros((1, 1, *FRAME))))


def build(codec=WAN, module=streaming, **options):
  options = {"sessions": 2, "chunk": 2, "history": 4, "history_every": 2} | options
  return module.Engine(
    ToyNetwork(), toy_params(jax.random.key(0), channels=2), codec, frame_shape=FRAME,
    frame_rate=16, max_steps=2, **options,
  )  # fmt: skip


def recorded(engine):
  """The engine, which notes the latents of each of its chunks: (name, index) -> [c, h, w, C]."""
  dispatch, engine.latents = engine._dispatch, {}

  def noting():
    flight = dispatch()
    for session, made, row, _, fields, _ in flight.parts if flight else ():
      latents = np.asarray(made.latents)
      own = latents[session._row if len(latents) > len(made.frames) else row]
      engine.latents[session.name, fields["index"]] = own
    return flight

  engine._dispatch = noting
  return engine


@pytest.fixture(scope="module")
def whole():
  """(latents [F, h, w, C], codec) -> uint8 pixels of the whole clip, decoded at once."""
  run = jax.jit(lambda codec, x: codec.decode(x))

  def decode(latents, codec=WAN):
    padded = np.zeros((1, 12, *FRAME), np.float32)  # one length, one program; it is causal
    padded[0, : len(latents)] = latents
    video = np.asarray(run(codec, padded))[0, : 4 * len(latents) - 3]
    return np.clip(np.round((video + 1) * np.float32(127.5)), 0, 255).astype(np.uint8)

  decode(np.zeros((1, *FRAME)))
  return decode


@pytest.fixture(scope="module")
def warm_engine(whole):
  engine = recorded(build())
  engine.warmup()
  return engine


def play(engine, sessions, ticks):
  """Chunks of each session, nothing left in flight."""
  engine.overlap, chunks = False, {s: [] for s in sessions}
  for _ in range(ticks):
    for session in sessions:
      session.act([np.sin(session.index), np.cos(session.settings.seed)])
    for session, chunk in engine.tick().items():
      if session in chunks:
        chunks[session].append(chunk)
  return list(chunks.values())


def pixels(chunks):
  return np.concatenate([chunk.frames for chunk in chunks])


def assert_same(got, want):
  """Equal, but for roundings that batches of other sizes move over the edge between two grays."""
  off = np.abs(np.int32(got) - want)
  assert got.shape == want.shape and off.max() <= 1 and (off > 0).mean() < 1e-3


def latents(engine, session, chunks):
  return np.concatenate([engine.latents[session.name, chunk.index] for chunk in chunks])


def check_frames_are_the_whole_clip(engine, whole):
  """Two sessions, the second of which joins later."""
  first = engine.open(seed=1, times=TIMES)
  (early,) = play(engine, [first], 2)
  second = engine.open(seed=2, times=TIMES, steps=1)
  late, other = play(engine, [first, second], 3)
  for session, chunks in ((first, early + late), (second, other)):
    got, want = pixels(chunks), whole(latents(engine, session, chunks))
    assert len(got) == 1 + 4 * (2 * len(chunks) - 1)
    assert [c.pixel_index for c in chunks] == [0, *(8 * i - 3 for i in range(1, len(chunks)))]
    assert got.std() > 5
    assert_same(got, want)
  first.close(), second.close()


def test_frames_are_the_whole_clip_decoded_at_once(engine, whole):
  check_frames_are_the_whole_clip(engine, whole)


@pytest.mark.parametrize(
  "module, old, new",
  [
    (batch, "self._put_codec(row, one)", "pass"),  # the first chunk leaves nothing behind
    (batch, "self._put_codec(row, one)", "self._put_codec(0, one)"),  # or it in another's row
    (streaming, "not index else time - 1", "not index else 0"),
  ],
)
def test_an_engine_that_forgets_or_mixes_is_noticed(warm_engine, whole, module, old, new):
  assert_caught(check_frames_are_the_whole_clip, variant(warm_engine, module, old, new), whole)


def variant(engine, module, old, new):
  """The same engine, the same compiled programs, with one piece of its host side broken."""
  same = "class Engine"
  broken = mutant(streaming, *((old, new) if module is streaming else (same, same)))
  broken.Programs = lambda *_, **__: engine._programs
  if module is batch:
    broken.Batch = mutant(batch, old, new).Batch
  return recorded(build(module=broken))


def test_forked_rewound_paused_and_restored_streams_go_on_exactly(engine, whole, tmp_path):
  check_streams_go_on_exactly(engine, whole, tmp_path)


@pytest.mark.parametrize(
  "old, new",
  [
    ("run.take_codec(self.state.codec, row)", "run.take_codec(self.state.codec, 0 * row)"),
    ("self._put_codec(row, one.codec)", "pass"),
  ],
)
def test_a_row_without_its_codec_is_noticed(warm_engine, whole, tmp_path, old, new):
  broken = variant(warm_engine, batch, old, new)
  assert_caught(check_streams_go_on_exactly, broken, whole, tmp_path)


def check_streams_go_on_exactly(engine, whole, tmp_path):
  other = engine.open(seed=7)  # so that rows are not number 0
  session = engine.open(seed=3, times=TIMES)
  (start,) = play(engine, [session], 3)
  session.save(tmp_path / "a")
  other.close()
  twin = session.fork()
  session.pause()
  play(engine, [twin], 1)
  session.resume()
  want, _ = play(engine, [session, twin], 2)
  twin.close()
  chunks = start + want
  assert_same(pixels(chunks), whole(latents(engine, session, chunks)))
  forked = session.fork()
  session.rewind(4)
  assert session.index == 4  # of 10; snapshots are two chunks apart
  again, _ = play(engine, [session, forked], 3)
  np.testing.assert_array_equal(pixels(again), pixels(chunks[2:]))
  session.close(), forked.close()
  engine.open(seed=9)  # the restored one gets another row
  restored = engine.restore(tmp_path / "a")
  (again,) = play(engine, [restored], 2)
  np.testing.assert_array_equal(pixels(again), pixels(want))


def check_weights_are_arguments(module):
  params = toy_params(jax.random.key(0), channels=2, action_dim=32)
  run = module.Programs(
    ToyNetwork(action_dim=32), WAN, params, sessions=1, first=2, chunk=2, frame_shape=FRAME,
    context_frames=0, text={}, solver="consistency", context="clean",
  )  # fmt: skip
  told = {"seed": np.uint32([0]), "frame": np.int32([0]), "times": np.float32([TIMES])}
  told |= {"steps": np.int32([2]), "window": np.int32([4]), "actions": np.zeros((1, 2, 32), "f4")}
  state = jax.eval_shape(run.start, params, WAN, {})
  x = jax.ShapeDtypeStruct((1, 2, *FRAME), jnp.float32)
  traced = [
    run.generate.trace(params, state.cache, told),
    run.decode.trace(WAN, x, state.codec),
    run.decode_first.trace(WAN, x, np.int32(0), np.int32(0), state.codec),
  ]
  baked = sum(np.size(a) for one in traced for a in one.jaxpr.consts)
  assert baked < 32, f"{baked} numbers are baked into the programs"


def test_weights_are_arguments_of_the_programs():
  check_weights_are_arguments(programs)
  for name, given in (("decode", "codec, latents"), ("generate", "params, cache")):
    baked = mutant(programs, f"def {name}({given}", f"def {name}(_, {given.split(', ')[1]}")
    assert_caught(check_weights_are_arguments, baked)


def test_memory_is_constant(engine):
  session = engine.open(seed=4, times=TIMES)
  play(engine, [session], 8)
  engine.latents.clear()  # this test's own
  before = len(jax.live_arrays())
  play(engine, [session], 20)
  engine.latents.clear()
  assert len(jax.live_arrays()) <= before and len(session._history) == 4


def test_a_stream_behind_a_context_goes_on_from_it(whole):
  """The decoder begins with the context's latents, so that no later chunk is a clip's start."""
  engine = recorded(build(context_frames=5, sessions=1, chunk=(1, 2)))
  engine.warmup()
  before = engine.compilations()
  video = np.random.default_rng(0).integers(0, 256, (5, *engine.pixels), np.uint8)
  session = engine.open(seed=1, times=TIMES, context=video)
  (chunks,) = play(engine, [session], 3)
  assert engine.compilations() == before
  past = jax.jit(lambda codec, x: codec.encode(x))(WAN, np.float32(video[None]) / 127.5 - 1)[0]
  assert [c.index for c in chunks] == [0, 1, 3] and [c.pixel_index for c in chunks] == [0, 4, 12]
  clip = whole(np.concatenate([past, latents(engine, session, chunks)]))
  assert_same(pixels(chunks), clip[5:])


def test_a_tiny_decoder_behind_an_unequal_first_chunk(whole):
  engine = recorded(build(SMALL, chunk=(1, 2), history=0))
  engine.warmup()
  before = engine.compilations()
  sessions = [engine.open(seed=1, times=TIMES)]
  (early,) = play(engine, sessions, 2)
  sessions.append(engine.open(seed=2, times=TIMES))
  late, other = play(engine, sessions, 3)
  assert engine.compilations() == before
  for session, chunks in zip(sessions, (early + late, other), strict=True):
    assert [c.index for c in chunks] == [0, *range(1, 2 * len(chunks) - 1, 2)]
    assert [len(c.frames) for c in chunks] == [1] + [8] * (len(chunks) - 1)
    assert [len(c.actions) for c in chunks] == [1] + [2] * (len(chunks) - 1)
    got = pixels(chunks)
    assert_same(got, whole(latents(engine, session, chunks), SMALL))
    assert got.std() > 5
