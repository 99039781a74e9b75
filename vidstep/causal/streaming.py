"""The streaming engine: sessions that act at any time share one compiled step of fixed shape.

A tick makes one chunk for every running session, in two compiled calls whatever the sessions are
doing: `generate` (noise, denoising steps, cache append; the cache is donated) and `decode` (pixels,
uint8; the state of a codec that has one is donated). What differs between sessions is data: seed,
times, number of steps, window, actions. Frames are latent frames unless they are called pixels.
"""

import dataclasses
import pathlib
import threading
import time
from functools import partial

import jax
import numpy as np

from vidstep.causal import snapshot as files
from vidstep.causal.autosave import Writer
from vidstep.causal.batch import Batch
from vidstep.causal.inputs import check_context, embed
from vidstep.causal.programs import Programs
from vidstep.causal.seats import Seats
from vidstep.causal.session import Chunk, Session, Settings, Snapshot, Stamps
from vidstep.metrics.compilations import compilations
from vidstep.training.checksum import checksum_of


@dataclasses.dataclass(frozen=True, eq=False)
class _Flight:
  """A dispatched tick: pixels that will be there, and whose they are."""

  made: list  # of `vidstep.causal.batch.Made`
  parts: list  # (session, its `Made`, its row in it, its epoch, fields of its Chunk, arrival)
  dispatch: float


class Engine:
  """Sessions of one causal network, batched.

  Memory is constant: one cache of `sessions` rows, at most one chunk in flight, and `history`
  snapshots a session. After `warmup` nothing is compiled again.

  Args:
    network: a `CachedNetwork`, or what has its methods, `policy.window` and `cache.window`.
    params: its parameters.
    codec: a `vidstep.models.codec.VideoCodec`: a linear `Codec`, a `vidstep.models.vae.VAECodec`.
      One with a state along time has it kept beside each session's cache.
    frame_shape: (h, w, C) of a latent frame.
    chunk: latent frames made together, k; or (first, k) for another number in a stream's first.
    context_frames: clean first pixel frames that each session is opened with.
    sessions: rows of the batch: how many run at once.
    max_steps: most denoising steps of a chunk.
    frame_rate: pixel frames a second that the network was trained at; for pacing and reports.
    action_dim: length of an action; None asks `network.model`, 0 means none.
    text: None, or an encoder: [str] -> (tokens [1, L, Dt], mask [1, L]) of one fixed L, such as
      `vidstep.models.text.TextEncoder`. Mask None: all tokens are attended to, padding too (Wan).
    solver, context: of `next_chunk`; context="last_step" is the noisy context.
    overlap: a tick returns the chunk of the tick before, which was decoded while the next is made:
      more frames a second, for ticks one after the other. False: it waits for its own, so that
      actions are seen a tick sooner, for ticks at a pace that leaves time. May be changed at any
      time.
    history: snapshots that a session keeps for `rewind`; 0 for none.
    history_every: chunks between them.
    autosave: folder to which every session is written as it goes, or None.
    autosave_every: chunks between saves.
  """

  def __init__(
    self,
    network,
    params,
    codec,
    *,
    frame_shape,
    frame_rate,
    chunk=1,
    context_frames=0,
    sessions=4,
    max_steps=4,
    action_dim=None,
    text=None,
    solver="consistency",
    context="clean",
    overlap=True,
    history=8,
    history_every=8,
    autosave=None,
    autosave_every=32,
  ):
    at_least = {"sessions": 1, "max_steps": 1, "history": 0, "history_every": 1}
    given = locals()
    for name, least in (at_least | {"context_frames": 0, "autosave_every": 1}).items():
      if given[name] < least:
        raise ValueError(f"{name}={given[name]} must be at least {least}.")
    first, chunk = (chunk, chunk) if isinstance(chunk, int) else chunk
    if min(first, chunk) < 1:
      raise ValueError(f"chunk={chunk}, the first one {first}, must be at least 1.")
    self.network, self.params, self.codec = network, *jax.device_put((params, codec))
    self.frame_shape, self.frame_rate = tuple(frame_shape), float(frame_rate)
    self.chunk, self.first_chunk = chunk, first
    self.context_frames, self.max_steps, self.max_window = (
      context_frames,
      max_steps,
      int(network.policy.window),
    )
    self.overlap, self.history, self.history_every = overlap, history, history_every
    self.autosave_every = autosave_every
    self._folder = None if autosave is None else pathlib.Path(autosave)
    self._writer = None if autosave is None else Writer()
    self._text = text
    dim = network.model.action_dim if action_dim is None else action_dim
    self.action_shape = (chunk, dim) if dim else None

    self._lock = threading.RLock()  # of the rows, the cache and the dispatch; never held in a wait
    self._seats = Seats(sessions)
    self._flight: _Flight | None = None
    nothing = embed(text, "")
    self._programs = Programs(
      network, self.codec, self.params, sessions=sessions, first=first, chunk=chunk,
      frame_shape=self.frame_shape, context_frames=context_frames, text=nothing, solver=solver,
      context=context,
    )  # fmt: skip
    self._batch = Batch(self._programs, self.params, self.codec, nothing)
    self.pixels = self._programs.pixels  # (H, W, 3)
    self.context_latents = self._programs.context_latents
    self._identity = {
      "weights": checksum_of(self.params),
      "codec": checksum_of(self.codec),
      "policy": repr(getattr(network, "policy", None)),
      "chunk": [first, chunk],
      "frame_shape": list(self.frame_shape),
    }

  # ----------------------------------------------------------------------------------------------
  # What it costs
  # ----------------------------------------------------------------------------------------------

  @property
  def sessions(self) -> list[Session]:
    """The open sessions, paused ones included."""
    with self._lock:
      return self._seats.sessions

  @property
  def free(self) -> int:
    """Rows without a session."""
    return self._seats.free

  @property
  def chunk_frames(self) -> int:
    """Pixel frames of a chunk; a stream's first has fewer if its codec starts a clip with one."""
    return self.chunk * self.codec.factors[0]

  def pixel_index(self, index: int) -> int:
    """Number of the first pixel frame that latent frame `index` of a stream stands for."""
    time = self.codec.factors[0]
    return time * index - (0 if self.context_frames or not index else time - 1)

  @property
  def session_bytes(self) -> int:
    """Bytes of one session's cache and codec; `history` snapshots more of them are kept."""
    leaves = jax.tree.leaves(self._programs.row)
    return sum(a.dtype.itemsize * int(np.prod(a.shape)) for a in leaves)

  def warmup(self) -> float:
    """Compiles everything, on a session of its own; returns the seconds it took.

    Raises:
      RuntimeError: if no row is free.
    """
    begin = time.perf_counter()
    video = np.zeros((self.context_frames, *self.pixels), np.uint8)
    session = self.open(context=video if self.context_frames else None)
    self.tick()
    session.pause()
    session.resume()
    if self._text is not None:
      session.prompt("")
    self.tick()
    session.close()
    self._flight = None
    jax.block_until_ready(self._batch.state)
    return time.perf_counter() - begin

  def compilations(self) -> int:
    """Programs that the process has compiled; constant once `warmup` is over."""
    return compilations()

  # ----------------------------------------------------------------------------------------------
  # Sessions come and go
  # ----------------------------------------------------------------------------------------------

  def open(
    self,
    *,
    seed=0,
    context=None,
    context_actions=None,
    text=None,
    times=(1.0,),
    steps=None,
    first_times=(),
    window=None,
    name=None,
  ) -> Session:
    """Opens a session; its first frames come with the next tick.

    Args:
      seed: of its noise.
      context: uint8 [n, H, W, 3] pixel frames that precede the stream, n = context_frames.
      context_actions: [n, A] that led into their latent frames; None is the null action.
      text: the prompt; None for none.
      times: falling times of the denoising steps, the first being 1.
      steps: how many of them are made; None: all. `Session.set` changes it.
      first_times: those of the first chunk; () for no difference.
      window: latent frames of the past that are read; None: all that the cache holds.
      name: of the session, and of its autosave; None makes one up.

    Raises:
      ValueError: for what this engine cannot do, one sentence.
      RuntimeError: if all rows are taken.
    """
    opened = time.perf_counter()
    times = tuple(map(float, times))
    settings = Settings(
      seed,
      times,
      len(times) if steps is None else steps,
      tuple(map(float, first_times)),
      self.max_window if window is None else window,
      text or "",
    )
    settings.check(max_steps=self.max_steps, max_window=self.max_window)
    video, actions = check_context(context, context_actions, self)
    embedded = embed(self._text, settings.text)
    with self._lock:
      session = Session(self, self._seats.name(name), settings)
      session.opened = opened
      row = self._batch.begin(video, actions, embedded, np.int32([settings.window]))
      self._seat(session, row)
    return session

  def restore(self, path, *, name=None) -> Session:
    """Opens the session that was saved to a file; it goes on as it would have, bit for bit.

    Raises:
      FileNotFoundError, ValueError: see `vidstep.causal.snapshot.load`.
      RuntimeError: if all rows are taken.
    """
    opened = time.perf_counter()
    saved, own = files.load(path, like=self._programs.row, network=self._identity)
    saved.settings.check(max_steps=self.max_steps, max_window=self.max_window)
    with self._lock:
      taken = {s.name for s in self.sessions}
      name = name or (own if own not in taken else None)
      name, held = self._seats.name(name), self._held(saved.action)
      session = Session(self, name, saved.settings, index=saved.index, action=held)
      session.opened = opened
      self._seat(session, jax.device_put(saved.row))
    return session

  def close(self):
    """Closes all sessions and finishes what is being saved."""
    for session in self.sessions:
      session.close()
    if self._writer is not None:
      self._writer.close()

  @property
  def autosave_error(self) -> str | None:
    """Why the last autosave that failed did, or None."""
    return None if self._writer is None else self._writer.error

  # ----------------------------------------------------------------------------------------------
  # A tick
  # ----------------------------------------------------------------------------------------------

  def tick(self) -> dict[Session, Chunk]:
    """Dispatches one chunk of every running session, and returns chunks that are ready.

    With `overlap` those of the tick before, else its own. Actions are read as late as can be: just
    before the dispatch, and that not before the device has made the latents of the chunk in flight,
    of which only decoding and copying are left. A session whose latents are not finite is closed,
    with its `error`; the others go on.
    """
    flight = self._flight
    if flight is not None:
      jax.block_until_ready([made.latents for made in flight.made])
    with self._lock:
      if self.overlap:
        due, self._flight = self._flight, self._dispatch()
      else:  # what is still in flight, if overlap was on until now, comes first
        due, self._flight = self._flight or self._dispatch(), None
    return {} if due is None else self._collect(due)

  def _dispatch(self):
    running = self._seats.running
    if not running:
      return None
    for _, session in running:
      number = 1 + (session.index - self.first_chunk) // self.chunk if session.index else 0
      if self.history and number % self.history_every == 0:
        session._history.append(self._snapshot(session))
      if self._writer is not None and number and number % self.autosave_every == 0:
        self._autosave(session)
    told, parts, firsts = self._tell(running)
    dispatch = time.perf_counter()
    made = self._batch.tick(told, firsts, later=len(firsts) < len(running))
    flown = []
    for session, row, *rest in parts:
      own = (made[row], 0) if row in firsts else (made[None], row)
      flown.append((session, *own, *rest))
      session.index += self.chunk if session.index else self.first_chunk
    return _Flight(list(made.values()), flown, dispatch)

  def _tell(self, running):
    """What the compiled steps are told, and whose chunks are first ones, as `Batch.tick` wants it.

    Fresh arrays each time: the device may read them in place.
    """
    count, unequal = len(self._seats), self.first_chunk != self.chunk
    told = {
      "seed": np.zeros(count, np.uint32),
      "frame": np.zeros(count, np.int32),
      "times": np.ones((count, self.max_steps), np.float32),
      "steps": np.ones(count, np.int32),
      "window": np.full(count, self.max_window, np.int32),
    }
    if self.action_shape:
      told["actions"] = np.zeros((count, *self.action_shape), np.float32)
    for row, session in running:
      told["frame"][row] = session.index
      for name, value in session._told(self.max_steps).items():
        told[name][row] = value
    parts, firsts = [], {}
    for row, session in running:
      first = self._programs.alone and not session.index
      actions, arrival = session._read_action()
      if first:
        firsts[row] = {k: v[row : row + 1] for k, v in told.items()} if unequal else None
      if actions is not None:
        if first and unequal:
          actions = actions[np.minimum(np.arange(self.first_chunk), self.chunk - 1)]
          firsts[row]["actions"] = actions[None]
        else:
          told["actions"][row] = actions
      fields = {
        "index": session.index,
        "pixel_index": self.pixel_index(session.index),
        "actions": actions,
        "steps": int(told["steps"][row]),
      }
      parts.append((session, row, session._epoch, fields, arrival))
    return told, parts, firsts

  def _collect(self, flight):
    jax.block_until_ready(flight.made)
    ready = time.perf_counter()
    landed = {id(made): (np.asarray(made.frames), np.asarray(made.finite)) for made in flight.made}
    host = time.perf_counter()
    chunks = {}
    for session, made, row, epoch, fields, arrival in flight.parts:
      if session.closed or session._epoch != epoch:
        continue
      frames, finite = landed[id(made)]
      if not finite[row]:
        self._fail(session, f"its frames from {fields['index']} on are not finite")
        continue
      stamps = Stamps(arrival, flight.dispatch, ready, host)
      chunks[session] = Chunk(frames=frames[row], stamps=stamps, **fields)
    return chunks

  # ----------------------------------------------------------------------------------------------
  # What sessions ask for
  # ----------------------------------------------------------------------------------------------

  def _snapshot(self, session):
    parked = session._parked
    row = self._batch.take(session._row) if parked is None else parked
    held = None if session._action is None else session._action[-1]
    return Snapshot(row, session.index, session.settings, held)

  def _set(self, session, new):
    with self._lock:
      settings = dataclasses.replace(session.settings, **new)
      settings.check(max_steps=self.max_steps, max_window=self.max_window)
      session.settings = settings

  def _prompt(self, session, text):
    if self._text is None:
      raise ValueError("This engine knows no text: build it with text=encoder.")
    embedded = embed(self._text, text)
    with self._lock:
      session._check_open()
      if session.paused:
        raise RuntimeError("Resume the session before you change its prompt.")
      self._batch.switch(session._row, embedded)
      session.settings = dataclasses.replace(session.settings, text=text)

  def _fork(self, session, name):
    with self._lock:
      session._check_open()
      now = self._snapshot(session)
      name, held = self._seats.name(name), self._held(now.action)
      how = {"index": now.index, "action": held, "history": session._history}
      other = Session(self, name, now.settings, **how)
      other.opened = time.perf_counter()
      self._seat(other, now.row)
    return other

  def _rewind(self, session, frames):
    with self._lock:
      session._check_open()
      history = session._history
      if frames < 1 or not any(s.index <= session.index - frames for s in history):
        far = session.index - history[0].index if history else 0
        raise ValueError(f"Cannot go back {frames} frames; this session can go back 1 to {far}.")
      while history[-1].index > session.index - frames:
        history.pop()
      then = history.pop()  # taken again when its chunk is dispatched
      gone, session.index = session.index - then.index, then.index
      session.settings = dataclasses.replace(session.settings, text=then.settings.text)
      session._epoch += 1
      if session.paused:
        session._parked = then.row
      else:
        self._batch.put(session._row, then.row)
    return gone

  def _pause(self, session):
    with self._lock:
      session._check_open()
      if not session.paused:
        session._parked = self._batch.take(session._row)
        self._seats.leave(session, paused=True)

  def _resume(self, session):
    with self._lock:
      session._check_open()
      if session.paused:
        self._seat(session, session._parked)
        session._parked = None

  def _save(self, session, path):
    with self._lock:
      session._check_open()
      now = self._snapshot(session)
    files.save(path, now, name=session.name, network=self._identity)

  def _autosave(self, session):
    path, now = self._folder / f"{session.name}.stream", self._snapshot(session)
    write = partial(files.save, path, now, name=session.name, network=self._identity)
    self._writer.put(session.name, write)

  def _close(self, session):
    with self._lock:
      if not session.closed:
        session.closed = True
        session._parked = None
        session._history.clear()
        self._seats.leave(session)

  def _fail(self, session, sentence):
    session.error = f"Session {session.name} was closed: {sentence}."
    session.close()

  def _seat(self, session, state):
    row = self._seats.find()
    self._batch.put(row, state)
    self._seats.take(row, session)

  def _held(self, action):
    return None if action is None else np.broadcast_to(action, self.action_shape)
