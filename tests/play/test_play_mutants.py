"""The server's proofs on broken servers: each must fail."""

import pytest
import test_play_protocol
import test_play_server
import test_play_sites
from mutation import assert_caught, mutant

from experiments.play_server import http, outbox, protocol, server

OTHER_SITES = test_play_sites.test_pages_of_other_sites_cannot_drive_the_world


@pytest.mark.parametrize(
  ("old", "new", "visitor"),
  [
    ('origin != f"http://{host}"', "False", (None, "http://evil.example")),
    ("origin is not None and", "origin and origin != 'null' and", (None, "null")),
    ('return name == "localhost"', "return True", ("evil.example", "http://evil.example")),
    ("address.is_loopback or not loopback", "True", ("192.168.0.9", None)),
  ],
)
def test_a_door_left_open_is_noticed(tmp_path, monkeypatch, old, new, visitor):
  monkeypatch.setattr(server, "http", mutant(http, old, new))
  assert_caught(OTHER_SITES, tmp_path, *visitor, False)


@pytest.mark.parametrize(
  ("old", "new"),
  [
    ("self._sent - self._acked >=", "-1 >="),  # sends whatever there is
    ("waiting.popleft()\n      self.dropped", "waiting.pop()\n      self.dropped"),  # the newest
    ("if self._acked < serial <= self._sent:", "if True:"),  # believes any number
  ],
)
def test_a_queue_without_bounds_is_noticed(tmp_path, monkeypatch, old, new):
  monkeypatch.setattr(server, "Outbox", mutant(outbox, old, new).Outbox)
  check = test_play_server.test_a_slow_reader_gets_the_newest_picture_and_delays_nobody
  assert_caught(check, tmp_path)


@pytest.mark.parametrize(
  ("old", "new", "message"),
  [
    ("and not isinstance(v, bool)", "", '{"type": "keys", "down": [], "id": true}'),
    (", parse_constant=_refuse_constant", "", '{"type": "fork", "x": NaN}'),
    ("if name != ", "if False and name != ", '{"type": "fork", "extra": 1}'),
  ],
)
def test_a_message_let_through_is_noticed(monkeypatch, old, new, message):
  broken = mutant(protocol, old, new)
  monkeypatch.setattr(test_play_protocol, "protocol", broken)
  code = "json" if "NaN" in message else "value" if "keys" in message else "field"
  check = test_play_protocol.test_what_is_wrong_is_said_in_a_sentence

  def refuses():
    try:
      check(message, code, ".")
    except pytest.fail.Exception as error:  # "did not raise"
      raise AssertionError(str(error)) from error

  assert_caught(refuses)
