"""What all entry points share: flags, the config on the command line, errors as one sentence."""

import difflib
import importlib.util
import os
import pathlib
import re
import sys
import traceback

from absl import app, flags, logging
from ml_collections import config_flags

from configs import common

_schema = common.base  # of the one --config that an entry point has

_DEBUG = flags.DEFINE_bool("debug", False, "Show the whole traceback of an error.")
_CACHE = flags.DEFINE_string(
  "compilation_cache",
  os.environ.get("JAX_COMPILATION_CACHE_DIR", "~/.cache/vidstep"),
  'Folder where compiled programs are kept for the next run; "" keeps none.',
)
_COORDINATOR = flags.DEFINE_string(
  "coordinator", None, "host:port of the first of several processes, if no launcher tells it."
)
_PROCESSES = flags.DEFINE_integer("processes", None, "How many processes there are.", lower_bound=1)
_PROCESS = flags.DEFINE_integer("process", None, "Which of them this is, from 0.", lower_bound=0)
_DISTRIBUTED = flags.DEFINE_bool(
  "distributed",
  None,
  "True: let jax find the other processes (TPU VMs, Kubernetes); False: there are none. Default: "
  "as Slurm, Open MPI or GKE say in the environment.",
)


def define_config(schema=common.base):
  """Defines --config, once for all entry points in a process; its value is a `ConfigDict`.

  Args:
    schema: function in configs/common.py that lists the keys of this kind of experiment.
  """
  global _schema
  _schema = schema
  if "config" in flags.FLAGS:
    return flags.FlagHolder(flags.FLAGS, flags.FLAGS["config"])
  return config_flags.DEFINE_config_file(
    "config",
    None,
    "Experiment file with get_config(arg), as path.py or path.py:arg. Every key in it is a flag: "
    "--config.optim.lr=3e-4.",
    lock_config=True,
  )


def define_workdir(what):
  """Defines --workdir, once for all entry points in a process."""
  return _define(flags.DEFINE_string, "workdir", None, what)


def define_out(what, default=None):
  """Defines --out, once for all entry points in a process."""
  return _define(flags.DEFINE_string, "out", default, what)


def define_rows(what):
  """Defines --rows, names of rows of a table, once for all entry points in a process."""
  return _define(flags.DEFINE_list, "rows", None, what)


def _define(kind, name, default, what):
  if name in flags.FLAGS:
    return flags.FlagHolder(flags.FLAGS, flags.FLAGS[name])
  return kind(name, default, what)


def run(main, *, distributed=False):
  """Runs `main(argv)` after parsing flags; bad input ends in one sentence and exit status 1.

  Args:
    main: what to run.
    distributed: whether it knows what to do as one of several processes; else it refuses.
  """
  from vidstep.parallel import processes  # here: flags alone need no jax

  def guarded(argv):
    logging.set_verbosity(logging.WARNING)
    if len(argv) > 1:
      raise app.UsageError(f"Unexpected argument {argv[1]!r}: flags begin with --.")
    try:
      check_local_folders()
      use_compilation_cache(_CACHE.value)
      start_processes(distributed)
      main(argv)
    except (ValueError, FileNotFoundError, NotImplementedError, ImportError) as error:
      if _DEBUG.value:
        traceback.print_exc()
      if processes.lost(error):
        processes.failed(error)
      processes.leave(f"{error}\n(--debug shows where this came from)")
    except KeyboardInterrupt:
      if _DEBUG.value:
        traceback.print_exc()
      processes.leave("interrupted; the same command goes on from the last checkpoint.", 130)
    except Exception as error:
      processes.failed(error)
      raise

  shown = ["config", "workdir", "out", "rows", "debug", "compilation_cache"]
  shown += ["coordinator", "processes", "process", "distributed"] if distributed else []
  for name in shown:
    if name in flags.FLAGS:  # in --help, which otherwise lists those of the entry point's own file
      flags.FLAGS.register_key_flag_for_module(sys.argv[0], flags.FLAGS[name])
  app.run(guarded, flags_parser=_parse)


def start_processes(distributed):
  """Joins the other processes, if flags or a launcher say that there are some.

  Raises:
    ValueError: if there are, and this entry point is for one process (`distributed` is False).
  """
  from vidstep.parallel import processes

  asked = _COORDINATOR.value, _PROCESSES.value, _PROCESS.value
  if distributed:
    processes.start(*asked, distributed=_DISTRIBUTED.value)
    return
  several = _COORDINATOR.value or (_PROCESSES.value or 1) > 1 or _DISTRIBUTED.value
  by = "--coordinator, --processes or --distributed" if several else processes.launcher()
  if by and _DISTRIBUTED.value is not False:
    raise ValueError(
      f"This command runs as one process, but {by} asks for several, which would all write the "
      "same files: start it once, or give --nodistributed to each that shall run on its own."
    )


def check_local_folders():
  """Refuses buckets where a file system is needed.

  Raises:
    ValueError: if --workdir or --out is an URL.
  """
  for name in ("workdir", "out"):
    value = flags.FLAGS[name].value if name in flags.FLAGS else None
    if "://" in str(value):
      raise ValueError(
        f"--{name}={value} is no folder: logs and pictures are appended to and renamed, which a "
        "bucket cannot. Mount it (Cloud Storage FUSE, docs/launch.md) and give that path."
      )


def use_compilation_cache(folder):
  """Keeps compiled programs in a folder, or a bucket, so that the next run starts in seconds."""
  if folder:
    if "://" not in str(folder):
      folder = pathlib.Path(folder).expanduser()
      folder.mkdir(parents=True, exist_ok=True)
    import jax  # here: recording needs flags, and no jax

    jax.config.update("jax_compilation_cache_dir", str(folder))
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.5)


def read_lines(path) -> list[str]:
  """The lines of a file of prompts that are not empty: one prompt a line.

  Raises:
    FileNotFoundError: if there is no such file.
    ValueError: if there is nothing in it.
  """
  path = pathlib.Path(path)
  if not path.is_file():
    raise FileNotFoundError(f"There is no file of prompts {path}: one prompt a line.")
  lines = [line.strip() for line in path.read_text(encoding="utf-8").splitlines() if line.strip()]
  if not lines:
    raise ValueError(f"{path} holds no prompts: write one a line.")
  return lines


def parse_size(text: str) -> tuple[int, int]:
  """ "480x832" -> (height, width).

  Raises:
    ValueError: for anything else.
  """
  match = re.fullmatch(r"(\d+)[xX*](\d+)", text)
  if not match:
    raise ValueError(
      f"--size={text} should be height x width in pixels, HEIGHTxWIDTH such as --size=480x832."
    )
  return int(match[1]), int(match[2])


def load_config(path, schema=common.base):
  """Reads "path.py" or "path.py:arg" into a `ConfigDict`.

  Args:
    path: of the file, with its argument.
    schema: see `check_keys`.

  Raises:
    FileNotFoundError: if there is no such file.
    ValueError: if the file has no `get_config`, or sets keys that do not exist.
  """
  file, colon, arg = str(path).partition(":")
  if not os.path.isfile(file):
    raise FileNotFoundError(f"There is no config file {file!r}: see configs/ for those that exist.")
  spec = importlib.util.spec_from_file_location("config_file", file)
  module = importlib.util.module_from_spec(spec)
  spec.loader.exec_module(module)
  if not hasattr(module, "get_config"):
    raise ValueError(f"{file} is no config: it defines no get_config(arg).")
  config = module.get_config(arg) if colon else module.get_config()
  check_keys(config.to_dict(), schema)
  return config


def check_keys(config, schema=common.base):
  """Refuses config keys that do not exist, naming the nearest that does.

  Names of networks are free. The keys of `objective` are checked against the objective itself, when
  it is built.

  Args:
    config: nested dict of a whole config.
    schema: function in configs/common.py that lists the keys of this kind of experiment.

  Raises:
    ValueError: for the first unknown key.
  """
  known = schema().to_dict()
  if schema is common.base:
    known["nets"] = {name: common.net().to_dict() for name in config.get("nets", {})}
  for free in ("objective", "networks"):
    if free in known:
      known[free] = config.get(free, {})
  for key in flatten(config):
    if key not in flatten(known):
      raise ValueError(unknown_key(key, flatten(known)))


def unknown_key(key, known):
  """The sentence for a config key that does not exist."""
  leaf = key.rpartition(".")[2]
  same = [k for k in known if k.rpartition(".")[2] == leaf]  # the right name in the wrong place
  near = difflib.get_close_matches(key, same or known, n=1, cutoff=0.0 if same else 0.6)
  hint = f"did you mean config.{near[0]}?" if near else "configs/common.py lists them all."
  return f"Unknown config key config.{key}: {hint}"


def flatten(tree, prefix=""):
  """Nested dicts -> list of "a.b.c", inner nodes that are empty included."""
  keys = []
  for name, value in tree.items():
    inner = flatten(value, f"{prefix}{name}.") if isinstance(value, dict) else []
    keys += inner or [f"{prefix}{name}"]
  return keys


def _parse(argv):
  """`app.run`'s parser, after looking at the config flags ourselves."""
  try:
    _check_config_flags(argv)
    return app.parse_flags_with_usage(argv)
  except (ValueError, FileNotFoundError) as error:
    _fail(str(error))


def _check_config_flags(argv):
  """Loads the config file once ahead of absl, whose errors here are long and late."""
  if "config" not in flags.FLAGS:
    return
  path, overrides = None, []
  for i, arg in enumerate(argv):
    match = re.match(r"--?config((?:\.[\w\[\]]+)*)(?:=(.*))?$", arg)
    if not match:
      continue
    if match[1]:
      overrides.append(match[1][1:])
    else:
      path = match[2] if match[2] is not None else (argv[i + 1 : i + 2] or [None])[0]
  if path is None:
    if overrides:
      raise ValueError(f"--config.{overrides[0]} needs --config=path.py before it.")
    return
  known = flatten(load_config(path, _schema).to_dict())
  for key in overrides:
    if key not in known:
      raise ValueError(unknown_key(key, known))


def _fail(sentence, status=1):
  print(f"error: {sentence}", file=sys.stderr)
  sys.exit(status)
