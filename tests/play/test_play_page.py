"""The page in a real headless Chromium: frames arrive, keys and sliders act, nothing complains."""

import asyncio
import contextlib
import pathlib
import threading

import chromium
import pytest
from fake_engine import FakeEngine
from play_world import serving

pytestmark = pytest.mark.skipif(
  chromium.find() is None, reason="no Chromium here: apt-get install chromium"
)
# The sum over a canvas' pixels: changes with the picture.
SUM = (
  "(name => { const c = streams[name].canvas; const pen = new OffscreenCanvas(c.width, c.height)"
  ".getContext('2d', {willReadFrequently: true}); pen.drawImage(c, 0, 0); const { data } = "
  "pen.getImageData(0, 0, c.width, c.height); "
  "return data.reduce((sum, v) => (sum * 31 + v) % 1000003, 7); })"
)


@contextlib.contextmanager
def served(tmp_path, **options):
  """A server in a thread of its own, for tests that block on the browser; yields the `Server`."""
  begun, over, servers = threading.Event(), asyncio.Event(), []

  async def serve():
    async with serving(tmp_path, **options) as server:
      servers.extend([server, asyncio.get_running_loop()])
      begun.set()
      await over.wait()

  thread = threading.Thread(target=lambda: asyncio.run(serve()))
  thread.start()
  assert begun.wait(10)
  try:
    yield servers[0]
  finally:
    servers[1].call_soon_threadsafe(over.set)
    thread.join(10)


@pytest.fixture(scope="module")
def new_tab(tmp_path_factory):
  with chromium.browser(tmp_path_factory.mktemp("profile")) as opened:
    yield opened


@pytest.fixture(scope="module")
def server(tmp_path_factory):
  engine = FakeEngine(frame_rate=30.0)
  with served(tmp_path_factory.mktemp("play"), engine=engine) as one:
    yield one


@pytest.fixture
def tab(server, new_tab):
  """A playing page, closed without a complaint in its console."""
  page = new_tab()
  page.size(1200, 860)
  page.open(server.url)
  page.until("document.body.dataset.state === 'ready' && streams.a.drawn.length > 2")
  yield page
  assert page.errors == []
  page.open("about:blank")


def session(server):
  (one,) = server.engine.open_sessions
  return one


def test_frames_arrive_and_change(tab):
  first = tab.js(f"{SUM}('a')")
  frame = tab.js("streams.a.frame")
  tab.until(f"streams.a.frame > {frame} + 10 && {SUM}('a') !== {first}")
  assert tab.js("[streams.a.canvas.width, streams.a.canvas.height]") == [48, 48]
  assert tab.js("$('veil').hidden && $('pill').textContent") == "Playing"
  assert float(tab.until("Number($('fps').textContent)")) > 1
  assert "/" in tab.js("$('latency').textContent")


@pytest.mark.parametrize("key", ["ArrowLeft", "KeyA"])
def test_a_key_acts_while_it_is_held_and_its_way_to_the_pixel_is_measured(tab, server, key):
  one = session(server)
  before = one.past[-1][0]
  tab.press(key)
  tab.until("streams.a.input >= keys.id && points.some((p) => 'photon' in p)")
  assert one.action[0] == 1 and "down" in tab.js(
    "$('stage').ownerDocument.querySelector('[data-key=left]').className"
  )
  assert one.past[-1][0] < before
  tab.release(key)
  tab.until("streams.a.input >= keys.id")
  assert (one.action == -1).all()
  photons = tab.js("points.filter((p) => 'photon' in p).map((p) => p.photon)")
  assert all(0 < ms < 5000 for ms in photons)
  assert tab.until("$('photon').textContent.endsWith('ms')")


def test_keys_are_let_go_when_the_window_loses_the_keyboard(tab, server):
  tab.press("ArrowUp")
  tab.until("streams.a.input >= keys.id && keys.sent === 'up'")
  tab.js("window.dispatchEvent(new Event('blur'))")
  tab.until("keys.sent === '' && streams.a.input >= keys.id")
  assert (session(server).action == -1).all()


def test_typing_a_prompt_moves_nothing_and_switches_the_text(tab, server):
  tab.click("#prompt")
  tab.js("$('prompt').value = ''")
  for letter in "KeyW", "KeyA", "KeyD":
    tab.press(letter)
    tab.release(letter)
  assert tab.js("keys.id") == 0
  tab.js("$('prompt').value = ' a green\\n swamp '")
  tab.press("Enter")
  tab.until("state.worlds.a.text === 'a green swamp'")
  assert session(server).settings.text == "a green swamp"
  assert tab.js("document.activeElement.id") == "stage"  # the keyboard is back in the world
  tab.js("[...document.querySelectorAll('#chips button')][1].click()")
  tab.until("$('prompt').value === 'a maze of tiles'")


def test_sliders_change_the_running_world(tab, server):
  bright = tab.js("streams.a.frame")
  tab.js("(e => { e.value = 4; e.dispatchEvent(new Event('input')); })($('steps'))")
  tab.until(f"state.worlds.a.steps === 4 && streams.a.frame > {bright} + 3")
  assert session(server).settings.steps == 4
  tab.js("(e => { e.value = 3; e.dispatchEvent(new Event('input')); })($('window'))")
  tab.js("(e => { e.value = 42; e.dispatchEvent(new Event('input')); })($('seed'))")
  tab.until("state.worlds.a.window === 3 && state.worlds.a.seed === 42")
  assert tab.js("[$('steps-value').value, $('window-value').value, $('seed-value').value]") == [
    "4", "3", "42",
  ]  # fmt: skip
  assert session(server).settings.window == 3


def test_a_fork_shows_two_futures_and_the_keys_steer_one(tab, server):
  tab.click("#fork")
  tab.until("'b' in state.worlds && streams.b.drawn.length > 2 && !$('screen-b').hidden")
  tab.click("[data-steer=b]")
  tab.until("state.steer === 'b' && document.activeElement.id === 'stage'")
  tab.press("ArrowRight")
  tab.until(f"streams.b.input >= keys.id && {SUM}('a') !== {SUM}('b')")
  tab.release("ArrowRight")
  a, b = server.engine.open_sessions
  assert b.past[-1][0] > a.past[-1][0]
  tab.click("[data-keep=b]")
  tab.until("!('b' in state.worlds) && $('screen-b').hidden")
  assert session(server) is b


def test_the_true_game_plays_beside_it(tab):
  tab.click("#game")
  tab.until("state.game && streams.game.drawn.length > 2 && !$('screen-game').hidden")
  first = tab.js(f"{SUM}('game')")
  tab.press("ArrowUp")
  tab.until(f"{SUM}('game') !== {first}")
  tab.release("ArrowUp")
  tab.click("#game")
  tab.until("!state.game && $('screen-game').hidden")


def test_pause_rewind_save_restore_and_reset(tab, server):
  tab.until("streams.a.frame > 70")
  tab.press("KeyP")
  tab.release("KeyP")
  tab.until("state.paused && !$('veil').hidden && $('pill').textContent === 'Paused'")
  assert session(server).paused
  tab.click("#veil-button")
  tab.until("!state.paused && $('veil').hidden")
  tab.click("#rewind")
  tab.until("$('toast').textContent === 'Went back 60 frames.'")  # two seconds
  tab.click("#save")
  tab.until("state.saves.length && !$('restore').hidden")
  tab.js(
    "(e => { e.value = e.options[1].value; e.dispatchEvent(new Event('change')); })($('restore'))"
  )
  tab.until("$('toast').textContent.startsWith('Went on from world-')")
  tab.js("$('scenario').value = 'maze'; $('scenario').dispatchEvent(new Event('change'))")
  tab.until("state.scenario === 'maze' && streams.a.frame < 60")


def test_touch_and_mouse_press_the_keys_on_the_page(tab, server):
  x, y = tab.js(
    "(r => [r.x + r.width / 2, r.y + r.height / 2])"
    "(document.querySelector('[data-key=down]').getBoundingClientRect())"
  )
  tab.call("Input.dispatchTouchEvent", type="touchStart", touchPoints=[{"x": x, "y": y}])
  tab.until("keys.sent === 'down' && streams.a.input >= keys.id")
  assert session(server).action[3] == 1
  tab.call("Input.dispatchTouchEvent", type="touchEnd", touchPoints=[])
  tab.until("keys.sent === ''")
  tab.click("[data-key=fire]")
  tab.until("keys.sent === '' && streams.a.input >= keys.id")
  assert tab.js("keys.id") == 4


def test_what_the_server_refuses_is_said_in_words(tab):
  tab.js("send('set', {steps: 77})")
  tab.until("!$('toast').hidden && $('toast').textContent.includes('4 at most')")


def test_theme_and_smoothing(tab):
  for _ in range(2):
    before = tab.js("document.documentElement.dataset.theme")
    tab.click("#theme")
    assert tab.js("document.documentElement.dataset.theme") != before
  rendering = "getComputedStyle(streams.a.canvas).imageRendering"
  assert tab.js(rendering) == "pixelated"
  tab.click("#smooth")
  assert tab.js(rendering) == "auto"


@pytest.mark.parametrize(("width", "mobile"), [(1500, False), (760, False), (390, True)])
def test_nothing_is_wider_than_the_window(tab, width, mobile):
  tab.size(width, 800, mobile=mobile)
  tab.js("send('fork')")
  tab.until("!$('screen-b').hidden")
  assert tab.js("document.documentElement.scrollWidth") <= width
  tab.js("send('keep', {world: 'a'})")
  tab.until("$('screen-b').hidden")


def test_waiting_disconnecting_and_coming_back(new_tab, tmp_path):
  page = new_tab()
  page.size(1000, 700)
  with served(tmp_path, engine=FakeEngine(sessions=1, frame_rate=30.0)) as server:
    first = new_tab()
    first.open(server.url)
    first.until("document.body.dataset.state === 'ready'")
    page.open(server.url)
    page.until("document.body.dataset.state === 'full'")
    assert "Yours starts when one is free" in page.js("$('veil-text').textContent")
    first.open("about:blank")
    page.call("Page.bringToFront")  # a page that nobody sees pauses
    page.until("document.body.dataset.state === 'ready' && streams.a.drawn.length")
    port = int(server.url.rstrip("/").rpartition(":")[2])
  page.until("document.body.dataset.state === 'disconnected'")
  assert "Trying again" in page.js("$('veil-text').textContent")
  with served(tmp_path, engine=FakeEngine(frame_rate=30.0), port=port):
    page.until("document.body.dataset.state === 'ready' && streams.a.drawn.length", timeout=15)
  assert all("ERR_CONNECTION_REFUSED" in error for error in page.errors)


def test_a_screenshot_can_be_taken(tab, tmp_path):
  path = pathlib.Path(tmp_path / "page.png")
  tab.screenshot(path)
  assert path.read_bytes().startswith(b"\x89PNG")
