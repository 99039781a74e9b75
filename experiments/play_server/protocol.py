"""What page and server say to each other: every message's fields, checked here and nowhere else.

Text messages are JSON objects with a "type"; docs/play.md describes them all. The server sends
pictures as binary messages: a header of 24 bytes, little-endian, and a JPEG. The WebSocket
subprotocol names the version, so that an old page and a new server refuse each other politely.
"""

import json
import math
import struct
from collections.abc import Callable
from typing import Any, NamedTuple

VERSION = 1
SUBPROTOCOL = f"vidstep.play.{VERSION}"

# Logical keys: what the page knows; `keys.py` maps them to a world's own controls.
KEYS = ("up", "down", "left", "right", "strafe_left", "strafe_right", "fire", "use", "run", "jump")
STREAMS = ("a", "b", "game")  # the world, its fork, the true game; numbered so in the header
HEADER = struct.Struct("<2sBBIIIff")
MAX_INT = 2**31 - 1


class ProtocolError(ValueError):
  """A message that is not understood; `code` is for programs, the text for people."""

  def __init__(self, code: str, message: str, about: str | None = None):
    super().__init__(message)
    self.code, self.about = code, about


class Field(NamedTuple):
  """One field of a message.

  Attributes:
    check: value -> whether it is allowed.
    what: the allowed values in words.
    required: whether the field must be there.
  """

  check: Callable[[Any], bool]
  what: str
  required: bool = True


def integer(low: int, high: int, required: bool = True) -> Field:
  """A whole number in [low, high]; true and 1.0 are none."""
  check = lambda v: isinstance(v, int) and not isinstance(v, bool) and low <= v <= high
  return Field(check, f"a whole number from {low} to {high}", required)


def choice(*names: str, required: bool = True) -> Field:
  """One of some strings."""
  return Field(lambda v: isinstance(v, str) and v in names, "one of " + ", ".join(names), required)


def text(longest: int, required: bool = True) -> Field:
  """A string of printable characters, the empty one included."""
  check = lambda v: isinstance(v, str) and len(v) <= longest and (v.isprintable() or not v)
  return Field(check, f"at most {longest} printable characters", required)


def flag() -> Field:
  """true or false."""
  return Field(lambda v: isinstance(v, bool), "true or false")


def subset(*names: str) -> Field:
  """A list of different strings out of some."""

  def check(v):
    named = isinstance(v, list) and all(isinstance(x, str) and x in names for x in v)
    return named and len(set(v)) == len(v)

  return Field(check, "a list, without repetition, of " + ", ".join(names))


# What a page may send. Bounds that depend on the world (steps, window, scenarios, saves) are
# checked against it by `player.py`; those here keep nonsense out.
MESSAGES: dict[str, dict[str, Field]] = {
  "keys": {"down": subset(*KEYS), "id": integer(0, MAX_INT)},
  "ack": {"serial": integer(0, 2**32 - 1)},
  "set": {
    "steps": integer(1, 1000, False),
    "window": integer(1, 100_000, False),
    "seed": integer(0, MAX_INT, False),
  },
  "reset": {"seed": integer(0, MAX_INT, False), "scenario": text(100, False)},
  "prompt": {"text": text(300)},
  "pause": {"on": flag()},
  "rewind": {"frames": integer(1, 100_000)},
  "fork": {},
  "steer": {"to": choice("both", "a", "b")},
  "keep": {"world": choice("a", "b")},
  "save": {},
  "restore": {"name": text(60)},
  "game": {"on": flag()},
}


def parse(message: str | bytes, longest: int = 4096) -> dict:
  """A message from a page as a checked dict.

  Args:
    message: as it came over the socket.
    longest: bytes allowed.

  Raises:
    ProtocolError: it is no such message; the text says why.
  """
  if isinstance(message, bytes):
    raise ProtocolError("binary", "Messages to the server are JSON text; this one was binary.")
  if (size := len(message.encode())) > longest:
    raise ProtocolError("size", f"A message may have {longest} bytes; this one has {size}.")
  try:
    value = json.loads(message, parse_constant=_refuse_constant)
  except (ValueError, RecursionError) as error:
    raise ProtocolError("json", f"This is not JSON: {_shown(str(error))}.") from None
  if not isinstance(value, dict):
    raise ProtocolError("shape", 'A message is a JSON object such as {"type": "fork"}.')
  kind = value.get("type")
  if not isinstance(kind, str) or kind not in MESSAGES:
    known = ", ".join(MESSAGES)
    raise ProtocolError("type", f"Unknown message type {_shown(kind)}: there are {known}.")
  _check(kind, value)
  return value


def _check(kind, value):
  fields = MESSAGES[kind]
  for name in value:
    if name != "type" and name not in fields:
      raise ProtocolError("field", f"{kind} has no field {_shown(name)}.", kind)
  for name, field in fields.items():
    if name not in value:
      if field.required:
        raise ProtocolError("field", f"{kind} needs {name}: {field.what}.", kind)
    elif not field.check(value[name]):
      raise ProtocolError(
        "value", f"{kind}.{name} is {field.what}, not {_shown(value[name])}.", kind
      )


def _refuse_constant(name):
  raise ValueError(f"{name} is no JSON number")


def _shown(value) -> str:
  """A value in an error message: short, and of plain characters."""
  said = ascii(value)
  return said if len(said) <= 60 else said[:57] + "..."


def say(kind: str, **fields) -> str:
  """A message to the page as JSON; numbers that JSON cannot hold become null."""
  finite = lambda v: None if isinstance(v, float) and not math.isfinite(v) else v
  return json.dumps({"type": kind, **{k: finite(v) for k, v in fields.items()}}, allow_nan=False)


def error(failure: ProtocolError) -> str:
  """The message that tells a page what was wrong with one of its own."""
  return say("error", code=failure.code, message=str(failure), about=failure.about)


def picture(
  stream: str, serial: int, frame: int, input_id: int, latency: float, photon: float, jpeg: bytes
) -> bytes:
  """A picture as one binary message.

  Args:
    stream: "a", "b" or "game".
    serial: counts the pictures of a connection; the page acknowledges the last it has seen.
    frame: number of the frame in its stream.
    input_id: `id` of the last "keys" message that leads into this frame.
    latency: of its chunk, from dispatch until it lay on the host, in ms.
    photon: from the arrival of that input until the first frame with it lay on the host, in ms.
    jpeg: the picture.
  """
  number = STREAMS.index(stream)
  head = HEADER.pack(b"vs", VERSION, number, serial, frame, input_id, latency, photon)
  return head + jpeg


class Picture(NamedTuple):
  """A binary message taken apart, see `picture`."""

  stream: str
  serial: int
  frame: int
  input_id: int
  latency: float
  photon: float
  jpeg: bytes


def read_picture(message: bytes) -> Picture:
  """The inverse of `picture`: what the page does, in Python, for programs that watch.

  Raises:
    ValueError: it is no picture of this version.
  """
  if len(message) < HEADER.size:
    raise ValueError("This is no picture: it is shorter than its header.")
  magic, version, stream, *numbers = HEADER.unpack_from(message)
  if (magic, version) != (b"vs", VERSION) or stream >= len(STREAMS):
    raise ValueError(f"This is no picture of protocol version {VERSION}.")
  return Picture(STREAMS[stream], *numbers, message[HEADER.size :])
