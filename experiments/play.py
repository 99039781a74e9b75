"""Play a world model in the browser: it streams in, your keys act, sliders change it live.

  python -m experiments.play --workdir=runs/world --open
  python -m experiments.play --network=runs/mine/tf:model:ema --port=0

The page is at the address that is printed; docs/play.md says what it can do and how it is spoken
to. With --train=configs/doom/causal_rcm.py a network that is missing is trained first.
"""

import asyncio
import contextlib
import os
import pathlib
import signal
import sys
import webbrowser

from absl import flags

from experiments import flags as shared
from experiments.play_server import finding

NETWORK = flags.DEFINE_string("network", None, 'Causal network, "workdir:role:ema"; see --workdir.')
WORKDIR = shared.define_workdir(
  "Folder of a pipeline: its network is WORKDIR/sf:student:ema. Worlds are saved in WORKDIR/play."
)
TRAIN = flags.DEFINE_string("train", None, "Pipeline config that makes --workdir if it is missing.")
HOST = flags.DEFINE_string("host", "127.0.0.1", "Address to listen on; 0.0.0.0 lets others in.")
PORT = flags.DEFINE_integer("port", 8765, "Port; 0 takes any that is free.", 0, 65535)
OPEN = flags.DEFINE_bool("open", False, "Open the page in a browser.")
MAX_SESSIONS = flags.DEFINE_integer(
  "max_sessions", 2, "Worlds that run at once: a page needs one, a forked one two.", 1, 64
)
MAX_MESSAGE = flags.DEFINE_integer("max_message_bytes", 4096, "Of a page's messages.", 256, 65536)
QUALITY = flags.DEFINE_integer("quality", 95, "Of the JPEGs.", 1, 95)
WINDOW = flags.DEFINE_integer("window", None, "Frames that the cache keeps; as in training.", 1)


def main(argv):
  del argv
  reference = finding.find(NETWORK.value, WORKDIR.value, TRAIN.value)
  try:
    from experiments.play_server.runner import Runner
    from experiments.play_server.saves import Saves
    from experiments.play_server.server import Server
  except ImportError as error:
    raise ValueError(f"The page needs {error.name}: pip install 'vidstep[play]'.") from error
  from experiments.play_server.opening import open_world

  print(f"Opening {reference} ...", flush=True)
  world = open_world(reference, sessions=MAX_SESSIONS.value, window=WINDOW.value)
  folder = pathlib.Path(WORKDIR.value or reference.partition(":")[0]) / "play"
  runner = Runner(world.make_engine)
  server = Server(
    world,
    runner,
    Saves(folder),
    host=HOST.value,
    port=PORT.value,
    max_sessions=MAX_SESSIONS.value,
    max_message_bytes=MAX_MESSAGE.value,
    quality=QUALITY.value,
  )
  try:
    asyncio.run(serve(server, runner))
  except OSError as error:
    raise ValueError(
      f"Cannot listen on {HOST.value}:{PORT.value} ({error.strerror or error}): is it running "
      "already? --port=0 takes a free port."
    ) from error
  finally:
    ended = runner.stop()
  if not ended:  # it compiles, see `Runner.stop`; everything that is kept is on disk
    sys.stdout.flush()
    os._exit(0)


def has_screen():
  """Whether a browser would get a window; elsewhere it might take over the terminal."""
  windows = sys.platform in ("darwin", "win32")
  return windows or any(os.environ.get(name) for name in ("DISPLAY", "WAYLAND_DISPLAY"))


async def serve(server, runner):
  """Serves until Ctrl-C."""
  over = asyncio.Event()
  for number in (signal.SIGINT, signal.SIGTERM):
    with contextlib.suppress(NotImplementedError):  # where a loop has no signals
      asyncio.get_running_loop().add_signal_handler(number, over.set)
  async with server.start():
    runner.start()
    print(f"Play at {server.url}  (Ctrl-C ends it)", flush=True)
    if OPEN.value and has_screen():
      webbrowser.open(server.url)
    await over.wait()


if __name__ == "__main__":
  shared.run(main)
