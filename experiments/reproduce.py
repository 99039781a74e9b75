"""Trains what a table needs, and prints expected | obtained | seeds | verdict.

  python -m experiments.reproduce --table=objectives

Tables: objectives, scm_vs_dcm, scm_numerics, causal_rcm_init (experiments/tables/); each takes
minutes on two cores. A cell is one row under one seed; finished cells are kept in --workdir, so an
interrupted command goes on where it stopped, more --seeds train only the new ones, and a changed
recipe trains its own cells anew. Leaves in --out:
  NAME.md     claims with verdicts, every number, notes     NAME.json   the same with every seed
  NAME.png    the picture
"""

import pathlib

from absl import flags

from experiments import flags as shared
from experiments import tables
from experiments.tables import render
from experiments.tables.table import fill, results_of
from vidstep.files import write_json, write_text

TABLE = flags.DEFINE_string("table", None, "Which table; several: a,b.")
SEEDS = flags.DEFINE_integer("seeds", None, "Number of seeds; by default what the table says.")
SMALL = flags.DEFINE_bool("small", False, "A few steps each: shows that it runs, and nothing else.")
ROWS = shared.define_rows("Fill these rows only (no claims without the others).")
OUT = shared.define_out("Folder for the report; by default WORKDIR/report.")
WORKDIR = shared.define_workdir("Folder of finished cells; by default runs/tables.")


def main(argv):
  del argv
  if not TABLE.value:
    raise ValueError(f"Give --table=NAME: there are {', '.join(tables.TABLES)}.")
  workdir = pathlib.Path(WORKDIR.value or "runs/tables")
  out = pathlib.Path(OUT.value) if OUT.value else workdir / "report"
  for name in TABLE.value.split(","):
    reproduce(name, workdir, out, seeds=SEEDS.value, small=SMALL.value, rows=ROWS.value or None)


def reproduce(name, workdir, out, *, seeds=None, small=False, rows=None):
  """Fills a table and writes its report. Returns the report's JSON."""
  table = tables.make(name, small=small)
  seeds = seeds or (2 if small else table.seeds)
  cells = fill(table, workdir, seeds, rows)
  words = [f"python -m experiments.reproduce --table={name} --seeds={seeds}"]
  words += ["--small"] * small + ([f"--rows={','.join(rows)}"] if rows else [])
  text, data = render.report(table, cells, " ".join(words))
  write_text(out / f"{name}.md", text)
  write_json(out / f"{name}.json", data)
  if not rows:
    table.draw(results_of(cells), out / f"{name}.png")
  print("\n" + text)
  print(f"Markdown, JSON and picture are in {out}")
  return data


if __name__ == "__main__":
  shared.run(main)
