"""Messages between page and server: what is understood, what is refused and in which words."""

import json
import math
import pathlib
import re

import pytest

from experiments.play_server import protocol

GOOD = [
  {"type": "keys", "down": ["left", "fire"], "id": 7},
  {"type": "ack", "serial": 2**32 - 1},
  {"type": "set", "steps": 2, "window": 7, "seed": 42},
  {"type": "set"},
  {"type": "reset", "seed": 0, "scenario": "maze"},
  {"type": "prompt", "text": "ein grüner Sumpf, 沼"},
  {"type": "prompt", "text": ""},
  {"type": "pause", "on": True},
  {"type": "rewind", "frames": 1},
  {"type": "fork"},
  {"type": "steer", "to": "both"},
  {"type": "keep", "world": "b"},
  {"type": "save"},
  {"type": "restore", "name": "world-0001"},
  {"type": "game", "on": False},
]
BAD = [  # message, code, what the sentence says
  (b"{}", "binary", "binary"),
  ("", "json", "not JSON"),
  ("{", "json", "not JSON"),
  ("[" * 4000, "json", "not JSON"),
  ('{"type": "rewind", "frames": NaN}', "json", "NaN is no JSON number"),
  ('{"type": "rewind", "frames": -Infinity}', "json", "Infinity"),
  ('{"type": "rewind", "frames": ' + "9" * 4100 + "}", "size", "4096"),
  ('{"type": "rewind", "frames": 1e999}', "value", "whole number"),
  ('"fork"', "shape", "object"),
  ("null", "shape", "object"),
  ("{}", "type", "keys, ack"),
  ('{"type": ["fork"]}', "type", "Unknown"),
  ('{"type": "__init__"}', "type", "Unknown"),
  ('{"type": "fork", "extra": 1}', "field", "fork has no field 'extra'"),
  ('{"type": "keys", "down": []}', "field", "keys needs id"),
  ('{"type": "keys", "down": "left", "id": 1}', "value", "keys.down"),
  ('{"type": "keys", "down": ["left", "left"], "id": 1}', "value", "without repetition"),
  ('{"type": "keys", "down": [["left"]], "id": 1}', "value", "keys.down"),
  ('{"type": "keys", "down": ["escape"], "id": 1}', "value", "keys.down"),
  ('{"type": "keys", "down": [], "id": true}', "value", "keys.id"),
  ('{"type": "keys", "down": [], "id": 1.0}', "value", "keys.id"),
  ('{"type": "keys", "down": [], "id": -1}', "value", "keys.id"),
  ('{"type": "ack", "serial": 4294967296}', "value", "ack.serial"),
  ('{"type": "set", "steps": 0}', "value", "set.steps"),
  ('{"type": "set", "steps": null}', "value", "set.steps"),
  ('{"type": "pause", "on": 1}', "value", "true or false"),
  ('{"type": "prompt", "text": "a\\nb"}', "value", "printable"),
  ('{"type": "prompt", "text": "\\ud800"}', "value", "printable"),
  (json.dumps({"type": "prompt", "text": "x" * 301}), "value", "300"),
  ('{"type": "steer", "to": {}}', "value", "both, a, b"),
]


@pytest.mark.parametrize("message", GOOD, ids=lambda m: m["type"])
def test_every_kind_of_message_is_understood(message):
  assert protocol.parse(json.dumps(message)) == message


def test_no_kind_is_left_out_here():
  assert {message["type"] for message in GOOD} == set(protocol.MESSAGES)


@pytest.mark.parametrize(("message", "code", "says"), BAD, ids=range(len(BAD)))
def test_what_is_wrong_is_said_in_a_sentence(message, code, says):
  with pytest.raises(protocol.ProtocolError, match=says) as caught:
    protocol.parse(message)
  assert caught.value.code == code
  told = json.loads(protocol.error(caught.value))
  assert told["type"] == "error" and told["message"].isascii() and len(told["message"]) < 250


def test_a_picture_survives_the_way():
  message = protocol.picture("b", 2**32 - 1, 12, 34, 5.5, math.nan, b"jpeg")
  seen = protocol.read_picture(message)
  assert seen[:5] == ("b", 2**32 - 1, 12, 34, 5.5) and math.isnan(seen.photon)
  assert seen.jpeg == b"jpeg" and len(message) == 24 + 4


@pytest.mark.parametrize("wrong", [b"", b"vs", b"xx" + bytes(30), b"vs\x02" + bytes(30)])
def test_other_bytes_are_no_picture(wrong):
  with pytest.raises(ValueError, match="no picture"):
    protocol.read_picture(wrong)


def test_numbers_that_json_lacks_become_null():
  assert json.loads(protocol.say("stats", a=math.nan, b=math.inf, c=1.0)) == {
    "type": "stats", "a": None, "b": None, "c": 1.0,
  }  # fmt: skip


def test_the_documentation_names_every_message_and_field():
  page = (pathlib.Path(__file__).parents[2] / "docs" / "play.md").read_text()
  for kind, fields in protocol.MESSAGES.items():
    (row,) = [line for line in page.splitlines() if line.startswith(f"| `{kind}` |")]
    assert set(re.findall(r"`(\w+)`(?::|,| \()", row.split("|")[2] + ",")) == set(fields), kind
  assert protocol.SUBPROTOCOL in page
