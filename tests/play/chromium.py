"""A real headless Chromium for tests, driven over its own DevTools socket: nothing to install."""

import base64
import contextlib
import itertools
import json
import re
import shutil
import subprocess
import time

from websockets.sync.client import connect

# No sandbox: tests may run as root. No network of the browser's own.
FLAGS = (
  *("--headless", "--no-sandbox", "--disable-gpu", "--no-first-run", "--no-default-browser-check"),
  *("--disable-background-networking", "--disable-component-update", "--disable-sync"),
  *("--disable-extensions", "--disable-quic", "--mute-audio", "--hide-scrollbars"),
  *("--force-color-profile=srgb", "--remote-debugging-port=0"),
)
KEYS = {"ArrowLeft": 37, "ArrowUp": 38, "ArrowRight": 39, "ArrowDown": 40, "Space": 32, "Enter": 13}


def find():
  """Path of a Chromium, or None."""
  names = ("chromium", "chromium-browser", "google-chrome")
  return next(filter(None, map(shutil.which, names)), None)


class Tab:
  """One page of the browser.

  Attributes:
    errors: what its console has complained about, exceptions included.
  """

  def __init__(self, socket):
    self._socket, self._ids, self.errors = socket, itertools.count(1), []
    for domain in ("Page", "Runtime", "Log"):
      self.call(f"{domain}.enable")

  def call(self, method, timeout=20.0, **parameters):
    """One DevTools command; its result."""
    number = next(self._ids)
    self._socket.send(json.dumps({"id": number, "method": method, "params": parameters}))
    while True:
      message = json.loads(self._socket.recv(timeout=timeout))
      self._note(message)
      if message.get("id") == number:
        assert "error" not in message, f"{method}: {message['error']}"
        return message["result"]

  def _note(self, message):
    kind, told = message.get("method"), message.get("params", {})
    if kind == "Runtime.exceptionThrown":
      details = told["exceptionDetails"]
      self.errors.append(details.get("exception", {}).get("description") or details["text"])
    elif kind == "Runtime.consoleAPICalled" and told["type"] in ("error", "warning", "assert"):
      self.errors.append(str([a.get("value") for a in told["args"]]))
    elif kind == "Log.entryAdded" and told["entry"]["level"] in ("error", "warning"):
      self.errors.append(told["entry"]["text"])

  def size(self, width, height, scale=1, mobile=False):
    """The size of the window's inside in CSS pixels."""
    self.call(
      "Emulation.setDeviceMetricsOverride",
      width=width, height=height, deviceScaleFactor=scale, mobile=mobile,
    )  # fmt: skip

  def open(self, url):
    """Goes to a page and waits until it is loaded."""
    self.call("Page.navigate", url=url)
    self.until(f"location.href === {url!r} && document.readyState === 'complete'")

  def js(self, expression):
    """The value of a JavaScript expression in the page; promises are awaited."""
    answer = self.call(
      "Runtime.evaluate", expression=expression, returnByValue=True, awaitPromise=True
    )
    assert "exceptionDetails" not in answer, answer["exceptionDetails"]
    return answer["result"].get("value")

  def until(self, expression, timeout=10.0):
    """Waits until an expression is true and returns its value."""
    end = time.monotonic() + timeout
    while not (value := self.js(expression)):
      assert time.monotonic() < end, f"not within {timeout} s: {expression}; {self.errors}"
      time.sleep(0.03)
    return value

  def press(self, code):
    """Presses a key and holds it."""
    self._key("keyDown", code)

  def release(self, code):
    self._key("keyUp", code)

  def _key(self, kind, code):
    letter = code.removeprefix("Key").lower()
    number = KEYS.get(code) or (ord(letter.upper()) if len(letter) == 1 else 0)
    key = {"Space": " "}.get(code, code if code in KEYS or len(letter) > 1 else letter)
    self.call("Input.dispatchKeyEvent", type=kind, code=code, key=key, windowsVirtualKeyCode=number)

  def click(self, selector):
    """Clicks in the middle of an element, with the mouse."""
    x, y = self.js(
      f"(() => {{ const e = document.querySelector({selector!r}); e.scrollIntoView({{block: "
      "'nearest'}); const r = e.getBoundingClientRect(); "
      "return [r.x + r.width / 2, r.y + r.height / 2]; })()"
    )
    for kind in ("mousePressed", "mouseReleased"):
      self.call("Input.dispatchMouseEvent", type=kind, x=x, y=y, button="left", clickCount=1)

  def screenshot(self, path):
    """Writes what the page looks like as a PNG."""
    path.write_bytes(base64.b64decode(self.call("Page.captureScreenshot", format="png")["data"]))


@contextlib.contextmanager
def browser(profile):
  """A Chromium with a new profile in the folder `profile`; yields a function that opens a `Tab`."""
  process = subprocess.Popen(
    [find(), *FLAGS, f"--user-data-dir={profile}", "about:blank"],
    stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True,
  )  # fmt: skip
  try:
    with contextlib.ExitStack() as stack:
      yield stack.enter_context(_tabs(process))
  finally:
    process.terminate()
    process.wait(10)
    process.stderr.close()


@contextlib.contextmanager
def _tabs(process):
  address = None
  for line in process.stderr:
    if found := re.search(r"DevTools listening on (ws://\S+)", line):
      address = found[1]
      break
  assert address, "Chromium ended before it listened"
  with contextlib.ExitStack() as stack:
    root = stack.enter_context(connect(address, max_size=None, proxy=None, compression=None))

    def new_tab():
      blank = {"id": 1, "method": "Target.createTarget", "params": {"url": "about:blank"}}
      root.send(json.dumps(blank))
      target = None
      while target is None:
        message = json.loads(root.recv(timeout=20))
        target = message["result"]["targetId"] if message.get("id") == 1 else None
      page = address.partition("/devtools/")[0] + f"/devtools/page/{target}"
      socket = stack.enter_context(connect(page, max_size=None, proxy=None, compression=None))
      return Tab(socket)

    yield new_tab
