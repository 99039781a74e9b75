"""Plays a minute of a served world in Chromium, prints how fast it felt, takes a photo.

python -m experiments.play --workdir=runs/world --port=8765 &
python tests/play/photo.py http://127.0.0.1:8765/ results/play basic

The last word is the scenario of the photo; the first one without it.
"""

import json
import pathlib
import random
import sys
import tempfile
import time

import chromium

SECONDS = 60
PHOTON = "points.filter((p) => 'photon' in p).map((p) => [p.at, p.photon])"


def play(tab, seconds):
  """Presses keys as people do; returns the ms from each press or release to its pixels."""
  rng, seen, end = random.Random(0), {}, time.monotonic() + seconds
  while time.monotonic() < end:
    key = rng.choice(["ArrowUp", "ArrowUp", "ArrowLeft", "ArrowRight"])
    tab.press(key)
    time.sleep(rng.uniform(0.3, 1.2))
    tab.release(key)
    time.sleep(rng.uniform(0.1, 0.4))
    seen |= dict(map(tuple, tab.js(PHOTON)))
  return list(seen.values())


def hold(tab, key, seconds=0.7):
  tab.press(key)
  time.sleep(seconds)
  tab.release(key)


def photo(tab, path, scenario):
  """Two futures with one and with all steps, and the true game, from the same start."""
  tab.click("#game")
  tab.until("state.game && streams.game.drawn.length > 2", timeout=60)
  if scenario:
    tab.js(f"$('scenario').value = {json.dumps(scenario)}")
  tab.click("#reset")
  hold(tab, "ArrowLeft")
  tab.click("#fork")
  tab.until("'b' in state.worlds && streams.b.drawn.length > 2")
  tab.js("send('steer', {to: 'b'}); send('set', {steps: 1, seed: 7}); send('steer', {to: 'both'})")
  hold(tab, "ArrowRight")
  tab.press("ArrowUp")
  time.sleep(0.5)
  tab.screenshot(path)
  tab.release("ArrowUp")


def main(url, folder, scenario=None):
  folder = pathlib.Path(folder)
  folder.mkdir(parents=True, exist_ok=True)
  with tempfile.TemporaryDirectory() as profile, chromium.browser(profile) as new_tab:
    tab = new_tab()
    tab.size(1280, 820)
    tab.open(url)
    tab.until("document.body.dataset.state === 'ready' && streams.a.drawn.length", timeout=300)
    tab.click("#stage")
    before = tab.js("streams.a.serial")
    begin = time.monotonic()
    photons = sorted(play(tab, SECONDS))
    wall = time.monotonic() - begin
    quantile = lambda q: round(photons[min(int(q * len(photons)), len(photons) - 1)], 1)
    told = {
      "seconds": round(wall, 1),
      "pictures_a_second": round((tab.js("streams.a.serial") - before) / wall, 2),
      "keys": len(photons),
      "key_to_pixel_ms": {"p50": quantile(0.5), "p95": quantile(0.95), "most": photons[-1]},
      "server": tab.js("stats"),
      "budget_ms": round(tab.js("budget()"), 1),
      "about": tab.js("world.about"),
      "steps": tab.js("state.worlds.a.steps"),
    }
    print(json.dumps(told, indent=2))
    photo(tab, folder / "page.png", scenario)
    assert tab.errors == [], tab.errors


if __name__ == "__main__":
  main(*sys.argv[1:])
