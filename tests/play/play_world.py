"""A played world without a network, its server in this process, and a small client for tests."""

import asyncio
import contextlib
import json
import time

import numpy as np
from fake_engine import FakeEngine
from websockets.asyncio.client import connect

from experiments.play_server import protocol
from experiments.play_server.runner import Runner
from experiments.play_server.saves import Saves
from experiments.play_server.server import Server
from experiments.play_server.world import Scenario, World
from vidstep.data.controls import Control

BUTTONS = ("TURN_LEFT", "TURN_RIGHT", "MOVE_FORWARD", "MOVE_BACKWARD", "ATTACK")


class FakeGame:
  """A true game: a picture whose brightness counts the forward steps; an episode has 40."""

  def reset(self, seed):
    self.level = seed % 7
    return self._frame()

  def step(self, action):
    self.level += int(action[2] > 0)
    return None if self.level > 40 else self._frame()

  def close(self):
    pass

  def _frame(self):
    return np.full((48, 48, 3), 5 * self.level, np.uint8)


def make_world(engine, make_game=lambda scenario: FakeGame()):
  return World(
    title="Tiles",
    frame_rate=engine.frame_rate,
    chunk=engine.chunk,
    size=(engine.size, engine.size),
    controls=tuple(Control("button", (name,)) for name in BUTTONS),
    scenarios=(Scenario("plain", "a plain of tiles"), Scenario("maze", "a maze of tiles")),
    reads_text=True,
    steps=(1, engine.max_steps),
    window=(8, 16),
    make_engine=lambda say: engine,
    make_game=make_game,
    about={"network": "none: a test"},
  )


@contextlib.asynccontextmanager
async def serving(tmp_path, engine=None, world=None, **options):
  """A server on a free port around a fake engine; `server.engine` is that engine."""
  engine = engine or FakeEngine()
  runner = Runner((world or make_world(engine)).make_engine)
  runner.start()
  options = {"max_sessions": engine.sessions} | options
  saves = Saves(tmp_path / "saves")
  try:
    async with Server(world or make_world(engine), runner, saves, **options).start() as server:
      server.engine, server.runner = engine, runner
      yield server
  finally:
    assert runner.stop()


class Page:
  """What a page does, in Python: reads everything, acknowledges pictures."""

  def __init__(self, socket, acknowledge=True):
    self.socket, self.acknowledge = socket, acknowledge
    self.told, self.pictures, self.news = [], [], asyncio.Event()
    self.reader = asyncio.create_task(self._read())

  async def _read(self):
    async for message in self.socket:
      if isinstance(message, str):
        self.told.append(json.loads(message))
      else:
        self.pictures.append(protocol.read_picture(message))
        if self.acknowledge:
          await self.say("ack", serial=self.pictures[-1].serial)
      self.news.set()

  async def say(self, kind, **fields):
    await self.socket.send(json.dumps({"type": kind, **fields}))

  async def until(self, wanted, timeout=20.0):
    """Waits until `wanted(self)` is true and returns it."""
    end = time.monotonic() + timeout
    while not (found := wanted(self)):
      assert not self.reader.done(), f"closed: {self.socket.close_code} {self.socket.close_reason}"
      self.news.clear()
      with contextlib.suppress(TimeoutError):
        await asyncio.wait_for(self.news.wait(), max(end - time.monotonic(), 0.01))
      assert time.monotonic() < end, f"not in {timeout} s; told last: {self.told[-3:]}"
    return found

  def last(self, kind):
    return next((told for told in reversed(self.told) if told["type"] == kind), None)

  async def ask(self, kind, **fields):
    """Says something; returns the error or else the state that answers it."""
    before = len(self.told)
    await self.say(kind, **fields)

    def answer(page):  # what is refused is followed by the state that stays; nonsense is not
      errors = [t for t in page.told[before:] if t["type"] == "error"]
      states = [t for t in page.told[before:] if t["type"] == "state"]
      lost = ("no world yet", "out of memory")  # without a world there is no state
      final = [t for t in errors if t["code"] != "refused" or any(m in t["message"] for m in lost)]
      return (final or errors or states) if final or states else None

    return (await self.until(answer))[0]

  def of(self, stream):
    return [picture for picture in self.pictures if picture.stream == stream]

  async def watch(self, stream="a", count=3):
    """Waits for so many more pictures of a stream and returns the last."""
    wanted = len(self.of(stream)) + count
    await self.until(lambda page: len(page.of(stream)) >= wanted)
    return self.of(stream)[-1]


@contextlib.asynccontextmanager
async def page(server, *, playing=True, acknowledge=True, **options):
  """A connected `Page`; with `playing` its pictures are coming."""
  url = server.url.replace("http", "ws") + "stream"
  async with connect(url, subprotocols=[protocol.SUBPROTOCOL], **options) as socket:
    one = Page(socket, acknowledge)
    try:
      if playing:
        await one.until(lambda p: p.pictures)
      yield one
    finally:
      one.reader.cancel()
