"""The engine on a world whose network is a formula: sessions, time travel, files, constancy."""

import json
import zipfile

import jax
import kill_stream
import numpy as np
import pytest
from mutation import assert_caught, mutant
from toy_world import ToyNetwork, toy_params, toy_text

from vidstep.causal import session as session_module
from vidstep.causal import streaming
from vidstep.models.codec import pixel_codec

SHAPE = (4, 4, 3)
CONTEXT = np.full((2, *SHAPE), 90, np.uint8)
TIMES = (1.0, 0.7, 0.4)


def build(module=streaming, *, seed=0, window=4, **options):
  options = {"sessions": 3, "overlap": True, "history": 4, "history_every": 2} | options
  return module.Engine(
    ToyNetwork(window=window),
    toy_params(jax.random.key(seed)),
    pixel_codec(),
    frame_shape=SHAPE,
    frame_rate=10,
    context_frames=2,
    max_steps=3,
    text=toy_text,
    **options,
  )


@pytest.fixture(scope="module")
def shared():
  engine = build()
  engine.warmup()
  return engine


@pytest.fixture
def engine(shared):
  """The warm engine without sessions; whatever a test does, nothing is compiled."""
  before = shared.compilations()
  yield shared
  for session in shared.sessions:
    session.close()
  shared.tick()
  assert shared.compilations() == before, "something was compiled after the warm-up"


@pytest.fixture(scope="module")
def alone():
  """An engine of one row, without overlap."""
  engine = build(sessions=1, overlap=False)
  engine.warmup()
  return engine


def variant(engine, old, new):
  """The same engine, the same compiled programs, with one piece of its host side broken."""
  broken = mutant(streaming, old, new)
  broken.Programs = lambda *_, **__: engine._programs
  return build(broken)


def wiggle(index):
  """An action that depends on the frame it leads into."""
  return np.float32([np.sin(index), np.cos(3 * index)])


def open_session(engine, **options):
  return engine.open(**({"context": CONTEXT, "times": TIMES} | options))


def run(engine, session, frames, *, act=wiggle, chunks=None):
  """The next frames [frames, H, W, 3] of a session, and every chunk if a list is given."""
  out, want = [], session.index + frames
  while len(out) < frames:
    if act is not None and session.index < want:
      session.act(act(session.index))
    for other, chunk in engine.tick().items():
      if other is session:
        out.append(chunk.frames)
        if chunks is not None:
          chunks.append(chunk)
  out = np.concatenate(out)
  assert len(out) == frames
  return out


def settle(engine):
  """Lets the chunk in flight land, without another one."""
  engine.overlap = False
  landed = engine.tick() if engine._flight else {}
  engine.overlap = True
  return landed


def frames_of(engine, session, count, act=wiggle):
  """`count` frames from here on, with nothing left in flight."""
  out = []
  while len(out) < count:
    session.act(act(session.index))
    engine.tick()  # dispatches; overlap returns the one before
    out += [c.frames for s, c in settle(engine).items() if s is session]
  return np.concatenate(out)


# ------------------------------------------------------------------------------------------------
# Batching
# ------------------------------------------------------------------------------------------------

PEOPLE = (
  {"seed": 1, "steps": 1, "window": 4},
  {"seed": 2, "steps": 3, "window": 2, "text": "rain"},
  {"seed": 3, "steps": 2, "window": 3, "first_times": (1.0, 0.5, 0.2)},
)


def test_batched_sessions_yield_the_frames_of_single_ones(engine, alone):
  check_batched_is_single(engine, alone)
  leak = variant(engine, "told[name][row] = value", "told[name][:] = value")
  assert_caught(check_batched_is_single, leak, alone)


def check_batched_is_single(engine, alone):
  batched = {}
  people = []
  for i, own in enumerate(PEOPLE):  # they join one after the other
    people.append(open_session(engine, **own))
    batched[people[-1]] = []
    for _ in range(3):
      for k, session in enumerate(people):
        session.act(wiggle(session.index + 10 * k))
      for session, chunk in engine.tick().items():
        batched[session].append(chunk.frames)
    assert engine.free == 2 - i
  people[0].close()  # and one leaves
  for _ in range(8):
    for k, session in enumerate(people[1:], start=1):
      session.act(wiggle(session.index + 10 * k))
    for session, chunk in engine.tick().items():
      batched[session].append(chunk.frames)
  for k, (session, own) in enumerate(zip(people, PEOPLE, strict=True)):
    got = np.concatenate(batched[session])
    single = open_session(alone, **own)
    act = lambda index, k=k: wiggle(index + 10 * k)
    want = run(alone, single, len(got), act=act)
    single.close()
    assert len(got) >= 8 and got.std() > 5
    np.testing.assert_array_equal(got, want)


def test_chunks_of_two_and_noisy_context():
  frames = {}
  for context in ("clean", "last_step"):
    pairs = build(sessions=2, chunk=2, context=context, overlap=False)
    first, other = (open_session(pairs, seed=seed, steps=2) for seed in (1, 2))
    actions = np.stack([wiggle(0), -wiggle(1)])
    first.act(actions)
    chunk = pairs.tick()[first]
    np.testing.assert_array_equal(chunk.actions, actions)
    assert chunk.frames.shape == (2, *SHAPE) and (chunk.index, first.index) == (0, 2)
    chunk = pairs.tick()[first]
    assert chunk.index == 2
    np.testing.assert_array_equal(chunk.actions, actions[[1, 1]])  # the last is held
    other.close()
    frames[context] = pairs.tick()[first].frames
  assert (frames["clean"] != frames["last_step"]).any()


def test_every_setting_matters(engine):
  def frames(after=lambda s: None, act=wiggle, **own):
    session = open_session(engine, **({"seed": 1, "steps": 2} | own))
    session.act(act(0))
    run(engine, session, 4, act=act)
    after(session)
    out = run(engine, session, 4, act=act)
    session.close()
    return out

  base = frames()
  np.testing.assert_array_equal(base, frames())
  changes = {
    "seed": frames(lambda s: s.set(seed=2)),
    "steps": frames(lambda s: s.set(steps=3)),
    "window": frames(lambda s: s.set(window=1)),
    "times": frames(lambda s: s.set(times=(1.0, 0.2))),
    "prompt": frames(lambda s: s.prompt("snow")),
    "text": frames(text="snow"),
    "actions": frames(act=lambda i: -wiggle(i)),
    "context": frames(context=255 - CONTEXT),
    "context_actions": None,
    "first_times": frames(first_times=(1.0,)),
  }
  del changes["context_actions"]  # the toy's append reads none
  for name, other in changes.items():
    assert (other != base).any(), name


def test_prompt_and_text_are_the_same_condition(engine):
  early, late = open_session(engine, text="rain"), open_session(engine)
  late.prompt("rain")
  early.act([1, 0]), late.act([1, 0])
  engine.tick()
  chunks = settle(engine)
  np.testing.assert_array_equal(chunks[early].frames, chunks[late].frames)
  assert late.settings.text == "rain"


def test_overlap_changes_when_frames_come_but_not_which(engine, alone):
  session, single = open_session(engine, seed=5), open_session(alone, seed=5)
  assert engine.tick() == {}  # nothing was in flight
  assert set(engine.tick()) == {session}
  session.close()
  assert set(alone.tick()) == {single}
  single.close()
  session, single = open_session(engine, seed=5), open_session(alone, seed=5)
  np.testing.assert_array_equal(run(engine, session, 10), run(alone, single, 10))
  single.close()


# ------------------------------------------------------------------------------------------------
# Acting
# ------------------------------------------------------------------------------------------------


def test_an_action_is_seen_first_in_the_chunk_that_says_so(alone):
  """From the same state with and without it: the first frame that differs, and its stamps."""

  def stream(act_before):
    session, chunks = open_session(alone, seed=3), []
    for i in range(6):
      if i == act_before:
        session.act([1, -1])
      chunks.append(alone.tick()[session])
    session.close()
    return chunks

  without, with_it = stream(None), stream(3)
  differs = [(a.frames != b.frames).any() for a, b in zip(without, with_it, strict=True)]
  assert differs == [False] * 3 + [True] * 3
  arrivals = [c.stamps.arrival for c in with_it]
  assert [a is not None for a in arrivals] == [False] * 3 + [True] + [False] * 2
  first = with_it[3]
  assert with_it[2].stamps.host < arrivals[3] < first.stamps.dispatch < first.stamps.host
  np.testing.assert_array_equal(first.actions, [[1, -1]])
  np.testing.assert_array_equal(with_it[5].actions, [[1, -1]])  # held


def test_the_newest_action_wins_and_is_held(engine):
  session = open_session(engine)
  session.act([0, 1])
  session.act([1, 0])
  engine.tick(), engine.tick()
  np.testing.assert_array_equal(settle(engine)[session].actions, [[1, 0]])


def test_rewind_drops_what_is_in_flight(engine):
  check_rewind_drops_what_is_in_flight(engine)
  broken = variant(engine, "session.closed or session._epoch != epoch", "session.closed")
  assert_caught(check_rewind_drops_what_is_in_flight, broken)


def check_rewind_drops_what_is_in_flight(engine):
  session = open_session(engine)
  run(engine, session, 6)
  at, indices = session.index, []
  at -= session.rewind(3)
  for _ in range(4):
    indices += [c.index for c in engine.tick().values()]
  assert indices == [at, at + 1, at + 2]


# ------------------------------------------------------------------------------------------------
# Time
# ------------------------------------------------------------------------------------------------


def test_a_fork_has_the_same_past_and_a_future_of_its_own(engine):
  session = open_session(engine, seed=4)
  run(engine, session, 5)
  settle(engine)
  twin, other = session.fork(), session.fork()
  assert twin.index == session.index
  streams = {session: [], twin: [], other: []}
  for _ in range(6):
    for s in streams:
      s.act(-wiggle(s.index) if s is other else wiggle(s.index))
    for s, chunk in engine.tick().items():
      streams[s].append(chunk.frames)
  a, b, c = (np.concatenate(frames) for frames in streams.values())
  np.testing.assert_array_equal(a, b)
  assert (a != c).any()


def test_rewind_replays_bit_for_bit(engine):
  session, chunks = open_session(engine, seed=6), []
  run(engine, session, 9, chunks=chunks)
  seen = {c.index: c.frames for c in chunks}
  at = session.index
  back = session.rewind(4)
  assert 4 <= back <= 5 and session.index == at - back
  again = []
  run(engine, session, 3, chunks=again)
  for chunk in again:
    np.testing.assert_array_equal(chunk.frames, seen[chunk.index])
  far = session.index - session._history[0].index
  with pytest.raises(ValueError, match=f"1 to {far}"):
    session.rewind(far + 1)
  assert session.rewind(far) == far
  with pytest.raises(ValueError, match="whole number"):
    session.rewind(1.5)


def test_a_paused_session_stands_still_and_frees_its_row(engine):
  session, straight = open_session(engine, seed=7), open_session(engine, seed=7)
  first = [run(engine, session, 2)]
  settle(engine)
  index = session.index
  session.pause()
  assert session.paused and engine.free == 2
  run(engine, straight, 5)
  assert session.index == index
  copy = session.fork()  # also of a paused one
  copy.close()
  session.resume()
  assert not session.paused
  session.rewind(2)
  del first
  assert session.index < index


def test_streams_far_longer_than_the_cache_stay_constant(engine):
  session = open_session(engine)
  run(engine, session, 8)
  settle(engine)
  before = len(jax.live_arrays())
  run(engine, session, 40)  # ten times the cache
  settle(engine)
  assert len(jax.live_arrays()) <= before
  assert len(session._history) == 4


# ------------------------------------------------------------------------------------------------
# Files
# ------------------------------------------------------------------------------------------------


def test_a_restored_stream_goes_on_bit_for_bit(engine, tmp_path):
  session = open_session(engine, seed=8, steps=2, text="rain", window=3)
  run(engine, session, 7)
  settle(engine)
  session.save(tmp_path / "a.stream")
  want = frames_of(engine, session, 6)
  keeper = open_session(engine)  # the restored one gets another row, other neighbours
  session.close()
  keeper.prompt("other")
  other = open_session(engine, seed=1)
  restored = engine.restore(tmp_path / "a.stream")
  assert restored.name == session.name and restored.settings == session.settings
  np.testing.assert_array_equal(frames_of(engine, restored, 6), want)
  del other
  assert not list(tmp_path.glob("*.partial"))


def test_the_held_action_is_restored(engine, tmp_path):
  check_the_held_action_is_restored(engine, tmp_path)
  broken = variant(engine, "action=self._held(saved.action)", "action=None")
  assert_caught(check_the_held_action_is_restored, broken, tmp_path)


def check_the_held_action_is_restored(engine, tmp_path):
  session = open_session(engine)
  session.act([0.25, -0.1])
  engine.tick()
  session.save(tmp_path / "a")
  restored = engine.restore(tmp_path / "a")
  assert restored.name != session.name  # it is taken
  engine.tick()
  chunks = settle(engine)
  np.testing.assert_array_equal(chunks[restored].actions, np.float32([[0.25, -0.1]]))
  np.testing.assert_array_equal(chunks[restored].frames, chunks[session].frames)


def test_damaged_and_foreign_files_are_refused_in_one_sentence(engine, alone, tmp_path):
  path = tmp_path / "a.stream"
  session = open_session(engine)
  session.save(path)
  whole = path.read_bytes()
  with pytest.raises(FileNotFoundError, match="no saved stream"):
    engine.restore(tmp_path / "none")
  damaged = tmp_path / "damaged"
  for cut in (0, 10, len(whole) // 2, len(whole) - 30):
    damaged.write_bytes(whole[:cut])
    with pytest.raises(ValueError, match="damaged"):
      engine.restore(damaged)
  flipped = bytearray(whole)
  with zipfile.ZipFile(path) as z:
    entry = z.getinfo("leaf_0.npy")
  flipped[entry.header_offset + 30 + len("leaf_0.npy") + entry.file_size - 3] ^= 8
  damaged.write_bytes(flipped)
  with pytest.raises(ValueError, match="damaged"):
    engine.restore(damaged)
  damaged.write_bytes(b"not a stream at all")
  with pytest.raises(ValueError, match="damaged"):
    engine.restore(damaged)
  with open(damaged, "wb") as f:
    np.savez(f, header=np.array([{"evil": 1}], object))
  with pytest.raises(ValueError, match="damaged"):
    engine.restore(damaged)
  session.close()
  assert alone.restore(path).index == 0  # the size of the batch does not matter
  alone.sessions[0].close()


def test_streams_of_other_networks_and_formats_are_refused(engine, tmp_path, monkeypatch):
  path = tmp_path / "a.stream"
  open_session(engine).save(path)
  monkeypatch.setattr(engine, "_identity", engine._identity | {"weights": 1})
  with pytest.raises(ValueError, match="another network: its weights"):
    engine.restore(path)
  monkeypatch.undo()
  with np.load(path) as f:
    arrays = dict(f)
  header = json.loads(bytes(arrays["header"]))
  for change, words in (({"format": 99}, "format 99"), ({"leaves": []}, "other shapes")):
    text = json.dumps(header | change).encode()
    with open(path, "wb") as f:
      np.savez(f, **(arrays | {"header": np.frombuffer(text, np.uint8)}))
    with pytest.raises(ValueError, match=words):
      engine.restore(path)


# ------------------------------------------------------------------------------------------------
# Robustness
# ------------------------------------------------------------------------------------------------


def test_a_session_that_breaks_leaves_the_others_alone(engine, alone):
  good, bad = open_session(engine, seed=9), open_session(engine, seed=10)
  good.act([1, -1])
  frames = [run(engine, good, 3, act=None)]
  poison = jax.tree.map(lambda a: np.full(a.shape, np.nan, a.dtype), engine._programs.row.frames)
  row = engine._snapshot(bad).row.replace(frames=poison)
  engine._cache = engine._programs.put(engine._cache, np.int32(bad._row), row)
  frames.append(run(engine, good, 4, act=None))
  assert bad.closed and "not finite" in bad.error and engine.free == 2
  with pytest.raises(RuntimeError, match="not finite"):
    bad.act([1, 1])
  single = open_session(alone, seed=9)
  single.act([1, -1])
  want = run(alone, single, 7, act=None)
  single.close()
  np.testing.assert_array_equal(np.concatenate(frames), want)


def test_bad_input_is_refused_and_changes_nothing(engine):
  session = open_session(engine)
  own = session.settings
  refused = [
    (lambda: session.act([1, 2, 3]), "shape"),
    (lambda: session.act("left"), "numbers"),
    (lambda: session.act([np.nan, 0]), "finite"),
    (lambda: session.set(steps=0), "steps"),
    (lambda: session.set(steps=4), "1 to 3"),
    (lambda: session.set(steps="many"), "whole number"),
    (lambda: session.set(window=5), "window"),
    (lambda: session.set(seed=-1), "seed"),
    (lambda: session.set(times=(0.5, 1.0)), "fall"),
    (lambda: session.set(times=(1.0, 0.8, 0.6, 0.4)), "max_steps"),
    (lambda: engine.open(), "context must be uint8"),
    (lambda: open_session(engine, context=CONTEXT[:1]), "context must be uint8"),
    (lambda: open_session(engine, context_actions=np.zeros((1, 2))), "context_actions"),
    (lambda: open_session(engine, name="a/b"), "slashes"),
    (lambda: open_session(engine, name=session.name), "unique"),
    (lambda: build(sessions=0), "sessions=0"),
  ]
  for call, words in refused:
    with pytest.raises(ValueError, match=words):
      call()
  assert session.settings == own and engine.free == 2
  open_session(engine), open_session(engine)
  with pytest.raises(RuntimeError, match="All 3 sessions"):
    open_session(engine)
  with pytest.raises(RuntimeError, match="All 3 sessions"):
    session.fork()
  session.close(), session.close()
  with pytest.raises(RuntimeError, match="closed"):
    session.act([1, 1])


def test_threads_may_act_while_it_ticks(engine):
  import threading

  session, stop, errors = open_session(engine), threading.Event(), []

  def press():
    while not stop.is_set():
      try:
        session.act(wiggle(session.index))
        session.set(steps=1 + session.index % 3, window=1 + session.index % 4)
        session.fork().close()
      except Exception as error:
        errors.append(error)

  threads = [threading.Thread(target=press) for _ in range(2)]
  for thread in threads:
    thread.start()
  chunks = []
  for _ in range(30):
    chunks += [c for s, c in engine.tick().items() if s is session]
  stop.set()
  for thread in threads:
    thread.join()
  assert not [e for e in errors if "All 3 sessions" not in str(e)]
  assert [c.index for c in chunks] == list(range(len(chunks))) and len(chunks) >= 29


def test_settings_know_their_bounds():
  good = session_module.Settings(0, (1.0,), 1, (), 4, "")
  good.check(max_steps=1, max_window=4)
  with pytest.raises(ValueError, match="seed"):
    session_module.Settings(2**32, (1.0,), 1, (), 4, "").check(max_steps=1, max_window=4)


def test_what_was_autosaved_survives_kills(tmp_path):
  lives = kill_stream.survive(tmp_path, 3)
  assert len(lives) == 3 and lives[-1]["a"] > 2


def test_a_failing_autosave_stops_no_stream(tmp_path):
  folder = tmp_path / "a file, no folder"
  folder.write_text("")
  engine = build(sessions=1, autosave=folder, autosave_every=1)
  session = open_session(engine)
  run(engine, session, 4)
  engine.close()
  assert "could not be saved" in engine.autosave_error
