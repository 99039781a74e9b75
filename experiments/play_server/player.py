"""One person at one page: what the messages of that page do to the sessions that it owns."""

import asyncio
import collections
import contextlib
import math
import time

import numpy as np

from experiments.play_server import protocol
from experiments.play_server.game import Game
from experiments.play_server.outbox import Frame, Outbox
from experiments.play_server.runner import Follower, Runner
from experiments.play_server.saves import Saves
from experiments.play_server.world import World

SETTINGS = ("steps", "window", "seed", "text")
RECENT = 256  # chunks that the page's numbers are about


class Player:
  """A page's worlds: "a", and after a fork "b" beside it.

  Args:
    world: what is played.
    runner: who runs it.
    outbox: where pictures and answers go.
    saves: where worlds are kept.
    places: of all players: held while a world takes a place, or leaves one to take it again.
  """

  def __init__(
    self, world: World, runner: Runner, outbox: Outbox, saves: Saves, places: asyncio.Lock
  ):
    self._world, self._runner, self._outbox, self._saves = world, runner, outbox, saves
    self._places = places
    self._worlds: dict[str, Follower] = {}
    self._recent = {name: collections.deque(maxlen=RECENT) for name in ("a", "b")}
    self._loop, self._lock, self._closed = asyncio.get_running_loop(), asyncio.Lock(), False
    self._game = None
    self._scenario = world.scenarios[0]
    self._lost: list[Follower] = []  # closed by the engine, and the page was told
    self._steer, self._down, self._number, self._paused = "both", [], 0, False

  # ----------------------------------------------------------------------------------------------
  # What the server calls
  # ----------------------------------------------------------------------------------------------

  @property
  def playing(self) -> bool:
    """Whether there is a world."""
    return bool(self._worlds)

  async def open(self) -> None:
    """Starts the first world.

    Raises:
      RuntimeError: the engine has no place for it.
    """
    steps, window = self._world.steps[0], self._world.window[0]
    text = self._scenario.text
    settings = {"seed": 0, "steps": steps, "window": window, "text": text}
    await self._finish(self._open(settings))
    self._tell_state()

  async def handle(self, message: dict) -> None:
    """Does what a checked message of the page asks for, or says why it cannot be done."""
    kind = message["type"]
    if kind == "ack":  # thirty of them a second
      self._outbox.acknowledge(message["serial"])
      return
    arguments = {name: value for name, value in message.items() if name != "type"}
    try:
      if not self._worlds:
        raise RuntimeError("There is no world yet.")
      await self._finish(getattr(self, f"_on_{kind}")(**arguments))
    except (ValueError, RuntimeError, OSError) as error:
      self._outbox.reply(protocol.say("error", code="refused", message=str(error), about=kind))
    if kind != "keys" and self._worlds:
      self._tell_state()

  def tell_stats(self) -> None:
    """Sends the numbers of the last chunks, and what has gone wrong without being asked."""
    worlds = {}
    for name, recent in self._recent.items():
      if name in self._worlds and recent:
        latency = [entry[0] for entry in recent]
        photon = [entry[1] for entry in recent if not math.isnan(entry[1])]
        worlds[name] = {
          "latency_p50": round(float(np.percentile(latency, 50)), 2),
          "latency_p95": round(float(np.percentile(latency, 95)), 2),
          "photon_p50": round(float(np.percentile(photon, 50)), 2) if photon else None,
        }
    self._outbox.reply(protocol.say("stats", worlds=worlds, dropped=self._outbox.dropped))
    for name, follower in self._worlds.items():
      if follower.session.closed and follower not in self._lost:
        self._lost.append(follower)
        sentence = f"{follower.session.error or 'The engine closed this world.'} Reset it."
        self._outbox.reply(protocol.say("error", code="closed", message=sentence, about=name))

  async def close(self) -> None:
    """Frees everything, once what is being done is done."""
    async with self._lock:
      self._closed = True
      self._stop_game()
      for name in list(self._worlds):
        await self._end(name)

  async def _finish(self, work):
    """Awaits `work` and lets it come to its end even if the page goes meanwhile.

    What it opens in a thread would otherwise belong to nobody.
    """

    async def locked():
      async with self._lock:
        if self._closed:
          work.close()
        else:
          await work

    await asyncio.shield(asyncio.ensure_future(locked()))

  # ----------------------------------------------------------------------------------------------
  # Messages
  # ----------------------------------------------------------------------------------------------

  async def _on_keys(self, down, id):
    self._down, self._number = down, id
    self._act()

  async def _on_set(self, steps=None, window=None, seed=None):
    for name, value, most in (
      ("steps", steps, self._world.steps[1]),
      ("window", window, self._world.window[1]),
    ):
      if value is not None and value > most:
        raise ValueError(f"{name} can be {most} at most in this world, not {value}.")
    new = {"steps": steps, "window": window, "seed": seed}
    if steps is not None:
      new["times"] = self._world.times(steps)
    for _, follower in self._steered():
      await asyncio.to_thread(follower.session.set, **new)

  async def _on_reset(self, seed=None, scenario=None):
    settings, before = self._settings(), self._scenario
    if scenario is not None:
      self._scenario = self._world.scenario(scenario)
      settings["text"] = self._scenario.text
    if seed is not None:
      settings["seed"] = seed
    await self._replace(self._start, settings)
    if self._game and self._scenario == before:
      await asyncio.to_thread(self._game.restart, settings["seed"])
    elif self._game:
      self._start_game()

  async def _on_prompt(self, text):
    if not self._world.reads_text:
      raise ValueError("This network was trained without text: it cannot be prompted.")
    for _, follower in self._steered():
      await asyncio.to_thread(follower.session.prompt, text)

  async def _on_pause(self, on):
    for _, follower in list(self._worlds.items()) if on != self._paused else ():
      if on:
        self._runner.unfollow(follower.session)
        await asyncio.to_thread(follower.session.pause)
      elif follower.session.paused:
        await asyncio.to_thread(follower.session.resume)
        self._runner.follow(follower)
    self._paused = on
    self._act()

  async def _on_rewind(self, frames):
    for name, follower in self._steered():
      gone = await asyncio.to_thread(follower.session.rewind, frames)
      self._outbox.forget(name)
      self._note(f"Went back {gone} frames.")

  async def _on_fork(self):
    if "b" in self._worlds:
      raise ValueError("There are two worlds already: keep one of them first.")
    self._need_running("forked")
    session = await asyncio.to_thread(self._worlds["a"].session.fork)
    self._add("b", session)
    self._steer = "both"

  async def _on_steer(self, to):
    if to not in ("both", *self._worlds):
      raise ValueError("There is only one world: fork it first.")
    self._steer = to
    self._act()

  async def _on_keep(self, world):
    if len(self._worlds) < 2 or world not in self._worlds:
      raise ValueError("There is only one world.")
    await self._end("b" if world == "a" else "a")
    if world == "b":
      self._rename_b()
    self._steer = "both"
    self._act()

  async def _on_save(self):
    session = self._steered()[0][1].session
    saved = await asyncio.to_thread(self._saves.save, session, self._scenario.name)
    self._note(f"Saved as {saved}.")

  async def _on_restore(self, name):
    path, scenario = self._saves.find(name)
    self._scenario = self._world.scenario(scenario)
    await self._replace(self._restore, path)
    self._note(f"Went on from {name}.")

  async def _on_game(self, on):
    if on and self._world.make_game is None:
      raise ValueError("There is no game behind this world: its data are not from a game.")
    if on:
      self._start_game()
    else:
      self._stop_game()

  # ----------------------------------------------------------------------------------------------
  # Worlds
  # ----------------------------------------------------------------------------------------------

  def _settings(self):
    """What the page shows of a world's settings: the steered one's."""
    now = self._steered()[0][1].session.settings
    return {name: getattr(now, name) for name in SETTINGS}

  async def _start(self, settings):
    begin = await asyncio.to_thread(self._world.begin, self._scenario.name, settings["seed"])
    text = settings["text"] if self._world.reads_text else ""
    session = await asyncio.to_thread(
      self._runner.engine.open,
      **(settings | {"text": text, "times": self._world.times(settings["steps"])}),
      **begin,
    )
    self._add("a", session)

  async def _restore(self, path):
    self._add("a", await asyncio.to_thread(self._runner.engine.restore, path))

  async def _open(self, settings):
    if not self._worlds:  # else a reset was under way, and this is the world that it has brought
      await self._replace(self._start, settings)

  async def _replace(self, start, *arguments):
    """Ends all worlds and starts another; if that fails, a fresh one."""
    before = self._settings() if self._worlds else None
    async with self._places:
      for name in list(self._worlds):
        await self._end(name)
      self._paused, self._steer, self._lost = False, "both", []
      try:
        await start(*arguments)
      except Exception:
        if before is not None:
          await self._start(before)
        raise

  def _add(self, name, session):
    follower = Follower(session, lambda *news: self._publish(follower, *news))
    self._worlds[name] = follower
    self._recent[name].clear()
    self._hold(follower, self._down)
    self._runner.follow(follower)

  async def _end(self, name):
    follower = self._drop(name)
    await asyncio.to_thread(follower.session.close)

  def _drop(self, name):
    follower = self._worlds.pop(name)
    self._runner.unfollow(follower.session)
    self._outbox.forget(name)
    return follower

  def _rename_b(self):
    self._worlds["a"] = self._worlds.pop("b")
    self._outbox.forget("b")

  def _steered(self):
    """(name, follower) of the worlds that keys and sliders are about."""
    return [(n, f) for n, f in self._worlds.items() if self._steer in ("both", n)]

  def _need_running(self, what):
    if self._paused:
      raise ValueError(f"A paused world cannot be {what}: let it run first.")

  def _act(self):
    """Tells the worlds what is held; one that is not steered is told that nothing is."""
    if self._paused:
      return
    steered = dict(self._steered())
    for name, follower in self._worlds.items():
      if not follower.session.closed:
        self._hold(follower, self._down if name in steered else [])

  def _hold(self, follower, down):
    if self._world.controls:
      follower.act(self._world.action(down), self._number)

  # ----------------------------------------------------------------------------------------------
  # Pictures
  # ----------------------------------------------------------------------------------------------

  def _publish(self, follower, *news):
    """In the engine's thread: hands a chunk over to the page's own loop."""
    with contextlib.suppress(RuntimeError):  # the loop has ended, and the page with it
      self._loop.call_soon_threadsafe(self._show, follower, *news)

  def _show(self, follower, chunk, number, photon, fresh):
    name = next((n for n, f in self._worlds.items() if f is follower), None)
    if name is None:
      return
    latency = 1e3 * (chunk.stamps.host - chunk.stamps.dispatch)
    self._recent[name].append((latency, 1e3 * photon if fresh else math.nan))
    frames = [
      Frame(
        chunk.stamps.host + i / self._world.frame_rate,
        pixels, chunk.index + i, number, latency, 1e3 * photon,
      )
      for i, pixels in enumerate(chunk.frames)
    ]  # fmt: skip
    self._outbox.show(name, frames)
    if self._game and name == self._steered()[0][0]:
      for action in () if chunk.actions is None else chunk.actions:
        self._game.act(action)

  def _start_game(self):
    self._stop_game()

    def show(frame, number):
      frame = Frame(time.perf_counter(), frame, number, 0, math.nan, math.nan)
      self._loop.call_soon_threadsafe(self._show_game, game, frame)

    def fail(sentence):
      self._loop.call_soon_threadsafe(self._game_failed, game, sentence)

    name, seed = self._scenario.name, self._settings()["seed"]
    self._game = game = Game(lambda: self._world.make_game(name), seed, show, fail)
    game.start()

  def _show_game(self, game, frame):
    if game is self._game:
      self._outbox.show("game", [frame])

  def _stop_game(self):
    if self._game:
      self._game.stop()
    self._game = None
    self._outbox.forget("game")

  def _game_failed(self, game, sentence):
    if game is not self._game:
      return
    self._stop_game()
    self._outbox.reply(protocol.say("error", code="game", message=sentence, about="game"))
    self._tell_state()

  # ----------------------------------------------------------------------------------------------
  # What the page is told
  # ----------------------------------------------------------------------------------------------

  def _note(self, sentence):
    self._outbox.reply(protocol.say("note", text=sentence))

  def _tell_state(self):
    settings = {name: follower.session.settings for name, follower in self._worlds.items()}
    self._outbox.reply(
      protocol.say(
        "state",
        worlds={n: {k: getattr(s, k) for k in SETTINGS} for n, s in settings.items()},
        steer=self._steer,
        scenario=self._scenario.name,
        paused=self._paused,
        game=self._game is not None,
        saves=self._saves.names(),
      )
    )
