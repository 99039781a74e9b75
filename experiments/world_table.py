"""Fills the rows of a world table, one cell each on disk, and writes what a reader sees."""

import dataclasses
import datetime
import pathlib
import shlex
import sys
import time

import numpy as np
from tqdm import tqdm

from experiments import generate, world_picture, world_report, world_score
from experiments.cells import kept
from experiments.world_bench import make_bench, take
from experiments.world_rollout import Player
from vidstep.files import write_json, write_text
from vidstep.metrics.actions import shifted, shuffled
from vidstep.metrics.latency import device_name
from vidstep.training.checkpoint import parse_reference

SETTING = ("solver", "steps", "shift", "guidance", "times", "first_times")
KEYS = ("name", "network", "context", "late", "i3d", *SETTING)
BASELINES = ("codec", "repeat last frame")
SCORES = 2  # raise when a row gets new numbers: cells from before lack them
# What of the config a cell depends on.
TOLD = (
  "clips", "frames", "next_clips", "long", "long_clips", "seed", "resamples", "batch",
  "latency_runs", "reader_steps", "reader_clips", "hold", "hold_frames", "hold_clips",
)  # fmt: skip


def evaluate(config, workdir, *, rows=None):
  """Fills every row, then writes tables, plot and picture.

  Args:
    config: a dict (`common.world`); with "small": True what there is of data will do.
    workdir: where to.
    rows: see `select`.

  Returns:
    {row name: numbers}.
  """
  began = time.perf_counter()
  rows = select(config["rows"], rows)
  players = open_players(config, rows)
  network = next(iter(players.values())).network
  bench = make_bench(config, network, workdir)
  config = bench.config

  fills = {name: _baseline(name, bench, network) for name in ("real", *BASELINES)}
  fills |= {name: _generated(player, rows[name], bench) for name, player in players.items()}
  told = {part: config[part] for part in TOLD}
  cells, results = {}, {}
  with tqdm(total=len(fills), desc="rows", unit="row", dynamic_ncols=True) as bar:
    for name, (key, fill) in fills.items():
      cells[name] = kept(workdir, [SCORES, key, told], fill)
      results[name] = cells[name]["result"]
      tqdm.write(f"  {name:44s} {world_report.one_line(results[name])}")
      bar.update()
  _write(cells, results, config, bench, workdir, began)

  # FVD last: on a CPU it takes longer than all the rest, which is readable meanwhile.
  lengths = config["i3d_frames"]
  chosen = ["real", "repeat last frame", *(n for n, row in rows.items() if row.get("i3d"))]
  for name in tqdm(chosen if lengths else (), desc="FVD", unit="row", dynamic_ncols=True):
    fill = lambda n=name: world_score.distances(cells[n]["rollout"], bench, ("i3d",), lengths)
    found = kept(workdir, [SCORES, (fills[name][0], "i3d", lengths), told], fill)
    for length, distances in found.items():
      results[name]["distances"][length] |= distances
    _write(cells, results, config, bench, workdir, began)
  print("\n" + (workdir / "table.md").read_text())
  print(f"Tables, plot and picture are in {workdir}")
  return results


def select(rows, wanted):
  """The rows of a config by name, checked.

  Args:
    rows: dicts, see `common.world`.
    wanted: names or numbers (from 1) as strings; None for all.

  Raises:
    ValueError: for unknown keys, names that are missing or occur twice, or no row.
  """
  named = {}
  for number, row in enumerate(rows, 1):
    for key in row:
      if key not in KEYS:
        raise ValueError(f"Row {number} has the key {key!r}; rows have {', '.join(KEYS)}.")
    name = row.get("name")
    if not name or name in named or name in ("real", *BASELINES):
      raise ValueError(f"Row {number} needs a name of its own, not {name!r}.")
    named[name] = dict(row)
  if not named:
    raise ValueError("The config has no rows: there is nothing to evaluate.")
  if wanted is None:
    return named
  by_number = {str(number): name for number, name in enumerate(named, 1)}
  for word in wanted:
    if word not in by_number and word not in named:
      raise ValueError(
        f"There is no row {word!r}: --rows takes numbers from 1 to {len(named)} and the names "
        f"{'; '.join(named)}."
      )
  chosen = {by_number.get(word, word) for word in wanted}
  return {name: row for name, row in named.items() if name in chosen}


def open_players(config, rows):
  """Opens the network of every row: {row name: `Player`}.

  Raises:
    FileNotFoundError: for a network that does not exist, naming the stage that makes it.
    ValueError: for a network that the config does not have, or that others cannot stand beside.
  """
  opened, players = {}, {}
  for name, row in rows.items():
    who = row.get("network")
    if who not in config["networks"]:
      raise ValueError(
        f"Row {name!r} names the network {who!r}; config.networks has "
        f"{', '.join(config['networks'])}."
      )
    if who not in opened:
      opened[who] = _open(name, config["networks"][who].format(runs=config["runs"]), config)
    network = opened[who]
    first = next(iter(opened.values()))
    if network.config["data"] != first.config["data"]:
      raise ValueError(
        f"{network.reference} and {first.reference} were trained on different data settings: one "
        "table needs one recording, number of frames, context and codec."
      )
    setting = network.setting(**{axis: row.get(axis) for axis in SETTING})
    how = {"window": config["window"], "batch": config["batch"]}
    players[name] = Player(network, setting, row.get("context"), **how)
  return players


def _open(name, reference, config):
  try:
    return generate.open_network(reference)
  except FileNotFoundError as error:
    stage = pathlib.Path(parse_reference(reference)[0]).name
    raise FileNotFoundError(
      f"Row {name!r} needs {reference}, which is not there ({error}). Stage {stage!r} makes it: "
      f"python -m experiments.pipeline --config={config['pipeline']} --workdir={config['runs']} "
      f"--stages={stage}. Or fill other rows (--rows=...)."
    ) from error


# ------------------------------------------------------------------------------------------------
# Rows
# ------------------------------------------------------------------------------------------------


def _baseline(name, bench, network):
  """(key, function that fills the cell) of a row without a network."""

  def fill():
    n, long = bench.context, bench.config["long_clips"]
    near, whole = bench.near["video"], bench.conditions["video"]
    make = {
      "real": lambda video: video[:, n:],
      "codec": lambda video: _through_codec(video, network)[:, n:],
      "repeat last frame": lambda video: np.repeat(video[:, n - 1 : n], video.shape[1] - n, axis=1),
    }[name]
    most = max(bench.config["frames"])
    videos = {
      "near": make(near),
      "rollout": make(whole[:, : n + most]),
      "long": make(whole[:long]),
    }
    cell = {"result": world_score.score(videos, bench), "rollout": videos["rollout"], "held": {}}
    if name == "real":
      actions = bench.reference["actions"]
      cell["result"]["read"] = world_score.score_real(
        bench, shifted(actions), shuffled(actions, bench.config["seed"])
      )
    return cell

  return (name, network.reference), fill


def _through_codec(video, network):
  decode = generate.make_decoder(network)
  parts = [video[i : i + 8] / np.float32(127.5) - 1 for i in range(0, len(video), 8)]
  return np.concatenate([decode(network.codec.encode(part)) for part in parts])


def _generated(player, row, bench):
  """(key, function that fills the cell) of a network's row."""
  late = row.get("late") or 0
  setting = dataclasses.asdict(player.setting)
  key = (player.network.reference, setting, player.context, player.window, late)

  def fill():
    config, held = bench.config, {} if late else bench.held
    clips, most, first = config["clips"], max(config["frames"]), config["long_clips"]
    total = player.horizon * len(bench.near["video"]) + bench.config["hold_frames"] * clips * len(
      held
    )
    total += most * clips + (config["long"] - most) * first
    with tqdm(total=total, desc=f"{row['name']:.40s}", unit="frame", leave=False) as bar:

      def play(conditions, frames):
        if late:
          conditions = conditions | {"actions": shifted(conditions["actions"], late)}
        return player.play(conditions, frames, seed=config["seed"], progress=bar.update)

      videos = {
        "near": play(bench.near, player.horizon),
        "long": play(take(bench.conditions, slice(first)), config["long"]),
      }
      parts = [videos["long"][:, :most]]
      if clips > first:
        parts.append(play(take(bench.conditions, slice(first, None)), most))
      videos["rollout"] = np.concatenate(parts)
      futures = {
        n: play(bench.holding(action), config["hold_frames"]) for n, action in held.items()
      }
    result = world_score.score(videos | futures, bench) | {
      "nfe": player.forwards,
      "latency": player.time(bench.conditions, config["latency_runs"]),
      "network": player.network.reference,
      "setting": setting | {"context": player.context, "late": late},
    }
    return {"result": result, "rollout": videos["rollout"], "held": futures}

  return key, fill


def _write(cells, results, config, bench, workdir, began):
  """Everything that a reader sees, from what is there so far."""
  made = {
    "command": "python -m experiments.world " + shlex.join(sys.argv[1:]),
    "date": datetime.date.today().isoformat(),
    "device": device_name(),
    "seconds": round(time.perf_counter() - began),
  }
  write_json(workdir / "world.json", {"made": made, "config": config, "rows": results})
  write_text(workdir / "table.md", world_report.table(results, bench, made))
  world_report.draw_drift(results, bench, workdir / "drift.png")
  world_picture.draw(cells, bench, workdir / "picture.png")
