"""The server on a real socket: its order of events, its limits, and 1,000 messages of nonsense."""

import asyncio
import io
import json
import random
import socket
import string
import threading
import time

import numpy as np
from fake_engine import FakeEngine
from PIL import Image
from play_world import BUTTONS, Page, make_world, page, serving
from websockets.asyncio.client import connect

from experiments.play_server import protocol
from experiments.play_server import server as server_module


def pixels(picture):
  return np.asarray(Image.open(io.BytesIO(picture.jpeg))).astype(int)


# ------------------------------------------------------------------------------------------------
# Playing
# ------------------------------------------------------------------------------------------------


def test_a_page_is_greeted_and_its_world_moves_as_the_keys_say(tmp_path):
  async def play():
    async with serving(tmp_path) as server, page(server) as one:
      kinds = [told["type"] for told in one.told]
      assert kinds[0] == "hello" and {"state", "status"} <= set(kinds)
      hello = one.told[0]
      assert hello["world"]["keys"]["left"] == "Turn left"
      await one.say("keys", down=["left"], id=41)
      await one.until(lambda p: p.pictures[-1].input_id == 41)
      first = next(p for p in one.pictures if p.input_id == 41)
      assert first.photon > 0 and first.frame > 0
      (session,) = server.engine.open_sessions
      assert session.action[BUTTONS.index("TURN_LEFT")] == 1 and session.action.sum() == -3
      assert session.past[-1][0] < 0
      shown = await one.watch(count=2)
      drawn = [server.engine.draw(session.settings, *at) for at in session.past]
      assert min(np.abs(pixels(shown) - frame).mean() for frame in drawn) < 3
      numbers = [p.frame for p in one.pictures]
      assert numbers == sorted(set(numbers))

  asyncio.run(play())


def test_fork_steer_and_keep(tmp_path):
  async def play():
    async with serving(tmp_path) as server, page(server) as one:
      state = await one.ask("fork")
      assert list(state["worlds"]) == ["a", "b"] and state["steer"] == "both"
      assert (await one.ask("fork"))["about"] == "fork"  # an error: there are two already
      await one.watch("b")
      await one.ask("steer", to="b")
      await one.say("keys", down=["up"], id=1)
      await one.until(lambda p: p.of("b")[-1].input_id == 1)
      a, b = server.engine.open_sessions
      assert (a.action == -1).all() and b.action[2] == 1
      assert (await one.ask("set", steps=4))["worlds"]["b"]["steps"] == 4
      assert a.settings.steps == 1
      state = await one.ask("keep", world="b")
      assert list(state["worlds"]) == ["a"] and list(server.engine.open_sessions) == [b]
      at = (await one.watch()).frame
      assert abs(at - b.index) < 30 and one.last("state")["worlds"]["a"]["steps"] == 4

  asyncio.run(play())


def test_rewind_save_restore_reset_prompt_and_pause(tmp_path):
  async def play():
    async with serving(tmp_path) as server, page(server) as one:
      await one.watch(count=20)
      assert (await one.ask("rewind", frames=15))["type"] == "state"
      assert "at most" in (await one.ask("rewind", frames=50_000))["message"]
      assert (await one.ask("save"))["saves"] == ["world-0001"]
      saved = one.of("a")[-1].frame
      state = await one.ask("reset", seed=5, scenario="maze")
      assert state["scenario"] == "maze" and state["worlds"]["a"]["text"] == "a maze of tiles"
      assert "no scenario" in (await one.ask("reset", scenario="../etc"))["message"]
      assert "no saved world" in (await one.ask("restore", name="../world-0001"))["message"]
      state = await one.ask("restore", name="world-0001")
      assert state["scenario"] == "plain" and state["worlds"]["a"]["seed"] == 0
      assert abs((await one.watch(count=1)).frame - saved) < 40
      assert (await one.ask("prompt", text="a sea"))["worlds"]["a"]["text"] == "a sea"
      assert "4 at most" in (await one.ask("set", steps=5))["message"]
      await one.ask("pause", on=True)
      await asyncio.sleep(0.1)
      seen = len(one.pictures)
      await asyncio.sleep(0.2)
      assert len(one.pictures) == seen
      await one.ask("pause", on=False)
      await one.watch()
      assert len(server.engine.open_sessions) == 1

  asyncio.run(play())


def test_the_true_game_steps_by_the_same_actions_and_its_failure_is_told(tmp_path):
  async def play():
    async with serving(tmp_path) as server, page(server) as one:
      await one.say("keys", down=["up"], id=1)
      await one.ask("game", on=True)
      await one.watch("game", count=20)
      levels = [pixels(p).mean() for p in one.of("game")]
      assert max(levels) > min(levels) + 20
      await one.ask("game", on=False)
      await one.watch()
      assert not any(t.name == "game" for t in threading.enumerate()) or await _ends("game")

    def broken(scenario):
      raise ImportError("the package is missing")

    world = make_world(FakeEngine(), make_game=broken)
    async with serving(tmp_path, world=world) as server, page(server) as one:
      await one.ask("game", on=True)
      told = await one.until(lambda p: p.last("error"))
      assert told["code"] == "game" and "the package is missing" in told["message"]
      await one.until(lambda p: not p.last("state")["game"])
      await one.watch()

  asyncio.run(play())


async def _ends(name):
  await asyncio.sleep(0.5)
  return not any(thread.name == name for thread in threading.enumerate())


def test_chunks_of_several_frames_are_shown_at_their_own_times(tmp_path):
  async def play():
    engine = FakeEngine(chunk=4, frame_rate=40.0)
    async with serving(tmp_path, engine) as server, page(server) as one:
      first, begin = await one.watch(), time.monotonic()
      last = await one.watch(count=40)
      assert time.monotonic() - begin > 0.7  # 40 frames are a second, four to a chunk
      numbers = [p.frame for p in one.pictures]
      assert numbers == sorted(set(numbers)) and last.frame >= first.frame + 40

  asyncio.run(play())


# ------------------------------------------------------------------------------------------------
# Limits
# ------------------------------------------------------------------------------------------------


def test_who_comes_too_late_waits_in_line_and_is_let_in(tmp_path):
  async def play():
    async with (
      serving(tmp_path, FakeEngine(sessions=1)) as server,
      page(server) as one,
      page(server, playing=False) as two,
    ):
      told = await two.until(lambda p: p.last("status"))
      assert told["state"] == "full" and "All 1 worlds" in told["text"]
      assert "sessions are taken" not in told["text"]
      refused = await one.ask("fork")
      assert refused["code"] == "refused" and "rows of the engine are taken" in refused["message"]
      assert "no world yet" in (await two.ask("fork"))["message"]
      assert not two.pictures
      async with page(server, playing=False) as three:
        told = await three.until(lambda p: p.last("status"))
        assert "1 before you" in told["text"]
        await one.socket.close()
        await two.watch()
        assert not three.pictures

  asyncio.run(play())


def test_a_reset_keeps_its_place_though_others_wait(tmp_path):
  class Slow(FakeEngine):
    def open(self, **given):
      time.sleep(0.4)  # longer than those who wait look away
      return super().open(**given)

  async def play():
    async with (
      serving(tmp_path, Slow(sessions=1)) as server,
      page(server) as one,
      page(server, playing=False) as two,
    ):
      await two.until(lambda p: p.last("status"))
      for seed in (1, 2):
        assert (await one.ask("reset", seed=seed))["type"] == "state"
      await one.watch()
      assert not two.pictures

  asyncio.run(play())


def test_a_slow_reset_is_not_taken_for_a_page_without_a_world(tmp_path):
  opened = []

  class Slow(FakeEngine):
    def open(self, **given):
      opened.append(given["seed"])
      time.sleep(1.2 if given["seed"] else 0.0)  # the server looks after its pages once a second
      return super().open(**given)

  async def play():
    async with serving(tmp_path, Slow()) as server, page(server) as one:
      assert (await one.ask("reset", seed=7))["worlds"]["a"]["seed"] == 7
      await one.say("keys", down=["up"], id=1)
      await asyncio.sleep(0.3)
      assert opened == [0, 7]
      assert one.last("error") is None and one.last("state")["worlds"]["a"]["seed"] == 7

  asyncio.run(play())


def test_who_has_lost_his_world_waits_in_line_again(tmp_path):
  class Failing(FakeEngine):
    broken = False

    def open(self, **given):
      if self.broken:
        raise RuntimeError("out of memory")
      return super().open(**given)

  async def play():
    async with serving(tmp_path, Failing()) as server, page(server) as one:
      server.engine.broken = True
      await one.ask("reset")
      assert "out of memory" in one.last("error")["message"]
      await one.until(lambda p: p.last("status")["state"] == "failed")
      assert "out of memory" in one.last("status")["text"]
      server.engine.broken = False
      await one.until(lambda p: p.last("status")["state"] == "ready")
      await one.watch()

  asyncio.run(play())


def test_more_pages_than_may_wait_are_told_so(tmp_path):
  async def play():
    async with serving(tmp_path, FakeEngine(sessions=1)) as server:
      url = server.url.replace("http", "ws") + "stream"
      crowd = [await connect(url, subprotocols=[protocol.SUBPROTOCOL]) for _ in range(17)]
      late = await connect(url, subprotocols=[protocol.SUBPROTOCOL])
      await late.wait_closed()
      assert late.close_code == 1013 and "Too many pages" in late.close_reason
      for one in crowd:
        await one.close()

  asyncio.run(play())


def test_an_engine_that_warms_up_or_breaks_says_so(tmp_path):
  gate = threading.Event()

  class Breaking(FakeEngine):
    def tick(self):
      if gate.is_set():
        raise FloatingPointError("not finite")
      return super().tick()

  engine = Breaking()

  def make_engine(say):
    say("Compiling")
    gate.wait(5)
    gate.clear()
    return engine

  world = make_world(engine)
  object.__setattr__(world, "make_engine", make_engine)

  async def play():
    async with serving(tmp_path, engine, world) as server, page(server, playing=False) as one:
      told = await one.until(lambda p: p.last("status"))
      assert told["state"] == "starting" and told["text"] in ("Starting", "Compiling")
      gate.set()
      await one.until(lambda p: p.pictures)
      gate.set()
      await one.until(lambda p: p.last("status")["state"] == "failed")
      assert "not finite" in one.last("status")["text"]
      async with page(server, playing=False) as two:
        await two.until(lambda p: (p.last("status") or {}).get("state") == "failed")

  asyncio.run(play())


def test_a_session_that_the_engine_closes_is_told_and_can_be_reset(tmp_path):
  async def play():
    async with serving(tmp_path) as server, page(server) as one:
      (session,) = server.engine.open_sessions
      session.error = "Session x was closed: its frames are not finite."
      session.close()
      told = await one.until(lambda p: p.last("error"))
      assert "not finite" in told["message"] and told["about"] == "a"
      assert (await one.ask("reset"))["type"] == "state"
      await one.watch()

  asyncio.run(play())


# ------------------------------------------------------------------------------------------------
# What goes wrong out there
# ------------------------------------------------------------------------------------------------


def nonsense(rng):
  """One malformed message: noise, broken JSON, or a good message with something wrong in it."""
  kind = rng.choice(sorted(protocol.MESSAGES))
  value = lambda: rng.choice(
    [None, True, -1, 1e308, 2**70, "", "\ud800", "a\u0000b", [], {}, [[]], {"type": "fork"}, 0.5]
  )
  good = {"type": kind, **{name: value() for name in protocol.MESSAGES[kind]}}
  return rng.choice(
    [
      lambda: bytes(rng.randrange(256) for _ in range(rng.randrange(60))),
      lambda: "".join(rng.choice(string.printable) for _ in range(rng.randrange(80))),
      lambda: json.dumps({**good, "more": 1}),
      lambda: json.dumps(good)[: rng.randrange(8, 14)],
      lambda: json.dumps({**good, "type": value()}),
      lambda: json.dumps([good]),
      lambda: f'{{"type": "rewind", "frames": {rng.choice(["NaN", "1e999", "0x1"])}}}',
      lambda: "[" * rng.randrange(1, 4000),
      lambda: json.dumps({"type": "prompt", "text": "x" * rng.randrange(4100, 60_000)}),
      lambda: json.dumps({"type": "keys", "down": [value()], "id": value()}),
      lambda: json.dumps({"type": "set", "steps": rng.choice([0, -3, 1.5, "1", True])}),
    ]
  )()


def test_a_thousand_malformed_messages_harm_nobody(tmp_path):
  rng = random.Random(0)

  async def play():
    async with serving(tmp_path) as server, page(server) as witness, page(server) as fuzzer:
      seen = len(witness.pictures)
      for _ in range(20):
        for _ in range(50):
          await fuzzer.socket.send(nonsense(rng))
        await witness.watch(count=1)  # meanwhile
      errors = lambda p: [told for told in p.told if told["type"] == "error"]
      await fuzzer.until(lambda p: len(errors(p)) >= 1000, timeout=30)
      assert len(errors(fuzzer)) == 1000  # one sentence each
      assert all(len(told["message"]) > 10 and told["message"].isascii() for told in errors(fuzzer))
      assert len({told["code"] for told in errors(fuzzer)}) >= 7

      # Beyond what is read at all: that connection is closed with a reason, the others stay.
      await fuzzer.socket.send("x" * 70_000)
      await fuzzer.socket.wait_closed()
      assert fuzzer.socket.close_code == 1009
      port = int(server.url.rstrip("/").rpartition(":")[2])
      for _ in range(20):  # no WebSocket, no HTTP
        _, writer = await asyncio.open_connection("127.0.0.1", port)
        writer.write(bytes(rng.randrange(256) for _ in range(200)) + b"\r\n\r\n")
        writer.close()

      await witness.watch(count=5)
      frames = [p.frame for p in witness.pictures[seen:]]
      assert len(frames) > 20 and frames == sorted(set(frames))
      assert not any(told["type"] == "error" for told in witness.told)
      assert (await witness.ask("set", steps=2))["worlds"]["a"]["steps"] == 2
      async with page(server) as fresh:
        await fresh.watch()

  asyncio.run(play())


def test_a_slow_reader_gets_the_newest_picture_and_delays_nobody(tmp_path):
  async def play():
    async with serving(tmp_path) as server, page(server) as other:
      async with page(server, acknowledge=False) as slow:
        await slow.until(lambda p: len(p.pictures) == 6)
        await other.watch(count=25)
        assert len(slow.pictures) == 6  # that many may be under way
        await slow.say("ack", serial=10**6)  # nonsense: never sent
        await asyncio.sleep(0.1)
        assert len(slow.pictures) == 6
        await slow.say("ack", serial=slow.pictures[-1].serial)
        await slow.until(lambda p: len(p.pictures) > 6)
        newest = slow.pictures[6]
        assert newest.serial == slow.pictures[5].serial + 1
        assert newest.frame > slow.pictures[5].frame + 20  # not what was waiting the longest
      # One who does not even read his socket: the server goes on, and can be left by others.
      port = int(server.url.rstrip("/").rpartition(":")[2])
      deaf = socket.create_connection(("127.0.0.1", port))
      deaf.sendall(
        f"GET /stream HTTP/1.1\r\nHost: 127.0.0.1:{port}\r\nUpgrade: websocket\r\nConnection: "
        "Upgrade\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\nSec-WebSocket-Version: 13\r\n"
        f"Sec-WebSocket-Protocol: {protocol.SUBPROTOCOL}\r\n\r\n".encode()
      )
      await asyncio.sleep(0.3)
      await other.watch(count=10)
      deaf.close()

  asyncio.run(play())


def test_a_page_that_never_acknowledges_is_given_up_and_its_place_is_free(tmp_path, monkeypatch):
  monkeypatch.setattr(server_module, "PATIENCE", 0.5)

  async def play():
    async with (
      serving(tmp_path, FakeEngine(sessions=1)) as server,
      page(server, acknowledge=False) as deaf,
      page(server, playing=False) as next_one,
    ):
      await asyncio.wait_for(deaf.socket.wait_closed(), 20)
      assert deaf.socket.close_code == 1008 and "for a minute" in deaf.socket.close_reason
      await next_one.watch()

  asyncio.run(play())


def test_pages_that_vanish_at_random_moments_leave_nothing_behind(tmp_path):
  rng = random.Random(1)
  talk = [
    ("fork", {}), ("pause", {"on": True}), ("reset", {"seed": 1}), ("save", {}),
    ("keys", {"down": ["left"], "id": 1}), ("rewind", {"frames": 2}), ("prompt", {"text": "x"}),
    ("game", {"on": True}),
  ]  # fmt: skip

  async def visit(server, seconds):
    url = server.url.replace("http", "ws") + "stream"
    socket = await connect(url, subprotocols=[protocol.SUBPROTOCOL])
    one = Page(socket)
    for kind, fields in rng.sample(talk, 4):
      await one.say(kind, **fields)
    await asyncio.sleep(seconds)
    if rng.random() < 0.5:
      socket.transport.abort()  # the cable
    await socket.close()
    one.reader.cancel()

  async def play():
    engine = FakeEngine(sessions=6, delay=0.002)
    async with serving(tmp_path, engine) as server, page(server) as witness:
      for _ in range(8):
        await asyncio.gather(*(visit(server, rng.random() * 0.15) for _ in range(4)))
      left = lambda: (len(engine.open_sessions), len(server._pages), len(server._waiting))
      for _ in range(400):
        if left() == (1, 1, 0):  # the witness's
          break
        await asyncio.sleep(0.05)
      assert left() == (1, 1, 0)
      await witness.watch(count=10)
    assert len(list((tmp_path / "saves").glob("*.txt"))) <= 20

  asyncio.run(play())
