"""Sweeps how networks are sampled: steps x solver x shift x guidance x network, on one table.

  python -m experiments.sweep --config=configs/doom/sweep.py --workdir=runs/demo/sweep

All rows share contexts, actions, noise and reference clips. Every finished cell is kept in
workdir/cells, so an interrupted sweep goes on where it stopped. Leaves in --workdir:
  sweep.json    every number of every row        table.md    the table, and the answer in words
  pareto.png    distance against latency         picture.png, picture.mp4   videos side by side
"""

import dataclasses
import itertools
import pathlib

import numpy as np
from tqdm import tqdm

from configs import common
from experiments import flags as shared
from experiments import generate, judge, report
from experiments.cells import kept
from vidstep.data.video_io import grid, save_picture, save_video, strip
from vidstep.files import write_json, write_text
from vidstep.metrics.describe import describe_clips
from vidstep.metrics.motion import motion_magnitude
from vidstep.metrics.summary import compare_clips

CONFIG = shared.define_config(common.sweep)
WORKDIR = shared.define_workdir("Folder of the sweep; finished cells are reused.")
AXES = ("solver", "steps", "shift", "guidance", "times")


def main(argv):
  del argv
  if CONFIG.value is None or not WORKDIR.value:
    raise ValueError("Give --config=configs/.../sweep.py and --workdir=runs/.../sweep.")
  sweep(CONFIG.value.to_dict(), pathlib.Path(WORKDIR.value))


def sweep(config, workdir):
  """Fills every cell, then writes table, plot and pictures. Returns the rows."""
  networks = {k: generate.open_network(v) for k, v in config["networks"].items()}
  rows = expand(config["grid"], networks)
  first = next(iter(networks.values()))
  for network in networks.values():
    if network.config["data"] != first.config["data"]:
      raise ValueError(
        f"{network.reference} and {first.reference} were trained on different data settings: "
        "one table needs one test set, number of frames, context and codec."
      )
  bench = judge.make_bench(
    first,
    videos=config["videos"],
    seeds=tuple(config["seeds"]),
    features=tuple(config["features"]),
    resamples=config["resamples"],
  )

  told = {k: config[k] for k in ("videos", "seeds", "features", "resamples", "shown")}
  cells = {}
  baselines = {name: None for name in ("real", "codec", "repeat last frame")}
  bar = tqdm(total=len(baselines) + len(rows), desc="cells", unit="cell", dynamic_ncols=True)
  with bar:
    for name, make in _baselines(first, bench, config).items():
      cells[name] = kept(workdir, [(name, first.reference), told], make)
      bar.update()
    for name, (who, setting) in rows.items():
      fill = lambda w=who, s=setting, n=name: _measure(networks[w], s, bench, config, n)
      key = (networks[who].reference, dataclasses.asdict(setting))
      cells[name] = kept(workdir, [key, told], fill)
      tqdm.write(f"  {name:32s} {report.one_line(cells[name]['result'])}")
      bar.update()

  results = {name: cell["result"] for name, cell in cells.items()}
  versus = {}
  for a, b in config["compare"]:
    pair = (cells[_known(a, cells)]["description"], cells[_known(b, cells)]["description"])
    versus[f"{a} against {b}"] = compare_clips(
      *pair, bench.reference, features=bench.features, resamples=config["resamples"]
    )
  write_json(workdir / "sweep.json", {"config": config, "rows": results, "compare": versus})
  text = report.table(results, config, versus)
  write_text(workdir / "table.md", text)
  report.pareto(results, workdir / "pareto.png")
  _pictures(cells, config, first, bench, workdir)
  print("\n" + text)
  print(f"Table, plot and pictures are in {workdir}")
  return results


def expand(entries, networks):
  """The grid as rows.

  Args:
    entries: dicts with `network` and any of the axes, each one value or a tuple of values.
    networks: name -> `Network`.

  Returns:
    {"network solver steps ...": (network name, Setting)}, in order.

  Raises:
    ValueError: for an unknown axis, network or value.
  """
  rows = {}
  for entry in entries:
    entry = dict(entry)
    who = entry.pop("network", None)
    if who not in networks:
      raise ValueError(f"grid names the network {who!r}, but networks are {', '.join(networks)}.")
    for axis in entry:
      if axis not in AXES:
        raise ValueError(f"grid has no axis {axis!r}: there are {', '.join(AXES)}.")
    # Explicit times are one value, though a tuple.
    values = [v if isinstance(v, tuple | list) and k != "times" else (v,) for k, v in entry.items()]
    for chosen in itertools.product(*values):
      setting = networks[who].setting(**dict(zip(entry, chosen, strict=True)))
      rows[f"{who} {setting.label}"] = (who, setting)
  return rows


def _measure(network, setting, bench, config, name):
  description, videos = judge.describe_network(network, setting, bench, name=name)
  result = judge.judge(description, bench)
  result["latency"] = judge.time_network(network, setting, bench.clips, runs=config["latency_runs"])
  result |= {"network": network.reference, "setting": dataclasses.asdict(setting)}
  shown = videos[0, _shown(config)]
  return {"result": result, "description": description, "shown": shown}


def _shown(config):
  """Which videos the pictures show: spread over all, hence over episodes."""
  return np.linspace(0, config["videos"] - 1, config["shown"]).round().astype(int)


def _baselines(network, bench, config):
  """What no network is needed for: name -> function that fills a cell."""
  n = network.context
  video = bench.clips["video"]
  decode = generate.make_decoder(network)

  def cell(videos):
    description = describe_clips(videos, features=bench.features)
    result = judge.judge(description, bench)
    return {"result": result, "description": description, "shown": videos[_shown(config)]}

  def through_codec():
    parts = [
      decode(network.codec.encode(video[i : i + 64] / np.float32(127.5) - 1))
      for i in range(0, len(video), 64)
    ]
    return cell(np.concatenate(parts)[:, n:])

  out = {"real": lambda: cell(video[:, n:]), "codec": through_codec}
  if n:
    still = np.repeat(video[:, n - 1 : n], video.shape[1] - n, axis=1)
    out["repeat last frame"] = lambda: cell(still)
  return out


def _pictures(cells, config, network, bench, workdir):
  """Film strips and one video: the rows that the config names, same contexts, actions and noise."""
  context = bench.clips["video"][_shown(config), : network.context]
  rows = {}
  for name in config["picture"]:
    rows[name] = np.concatenate([context, cells[_known(name, cells)]["shown"]], axis=1)
  if not rows:
    return
  how = {"made_by": f"vidstep ({network.reference})", "composite": True}
  save_video(workdir / "picture.mp4", grid(rows), generate.frame_rate(network.config), **how)
  # Strips of the clips that move most: a strip of a clip that stands still shows nothing.
  first = next(iter(rows.values()))
  lively = np.argsort(-motion_magnitude(first).mean(axis=1))[: config["strips"]]
  strips = np.concatenate([strip(rows, clip=clip, target=64) for clip in lively])
  save_picture(workdir / "picture.png", strips, **how)


def _known(name, cells):
  if name not in cells:
    raise ValueError(f"There is no row {name!r}; the rows are {', '.join(cells)}.")
  return name


if __name__ == "__main__":
  shared.run(main)
