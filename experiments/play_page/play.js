// The page: draws what the server streams, tells it which keys are held, measures key to pixel.
// The protocol is that of docs/play.md. No libraries, no build step.
"use strict";

const VERSION = 1;
const SUBPROTOCOL = `vidstep.play.${VERSION}`;
const STREAMS = ["a", "b", "game"];
const HEADER_BYTES = 24;
const CODES = {
  ArrowUp: "up", KeyW: "up", ArrowDown: "down", KeyS: "down",
  ArrowLeft: "left", KeyA: "left", ArrowRight: "right", KeyD: "right",
  KeyQ: "strafe_left", KeyE: "strafe_right",
  Space: "fire", KeyF: "use", ShiftLeft: "run", KeyJ: "jump",
};
const NAMES = {
  strafe_left: "Q", strafe_right: "E", fire: "Space", use: "F", run: "Shift", jump: "J",
};

const $ = (id) => document.getElementById(id);
const all = (selector) => [...document.querySelectorAll(selector)];

let socket = null;
let world = null; // what "hello" said
let state = null; // the last "state"
let closedByUs = false;
let retries = 0;
let retryTimer = 0;

// ------------------------------------------------------------------------------------------------
// Connection
// ------------------------------------------------------------------------------------------------

function connect() {
  clearTimeout(retryTimer);
  show("connecting", "Connecting", "");
  socket = new WebSocket(`ws://${location.host}/stream`, SUBPROTOCOL);
  socket.binaryType = "arraybuffer";
  socket.onmessage = (event) => {
    if (typeof event.data === "string") hear(JSON.parse(event.data));
    else receive(event.data);
  };
  socket.onclose = (event) => lost(event.reason);
}

function lost(reason) {
  state = null;
  keys.clear();
  awaited = [];
  for (const name of STREAMS) streams[name].reset();
  if (closedByUs) return;
  const wait = Math.min(0.5 * 2 ** retries++, 5);
  const again = `Trying again in ${wait < 1 ? "a moment" : `${wait} s`}.`;
  show("disconnected", "No connection to the server", `${reason || "Is it still running?"} ${again}`);
  retryTimer = setTimeout(connect, 1000 * wait);
}

function send(type, fields = {}) {
  if (socket && socket.readyState === WebSocket.OPEN) socket.send(JSON.stringify({ type, ...fields }));
}

const HEARD = {
  hello(message) {
    if (message.version !== VERSION) {
      closedByUs = true;
      socket.close();
      show("failed", "This page is out of date", "The server speaks another version: reload the page.");
      return;
    }
    retries = 0;
    world = message.world;
    describe();
  },
  status(message) {
    const titles = { starting: "Warming up", full: "No place is free", failed: "The world has stopped" };
    const seconds = message.state === "starting" && message.seconds >= 1 ? ` (${Math.floor(message.seconds)}\u00a0s)` : "";
    show(message.state, titles[message.state] || "Ready", message.text + seconds);
    if (message.state === "ready") $("stage").focus({ preventScroll: true });
  },
  state(message) {
    state = message;
    render();
  },
  stats: (message) => { stats = message; },
  note: (message) => toast(message.text),
  error: (message) => toast(message.message, true),
};

function hear(message) {
  if (Object.hasOwn(HEARD, message.type)) HEARD[message.type](message);
}

// ------------------------------------------------------------------------------------------------
// Pictures
// ------------------------------------------------------------------------------------------------

class Stream {
  constructor(name) {
    this.name = name;
    this.canvas = $(`canvas-${name}`);
    this.context = this.canvas.getContext("2d", { alpha: false });
    this.reset();
  }

  reset() {
    this.bitmap = null; // decoded, not drawn yet
    this.serial = 0; // of the newest picture decoded
    this.drawn = []; // times of the last frames drawn
    this.frame = 0;
  }

  draw(now) {
    const { bitmap } = this;
    this.bitmap = null;
    if (this.canvas.width !== bitmap.width || this.canvas.height !== bitmap.height) {
      this.canvas.width = bitmap.width;
      this.canvas.height = bitmap.height;
    }
    this.context.drawImage(bitmap, 0, 0);
    bitmap.close();
    this.drawn.push(now);
    while (this.drawn[0] < now - 2000) this.drawn.shift();
  }

  get rate() {
    const n = this.drawn.length;
    return n < 2 ? 0 : (1000 * (n - 1)) / (this.drawn[n - 1] - this.drawn[0]);
  }
}

const streams = Object.fromEntries(STREAMS.map((name) => [name, new Stream(name)]));
const points = []; // {at, latency} or {at, photon}: what the graph shows
let awaited = []; // keys pressed whose effect has not been seen: {id, at}
let stats = null;
let drawing = false;

async function receive(buffer) {
  const view = new DataView(buffer);
  const stream = streams[STREAMS[view.getUint8(3)]];
  const head = {
    serial: view.getUint32(4, true),
    frame: view.getUint32(8, true),
    input: view.getUint32(12, true),
    latency: view.getFloat32(16, true),
  };
  const from = socket;
  let bitmap;
  try {
    bitmap = await createImageBitmap(new Blob([buffer.slice(HEADER_BYTES)], { type: "image/jpeg" }));
  } finally {
    if (from === socket) send("ack", { serial: head.serial });
  }
  if (from !== socket || head.serial < stream.serial) {
    bitmap.close();
    return;
  }
  if (stream.bitmap) stream.bitmap.close();
  Object.assign(stream, { bitmap, serial: head.serial, frame: head.frame, input: head.input });
  if (stream.name !== "game") {
    points.push({ at: performance.now(), latency: head.latency });
    stream.latency = head.latency;
  }
  if (!drawing) {
    drawing = true;
    requestAnimationFrame(paint);
  }
}

function paint() {
  drawing = false;
  for (const stream of Object.values(streams)) {
    if (!stream.bitmap) continue;
    stream.draw(performance.now());
    if (stream.name !== "game") seen(stream.input);
  }
}

// The picture is on the canvas; the screen shows it with the next frame that the browser paints.
function seen(input) {
  const mine = awaited.filter((key) => key.id <= input);
  if (!mine.length) return;
  awaited = awaited.filter((key) => key.id > input);
  requestAnimationFrame((now) => {
    for (const key of mine) points.push({ at: now, photon: now - key.at });
  });
}

// ------------------------------------------------------------------------------------------------
// Keys
// ------------------------------------------------------------------------------------------------

const keys = {
  held: new Map(), // source (a key's code, a pointer) -> key
  id: 0,
  sent: "",

  press(source, key, at) {
    if (!world || !(key in world.keys)) return;
    keys.held.set(source, key);
    keys.tell(at);
  },
  release(source, at) {
    if (keys.held.delete(source)) keys.tell(at);
  },
  clear() {
    keys.held.clear();
    keys.tell(performance.now());
  },
  tell(at) {
    const down = [...new Set(keys.held.values())].sort();
    for (const button of all("[data-key]")) button.classList.toggle("down", down.includes(button.dataset.key));
    if (down.join() === keys.sent) return;
    keys.sent = down.join();
    keys.id += 1;
    send("keys", { down, id: keys.id });
    if (state && !state.paused) awaited = [...awaited.slice(-20), { id: keys.id, at }];
  },
};

// Fields need their own keys: text all of them, lists and sliders the arrows, buttons the space bar.
function isFor(event) {
  const { target, code } = event;
  if (event.ctrlKey || event.metaKey || event.altKey) return false;
  if (target.matches("textarea")) return false;
  if (target.matches("select, input")) return !(code.startsWith("Arrow") || code === "Space" || target.matches("select"));
  return !(target.matches("button") && (code === "Space" || code === "Enter"));
}

const SHORTCUTS = { KeyP: "pause", KeyR: "reset", Backspace: "rewind" };

addEventListener("keydown", (event) => {
  if (!isFor(event)) return;
  const key = CODES[event.code];
  if (world && key in world.keys) {
    event.preventDefault(); // no scrolling
    if (!event.repeat) keys.press(event.code, key, event.timeStamp);
  } else if (event.code in SHORTCUTS && !event.repeat) {
    event.preventDefault();
    $(SHORTCUTS[event.code]).click();
  }
});
addEventListener("keyup", (event) => keys.release(event.code, event.timeStamp));
addEventListener("blur", () => keys.clear());

function wirePad(button) {
  const source = `pad-${button.dataset.key}`;
  button.addEventListener("pointerdown", (event) => {
    event.preventDefault();
    button.setPointerCapture(event.pointerId);
    keys.press(source, button.dataset.key, event.timeStamp);
  });
  for (const kind of ["pointerup", "pointercancel", "lostpointercapture"]) {
    button.addEventListener(kind, (event) => keys.release(source, event.timeStamp));
  }
  button.addEventListener("keydown", (event) => {
    if (event.code === "Space" || event.code === "Enter") keys.press(source, button.dataset.key, event.timeStamp);
  });
  button.addEventListener("keyup", (event) => keys.release(source, event.timeStamp));
  button.addEventListener("contextmenu", (event) => event.preventDefault());
}

// ------------------------------------------------------------------------------------------------
// Controls
// ------------------------------------------------------------------------------------------------

function wire() {
  const click = (id, act) => $(id).addEventListener("click", act);
  click("pause", () => state && send("pause", { on: !state.paused }));
  click("reset", () => send("reset", { scenario: $("scenario").value, seed: Number($("seed").value) }));
  click("rewind", () => world && send("rewind", { frames: Math.round(2 * world.frame_rate) }));
  click("fork", () => send("fork"));
  click("save", () => send("save"));
  click("game", () => state && send("game", { on: !state.game }));
  click("smooth", () => {
    const on = document.body.classList.toggle("smooth");
    $("smooth").setAttribute("aria-pressed", on);
  });
  click("theme", () => setTheme(document.documentElement.dataset.theme === "dark" ? "light" : "dark", true));
  click("veil-button", () => (document.body.dataset.state === "disconnected" ? connect() : $("pause").click()));
  for (const button of all("[data-steer]")) button.addEventListener("click", () => send("steer", { to: button.dataset.steer }));
  for (const button of all("[data-keep]")) button.addEventListener("click", () => send("keep", { world: button.dataset.keep }));
  all("[data-key]").forEach(wirePad);
  // Who clicked with the pointer wants the keyboard back in the world: space fires there.
  $("bar").addEventListener("click", (event) => event.detail && $("stage").focus({ preventScroll: true }));

  for (const name of ["steps", "window", "seed"]) {
    $(name).addEventListener("input", () => {
      $(`${name}-value`).value = $(name).value;
      send("set", { [name]: Number($(name).value) });
    });
    $(name).addEventListener("pointerup", () => $("stage").focus({ preventScroll: true }));
  }
  $("scenario").addEventListener("change", () => $("reset").click());
  $("restore").addEventListener("change", () => {
    if ($("restore").value) send("restore", { name: $("restore").value });
    $("restore").value = "";
    $("stage").focus({ preventScroll: true });
  });
  $("prompt-form").addEventListener("submit", (event) => {
    event.preventDefault();
    send("prompt", { text: $("prompt").value.trim().replace(/\s+/g, " ") });
    $("stage").focus({ preventScroll: true });
  });
  $("prompt").addEventListener("keydown", (event) => {
    if (event.code !== "Enter" || event.shiftKey) return;
    event.preventDefault();
    $("prompt-form").requestSubmit();
  });
  // Nobody plays a page that nobody sees: it pauses, and goes on if it was not paused before.
  let unseen = false;
  document.addEventListener("visibilitychange", () => {
    if (document.hidden && state && !state.paused) {
      unseen = true;
      send("pause", { on: true });
    } else if (!document.hidden && unseen) {
      unseen = false;
      send("pause", { on: false });
    }
  });
  addEventListener("pagehide", () => { closedByUs = true; });
}

function setTheme(theme, keep) {
  document.documentElement.dataset.theme = theme;
  try {
    if (keep) localStorage.setItem("theme", theme);
  } catch { /* a browser without storage forgets */ }
}

function firstTheme() {
  let kept = null;
  try {
    kept = localStorage.getItem("theme");
  } catch { /* as above */ }
  setTheme(kept || (matchMedia("(prefers-color-scheme: dark)").matches ? "dark" : "light"), false);
}

// ------------------------------------------------------------------------------------------------
// What is shown
// ------------------------------------------------------------------------------------------------

function element(tag, text, fields = {}) {
  return Object.assign(document.createElement(tag), { textContent: text }, fields);
}

// Once for each connection: the world does not change.
function describe() {
  $("title").textContent = world.title;
  document.title = `vidstep: ${world.title}`;
  $("scenario").replaceChildren(...world.scenarios.map((s) => element("option", s.name.replaceAll("_", " "), { value: s.name })));
  $("scenario").parentElement.hidden = world.scenarios.length < 2;
  $("prompting").hidden = !world.reads_text;
  $("chips").replaceChildren(...world.scenarios.filter((s) => s.text).map((s) => {
    const chip = element("button", s.name.replaceAll("_", " "), { type: "button", title: s.text });
    chip.addEventListener("click", () => {
      send("prompt", { text: s.text });
      $("stage").focus({ preventScroll: true });
    });
    return chip;
  }));
  for (const name of ["steps", "window"]) {
    $(name).max = world[name][1];
    $(name).disabled = world[name][1] < 2;
  }
  for (const name of ["a", "b", "game"]) {
    [streams[name].canvas.height, streams[name].canvas.width] = world.size;
  }
  $("game").hidden = !world.game;
  const extra = Object.keys(world.keys).filter((key) => key in NAMES);
  $("extra").replaceChildren(...extra.map((key) => {
    const button = element("button", world.keys[key], { type: "button", className: "key" });
    button.dataset.key = key;
    button.append(element("kbd", NAMES[key]));
    wirePad(button);
    return button;
  }));
  for (const button of all(".cross [data-key]")) {
    const what = world.keys[button.dataset.key];
    button.disabled = !what;
    button.title = what || "This world has no such control";
    button.setAttribute("aria-label", button.title);
  }
  $("hint").textContent = "Arrow keys or WASD act wherever the keyboard is not in a field. Several keys may be held at once.";
  const about = { ...world.about, frames: `${world.size[1]} × ${world.size[0]} at ${Number(world.frame_rate.toFixed(1))} a second` };
  $("about").replaceChildren(...Object.entries(about).map(([name, text]) => {
    const row = element("div", "");
    row.append(element("dt", name), element("dd", text));
    return row;
  }));
  $("budget").textContent = `${round(budget())} ms`;
}

// After each change: buttons, sliders and screens say what the server said.
function render() {
  const two = "b" in state.worlds;
  const shown = state.worlds[state.steer] || state.worlds.a || Object.values(state.worlds)[0];
  $("screen-b").hidden = !two;
  $("screen-game").hidden = !state.game;
  $("name-a").textContent = two ? "Generated, A" : "Generated";
  for (const name of ["a", "b"]) {
    $(`screen-${name}`).classList.toggle("idle", two && !["both", name].includes(state.steer));
  }
  for (const id of ["forked", "keeping"]) $(id).hidden = !two;
  $("fork").hidden = two;
  for (const button of all("[data-steer]")) button.setAttribute("aria-pressed", button.dataset.steer === state.steer);
  $("pause").setAttribute("aria-pressed", state.paused);
  $("pause").firstChild.textContent = state.paused ? "Go on " : "Pause ";
  $("game").setAttribute("aria-pressed", state.game);
  $("restore").hidden = !state.saves.length;
  $("restore").replaceChildren(element("option", "Restore …", { value: "" }), ...state.saves.map((s) => element("option", s)));
  $("scenario").value = state.scenario;
  if (shown) {
    for (const name of ["steps", "window", "seed"]) {
      if ($(name).matches(":active")) continue; // being dragged
      $(name).value = shown[name];
      $(`${name}-value`).value = shown[name];
    }
    if (document.activeElement !== $("prompt")) $("prompt").value = shown.text;
  }
  if (document.body.dataset.state === "ready" || document.body.dataset.state === "paused") {
    if (state.paused) show("paused", "Paused", "");
    else show("ready", "Ready", "");
  }
}

function show(name, title, text) {
  document.body.dataset.state = name;
  const veil = $("veil");
  veil.hidden = name === "ready";
  veil.classList.toggle("still", ["failed", "paused", "disconnected"].includes(name));
  $("pill").textContent = { ready: "Playing", disconnected: "Disconnected", failed: "Stopped" }[name] || title;
  $("veil-title").textContent = title;
  $("veil-text").textContent = text;
  $("veil-button").hidden = !["disconnected", "paused"].includes(name);
  $("veil-button").textContent = name === "paused" ? "Go on" : "Try now";
  for (const control of all("#bar button, #bar select, aside input, aside select, aside button, .key")) {
    control.inert = !["ready", "paused"].includes(name);
  }
}

let toastTimer = 0;
function toast(text, bad = false) {
  clearTimeout(toastTimer);
  Object.assign($("toast"), { textContent: text, hidden: false, className: bad ? "bad" : "" });
  toastTimer = setTimeout(() => { $("toast").hidden = true; }, bad ? 7000 : 3000);
}

// ------------------------------------------------------------------------------------------------
// Numbers and graph, five times a second
// ------------------------------------------------------------------------------------------------

const budget = () => (1000 * world.chunk) / world.frame_rate; // ms that a chunk may take

function measure() {
  const now = performance.now();
  while (points.length && points[0].at < now - 1000 * SECONDS_SHOWN) points.shift();
  if (!world || document.hidden) return;
  const latency = points.filter((p) => "latency" in p).map((p) => p.latency);
  const photon = points.filter((p) => "photon" in p).map((p) => p.photon);
  $("fps").textContent = streams.a.rate ? streams.a.rate.toFixed(1) : "–";
  $("latency").textContent = latency.length ? `${round(quantile(latency, 0.5))} / ${round(quantile(latency, 0.95))} ms` : "–";
  if (photon.length) $("photon").textContent = `${round(quantile(photon, 0.5))} ms`;
  for (const name of ["a", "b"]) {
    const own = state && state.worlds[name];
    if (own) $(`info-${name}`).textContent = `frame ${streams[name].frame}, ${own.steps} step${own.steps > 1 ? "s" : ""}`;
  }
  drawGraph($("graph"), points, budget(), now);
}

firstTheme();
wire();
connect();
setInterval(measure, 200);
