"""Whom the server serves: its own page at its own address, and no other site's."""

import asyncio
import urllib.error
import urllib.request

import pytest
from play_world import serving
from websockets.asyncio.client import connect
from websockets.datastructures import Headers
from websockets.exceptions import InvalidStatus, NegotiationError
from websockets.http11 import Request

from experiments.play_server import http, protocol


def fetch(url, **headers):
  """(status, headers, body) of a GET."""
  try:
    with urllib.request.urlopen(urllib.request.Request(url, headers=headers), timeout=5) as answer:
      return answer.status, answer.headers, answer.read()
  except urllib.error.HTTPError as error:
    with error:
      return error.code, error.headers, error.read()


def test_the_page_is_served_with_a_policy_that_loads_nothing_else(tmp_path):
  async def look():
    async with serving(tmp_path) as server:
      for name, kind in (
        ("", "text/html"),
        ("play.js", "text/javascript"),
        ("play.css", "css"),
        ("graph.js", "script"),
      ):
        status, headers, body = await asyncio.to_thread(fetch, server.url + name)
        assert status == 200 and kind in headers["Content-Type"] and len(body) > 1000
        assert "default-src 'none'" in headers["Content-Security-Policy"]
        assert headers["X-Content-Type-Options"] == "nosniff"
        assert b"http" not in body.replace(b"http://www.w3.org/2000/svg", b"")  # nothing from afar
      for name in ("etc", "../play.py", "play.js/../../play.py", "stream"):
        status, _, _ = await asyncio.to_thread(fetch, server.url + name)
        assert status in (404, 426)  # 426: this is a WebSocket

  asyncio.run(look())


@pytest.mark.parametrize(
  ("host", "origin", "welcome"),
  [
    (None, None, True),  # a program
    (None, "own", True),
    ("localhost", "http://localhost", True),
    (None, "http://evil.example", False),
    (None, "null", False),  # a sandboxed frame, a file
    (None, "http://127.0.0.1:1", False),  # another server on this machine
    ("evil.example", "http://evil.example", False),  # DNS rebinding
    ("192.168.0.9", None, False),  # not loopback
    ("localhost.evil.example", None, False),
    ("[", None, False),
  ],
)
def test_pages_of_other_sites_cannot_drive_the_world(tmp_path, host, origin, welcome):
  async def knock():
    async with serving(tmp_path) as server:
      port = server.url.rstrip("/").rpartition(":")[2]
      headers = {"Origin": origin} if origin else {}
      if origin == "own":
        headers["Origin"] = server.url.rstrip("/")
      elif host and origin:
        headers["Origin"] = f"{origin}:{port}"
      # The handshake by hand: a client library would set Host itself.
      lines = [
        f"Host: {host or '127.0.0.1'}:{port}", "Upgrade: websocket", "Connection: Upgrade",
        "Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==", "Sec-WebSocket-Version: 13",
        f"Sec-WebSocket-Protocol: {protocol.SUBPROTOCOL}",
        *(f"{name}: {value}" for name, value in headers.items()),
      ]  # fmt: skip
      for path in ("/stream", "/"):
        reader, writer = await asyncio.open_connection("127.0.0.1", int(port))
        writer.write("\r\n".join([f"GET {path} HTTP/1.1", *lines, "", ""]).encode())
        status = int((await reader.readline()).split()[1])
        writer.close()
        await writer.wait_closed()
        assert status == ({"/stream": 101, "/": 200}[path] if welcome else 403), path

  asyncio.run(knock())


@pytest.mark.parametrize(
  ("host", "origin", "welcome"),
  [
    ("192.168.0.9:8765", "http://192.168.0.9:8765", True),
    ("[fe80::1]:8765", None, True),
    ("127.0.0.1:8765", "http://127.0.0.1:8765", True),
    ("192.168.0.9:8765", "http://evil.example", False),
    ("evil.example:8765", "http://evil.example:8765", False),
    ("", None, False),
  ],
)
def test_open_to_the_network_it_is_reached_by_address_alone(host, origin, welcome):
  headers = Headers({"Host": host} | ({"Origin": origin} if origin else {}))
  request = Request("/stream", headers)
  assert (http.respond(request, loopback=False) is None) == welcome


def test_two_hosts_in_a_request_are_refused():
  headers = Headers([("Host", "127.0.0.1"), ("Host", "evil.example")])
  assert http.respond(Request("/stream", headers), loopback=True).status_code == 403


def test_a_client_of_another_version_is_refused_in_the_handshake(tmp_path):
  async def knock():
    async with serving(tmp_path) as server:
      url = server.url.replace("http", "ws") + "stream"
      with pytest.raises((InvalidStatus, NegotiationError)):
        async with connect(url, subprotocols=["vidstep.play.99"]):
          pass

  asyncio.run(knock())
