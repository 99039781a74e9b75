"""The server: connections come and go, each with a player of its own, all on one runner."""

import asyncio
import contextlib
import ipaddress
import logging
import time

from websockets.asyncio.server import serve
from websockets.exceptions import ConnectionClosed

from experiments.play_server import http, protocol
from experiments.play_server.outbox import Outbox
from experiments.play_server.player import Player
from experiments.play_server.runner import Runner
from experiments.play_server.saves import Saves
from experiments.play_server.world import World

LARGEST = 64 * 1024  # bytes; beyond them a message is not even read, and the connection closed
WAITING = 16  # pages that may wait for a place
PATIENCE = 60.0  # seconds without an acknowledgement after which a page is given up


class Server:
  """Serves the page and its stream.

  Args:
    world: what is played.
    runner: a started `Runner` of it.
    saves: where worlds are kept.
    host, port: where to listen; port 0 takes any that is free.
    max_sessions: places; a page needs one, a forked one two.
    max_message_bytes: longest message from a page.
    quality: of the JPEGs, 1 to 95.

  Attributes:
    url: of the page, once `start`ed.
  """

  def __init__(
    self,
    world: World,
    runner: Runner,
    saves: Saves,
    *,
    host: str = "127.0.0.1",
    port: int = 0,
    max_sessions: int = 4,
    max_message_bytes: int = 4096,
    quality: int = 95,
  ):
    self._world, self._runner, self._saves = world, runner, saves
    self._host, self._port, self._quality = host, port, quality
    self._max_sessions, self._max_message_bytes = max_sessions, max_message_bytes
    self._loopback = host == "localhost" or ipaddress.ip_address(host).is_loopback
    self._pages: set = set()
    self._places = asyncio.Lock()
    self._waiting: list = []  # outboxes of pages without a place, first come first served
    self.url = None

  @contextlib.asynccontextmanager
  async def start(self):
    """Listens inside the `async with`.

    Raises:
      OSError: the port is taken, or the host is not this machine's.
    """
    logger = logging.getLogger("vidstep.play")
    logger.setLevel(logging.CRITICAL)  # scanners and closed tabs are no news
    async with serve(
      self._page,
      self._host,
      self._port,
      process_request=lambda _, request: http.respond(request, loopback=self._loopback),
      subprotocols=[protocol.SUBPROTOCOL],
      compression=None,  # pictures are compressed; nothing sent here may unfold in memory
      max_size=LARGEST,
      max_queue=8,
      open_timeout=10,
      ping_interval=15,
      ping_timeout=15,
      close_timeout=2,
      server_header=None,
      logger=logger,
    ) as server:
      port = server.sockets[0].getsockname()[1]
      shown = self._host if self._host not in ("0.0.0.0", "::") else "127.0.0.1"
      self.url = f"http://{f'[{shown}]' if ':' in shown else shown}:{port}/"
      yield self

  # ----------------------------------------------------------------------------------------------
  # One page
  # ----------------------------------------------------------------------------------------------

  async def _page(self, socket):
    if len(self._pages) >= self._max_sessions + WAITING:
      await socket.close(1013, "Too many pages are open: close one and try again.")
      return
    outbox = Outbox(self._quality, keep=2 * self._world.chunk + 2)
    player = Player(self._world, self._runner, outbox, self._saves, self._places)
    self._pages.add(player)
    jobs = [
      asyncio.create_task(job)
      for job in (
        self._send(socket, outbox),
        self._receive(socket, player, outbox),
        self._attend(socket, player, outbox),
      )
    ]
    try:
      done, _ = await asyncio.wait(jobs, return_when=asyncio.FIRST_COMPLETED)
      for job in done:
        if not isinstance(job.exception(), (ConnectionClosed, ConnectionError, type(None))):
          logging.getLogger(__name__).error("A page was closed", exc_info=job.exception())
          await socket.close(1011, "The server made a mistake with this page; reload it.")
    finally:
      for job in jobs:
        job.cancel()
      await asyncio.gather(*jobs, return_exceptions=True)
      self._pages.discard(player)
      if outbox in self._waiting:
        self._waiting.remove(outbox)
      await player.close()

  async def _send(self, socket, outbox):
    while True:
      for message in await outbox.next():
        await socket.send(message)

  async def _receive(self, socket, player, outbox):
    async for message in socket:
      await outbox.room()
      try:
        await player.handle(protocol.parse(message, self._max_message_bytes))
      except protocol.ProtocolError as failure:
        outbox.reply(protocol.error(failure))

  async def _attend(self, socket, player, outbox):
    """Says hello, waits for the engine and for a place, then reports once a second."""
    limits = {"sessions": self._max_sessions, "message_bytes": self._max_message_bytes}
    outbox.reply(
      protocol.say("hello", version=protocol.VERSION, world=self._world.describe(), limits=limits)
    )
    while self._runner.state in ("starting", "ready"):
      if not player.playing:
        await self._find_place(player, outbox)
      if outbox.stalled > PATIENCE:
        await socket.close(1008, "The page has not shown a picture for a minute.")
      await asyncio.sleep(1.0)
      player.tell_stats()
    self._say_status(outbox, "failed", self._runner.stage)
    await asyncio.get_running_loop().create_future()  # until the page goes

  async def _find_place(self, player, outbox):
    self._waiting.append(outbox)
    while not await self._admit(player, outbox):
      await asyncio.sleep(0.25)
    self._waiting.remove(outbox)
    outbox.reply(protocol.say("status", state="ready", text="Ready", seconds=0.0))

  async def _admit(self, player, outbox):
    """Whether the player has a world now; says what it waits for."""
    state = self._runner.state
    if state != "ready":
      self._say_status(outbox, "failed" if state != "starting" else state, self._runner.stage)
      return False
    ahead = self._waiting.index(outbox)
    if not ahead and self._runner.engine.free:
      try:
        await player.open()
      except (ValueError, RuntimeError, OSError) as error:
        self._say_status(outbox, "failed", str(error))
      return player.playing
    line = f", {ahead} before you" if ahead else ""
    places = f"All {self._max_sessions} worlds of this server are being played"
    self._say_status(outbox, "full", f"{places}{line}. Yours starts when one is free.")
    return False

  def _say_status(self, outbox, state, text):
    seconds = round(time.monotonic() - self._runner.since, 1)
    outbox.reply(protocol.say("status", state=state, text=text, seconds=seconds))
