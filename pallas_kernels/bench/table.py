"""Results as a Markdown table and as JSON, with everything needed to repeat them."""

import datetime
import json
import os
import pathlib
import platform
import shlex
import sys
from collections.abc import Sequence

import jax
import jaxlib
import numpy as np

_HEAD = (
  "shape",
  "mode",
  "implementation",
  "density",
  "ms (quartiles)",
  "TFLOP/s",
  "of peak",
  "pair / full (cpu)",
  "temp MiB",
)


def header(argv: Sequence[str]) -> dict:
  """What the numbers were made with: command, device, date, versions, how busy the machine was."""
  device = jax.devices()[0]
  return {
    "command": "python -m pallas_kernels.bench " + shlex.join(argv[1:]),
    "date": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
    "device": device.device_kind,
    "platform": device.client.platform_version.splitlines()[0],
    "processor": _processor(),
    "cores": os.cpu_count(),
    "load": os.getloadavg()[0],
    "versions": {
      "python": platform.python_version(),
      "jax": jax.__version__,
      "jaxlib": jaxlib.__version__,
      "numpy": np.__version__,
    },
  }


def write(result: dict, folder: str | None):
  """Writes `bench.json` and `table.md`, if there is a folder for them."""
  if folder:
    path = pathlib.Path(folder)
    path.mkdir(parents=True, exist_ok=True)
    (path / "bench.json").write_text(json.dumps(result, indent=1) + "\n")
    (path / "table.md").write_text(markdown(result) + "\n")


def markdown(result: dict) -> str:
  """The whole report."""
  versions = ", ".join(f"{name} {version}" for name, version in result["versions"].items())
  lines = [
    f"`{result['command']}`",
    "",
    f"{result['device']} ({result['processor']}, {result['cores']} cores, load "
    f"{result['load']:.1f} at the start), {result['date']}; {versions}; {result['dtype']}.",
  ]
  if "peak" in result:
    lines[-1] += (
      f" Peak, by the fastest of many matmuls in between: {result['peak'] / 1e12:.3g} TFLOP/s."
      f" An empty program takes {result['dispatch_seconds'] * 1e6:.0f} us."
    )
  lines += [*_checks(result.get("check", ())), ""]
  done = [row for row in result["rows"] if "not_run" not in row]
  of_peak = lambda row: row["flops_per_second"] / result["peak"]
  if done:
    lines += [
      _line(_HEAD),
      _line("---" for _ in _HEAD),
      *(_row(row, of_peak(row)) for row in done),
      "",
    ]
  lines += _not_run(row for row in result["rows"] if "not_run" in row)
  return "\n".join(lines).rstrip()


def one_line(row: dict) -> str:
  """A row as it is announced while the rest is still running."""
  name = f"{row['shape']:24s} {row['mode']:16s} {row['implementation']:12s}"
  if "not_run" in row:
    return f"{name} not run: {row['not_run']}"
  return f"{name} {row['seconds'] * 1e3:10.2f} ms {row['flops_per_second'] / 1e12:8.3f} TFLOP/s"


def _row(row: dict, of_peak: float) -> str:
  low, high = (1e3 * x for x in row["quartiles"])
  versus = f"{row['pair_time_of_full']:.2f}" if "pair_time_of_full" in row else ""
  if "pair_processor_time_of_full" in row:
    versus += f" ({row['pair_processor_time_of_full']:.2f})"
  memory = row.get("temp_bytes")
  return _line(
    (
      row["shape"],
      row["mode"],
      row["implementation"],
      f"{row['density']:.3f}",
      f"{1e3 * row['seconds']:.4g} ({low:.4g} to {high:.4g})",
      f"{row['flops_per_second'] / 1e12:.3g}",
      f"{of_peak:.0%}",
      versus,
      "" if memory is None else f"{memory / 2**20:.0f}",
    )
  )


def _not_run(rows: Sequence[dict]) -> list[str]:
  """One line for each implementation and reason."""
  groups = {}
  for row in rows:
    groups.setdefault((row["implementation"], row["not_run"]), []).append(row)
  lines = []
  for (name, reason), members in groups.items():
    of = ", ".join(dict.fromkeys(f"{row['shape']} {row['mode']}" for row in members))
    where = of if len(members) <= 3 else f"{len(members)} rows"
    lines.append(f"- `{name}` not run ({where}): {reason}")
  return lines


def _checks(records: Sequence[dict]) -> list[str]:
  lines = []
  for name, dtype in dict.fromkeys((r["implementation"], r["dtype"]) for r in records):
    mine = [r for r in records if (r["implementation"], r["dtype"]) == (name, dtype)]
    ran = [r for r in mine if "worst" in r]
    text = f"- `{name}` {dtype}: not run, {mine[0].get('not_run')}"
    if ran:
      worst = max(ran, key=lambda r: r["worst"])
      verdict = "conforms" if all(r["ok"] for r in ran) else "DOES NOT CONFORM"
      text = (
        f"- `{name}` {dtype}: {verdict}, {len(ran)} of {len(mine)} problems run, worst error "
        f"{worst['worst']:.1e} ({worst['mask']}, head dim {worst['dim']}; bar {worst['bar']:.0e})"
      )
      refused = {p: why for r in ran for p, why in r.get("refused", {}).items()}
      text += "".join(f"; no {part}: {why}" for part, why in refused.items())
    lines.append(text)
  return ["", "Against float64:", *lines] if lines else []


def _line(cells: Sequence[str]) -> str:
  return "| " + " | ".join(cells) + " |"


def _processor() -> str:
  try:
    with open("/proc/cpuinfo") as file:
      names = [line.partition(":")[2].strip() for line in file if line.startswith("model name")]
    return names[0]
  except (OSError, IndexError):
    return platform.processor() or sys.platform
