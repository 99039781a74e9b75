// The graph under the world: chunk latency as bars, key to pixel as dots, over the last seconds.
"use strict";

const SECONDS_SHOWN = 10;
const LEFT = 34; // pixels for the numbers

const round = (x) => (x >= 10 ? x.toFixed(0) : x.toFixed(1));

function quantile(values, q) {
  const sorted = [...values].sort((x, y) => x - y);
  return sorted[Math.min(sorted.length - 1, Math.floor(q * sorted.length))];
}

// points: {at, latency} or {at, photon} in ms; budget: what a chunk may take, a dashed line.
function drawGraph(canvas, points, budget, now) {
  const ratio = devicePixelRatio || 1;
  const [width, height] = [canvas.clientWidth, canvas.clientHeight];
  canvas.width = Math.round(width * ratio);
  canvas.height = Math.round(height * ratio);
  const pen = canvas.getContext("2d");
  pen.scale(ratio, ratio);
  const style = getComputedStyle(document.documentElement);
  const colour = (name) => style.getPropertyValue(name);
  const second = (width - LEFT - 4) / SECONDS_SHOWN;
  const top = 1.15 * Math.max(budget, 1, ...points.map((p) => p.latency ?? p.photon));
  const x = (at) => width - 4 - (second * (now - at)) / 1000;
  const y = (ms) => 4 + (height - 10) * (1 - ms / top);
  const line = (ms) => {
    pen.beginPath();
    pen.moveTo(LEFT, y(ms));
    pen.lineTo(width, y(ms));
    pen.stroke();
  };

  pen.font = "11px system-ui, sans-serif";
  for (const ms of ticks(top)) {
    pen.strokeStyle = colour("--line");
    line(ms);
    pen.fillStyle = colour("--soft");
    pen.fillText(`${ms}`, 2, y(ms) + 4);
  }
  const bar = Math.max(1, (second * budget) / 1000 - 1);
  pen.fillStyle = colour("--accent");
  for (const { at, latency } of points) {
    if (latency !== undefined) pen.fillRect(Math.max(x(at) - bar, LEFT), y(latency), bar, y(0) - y(latency));
  }
  pen.strokeStyle = colour("--soft");
  pen.setLineDash([5, 4]);
  line(budget);
  pen.setLineDash([]);
  pen.fillStyle = colour("--warm");
  for (const { at, photon } of points) {
    if (photon === undefined) continue;
    pen.beginPath();
    pen.arc(x(at), y(photon), 3.5, 0, 7);
    pen.fill();
  }
}

// Round numbers of milliseconds from 0 to top, about four.
function ticks(top) {
  const steps = [1, 2, 5, 10, 20, 50, 100, 200, 500, 1000, 2000, 5000, 10000];
  const step = steps.find((s) => top / s <= 4) || 100000;
  return Array.from({ length: Math.floor(top / step) + 1 }, (_, i) => i * step);
}
