"""Trains what a config describes.

  python -m experiments.train --config=configs/synthetic.py --workdir=runs/synthetic

Any key of the config is a flag: --config.optim.lr=3e-4 --config.train.steps=2000. Running the same
command again resumes from the last checkpoint in --workdir, bit for bit as if it had never stopped.
SIGTERM saves a checkpoint after the step that is under way, then ends. Several processes, under
Slurm, on Kubernetes or a TPU pod: docs/launch.md.

What a run leaves in --workdir:
  config.json      the resolved config
  metrics.jsonl    one JSON object a step; events/ is the same for TensorBoard
  diagnosis.jsonl  what looked wrong, since when, and what to try (docs/diagnosis.md)
  checkpoints/     the last ones; name a network in them as "workdir:role:ema"
  samples/         pictures drawn while training: real above drawn
  nonfinite/       only after an abort: state, batch and metrics of a step that was not finite
  profile/         only with --profile
"""

import functools
import pathlib
import sys
import time

import jax
import jax.numpy as jnp
import numpy as np
from absl import flags
from tqdm import tqdm

from experiments import flags as shared
from experiments import setup as build
from experiments.batches import sample_batch
from experiments.drawing import behind_context, make_sample_fn
from experiments.fingerprint import fingerprint
from experiments.frozen import load_frozen
from experiments.preview import make_show
from vidstep.data.video_io import save_picture
from vidstep.files import write_json
from vidstep.parallel import processes
from vidstep.parallel.mesh import AXES, make_mesh
from vidstep.parallel.sharding import (
  batch_sharding,
  check_batch,
  frame_shardings,
  replicated,
  state_sharding,
)
from vidstep.training.checkpoint import Checkpoints
from vidstep.training.diagnosis import Collapsed, Diagnosis
from vidstep.training.log import MetricsLog, read_metrics
from vidstep.training.picture import side_by_side
from vidstep.training.probe import probe
from vidstep.training.state import averaged
from vidstep.training.step import make_step

CONFIG = shared.define_config()
WORKDIR = shared.define_workdir("Folder of this run; what it finds there is resumed.")
WANDB = flags.DEFINE_string("wandb", None, "Weights & Biases project to log to as well.")
PROFILE = flags.DEFINE_string("profile", None, "start:stop, the steps to trace for xprof.")
PREEMPTED = flags.DEFINE_integer(
  "preempted_status",
  0,
  "Exit status after SIGTERM; one of its own lets a launcher tell it from a finished run.",
)


class NotFinite(ValueError):
  """Raised after the dump of a step that was not finite, in all processes alike."""


def main(argv):
  del argv
  if CONFIG.value is None:
    raise ValueError("Which experiment? Give --config=configs/....py (see configs/).")
  try:
    state = train(CONFIG.value, WORKDIR.value, wandb=WANDB.value, profile=PROFILE.value)
    if int(state.step) < CONFIG.value.train.steps:
      sys.exit(PREEMPTED.value)
  except Collapsed as reason:
    print(f"stopped: {reason}", file=sys.stderr)
    sys.exit(3)


def train(config, workdir, *, wandb=None, profile=None):
  """Trains until config.train.steps, or SIGTERM; resumes if `workdir` holds checkpoints.

  Several processes call it alike, and all get the final state; the first writes what is written
  once.
  """
  # ----------------------------------------------------------------------------------------------
  # Mesh, model, objective, data
  # ----------------------------------------------------------------------------------------------
  if not workdir:
    raise ValueError("Where should the run go? Give --workdir=runs/some_name.")
  workdir = pathlib.Path(workdir)
  first, last = parse_profile(profile)
  mesh = make_mesh(*(config["mesh"][axis] for axis in AXES))
  check_batch(config["data"]["batch_size"], mesh, config["train"]["accumulate"])
  run = build.build(config, mesh)
  config, objective, settings = run.config, run.objective, run.config["train"]
  lead = processes.is_first()
  if jax.process_count() > 1:
    processes.check_devices()
    processes.compare(fingerprint(run))
  processes.check_shared(workdir)
  watched = config["diagnose"]
  if watched["samples"] < 1:
    raise ValueError(f"diagnose.samples={watched['samples']}: draw each condition once or more.")

  # ----------------------------------------------------------------------------------------------
  # Shardings, batches
  # ----------------------------------------------------------------------------------------------
  spread = functools.partial(state_sharding, mesh=mesh, preset=config["mesh"]["rules"])
  by_sample, everywhere = batch_sharding(mesh), replicated(mesh)
  by_frame = frame_shardings(run.example, mesh)
  prepare = jax.jit(run.prepare, in_shardings=by_sample, out_shardings=by_frame)

  def next_batch():
    size = config["data"]["batch_size"]
    place = lambda x: jax.make_array_from_process_local_data(by_sample, x, (size, *x.shape[1:]))
    arrays = {name: place(x) for name, x in next(run.loader).items() if name != "caption"}
    return prepare(arrays), run.loader.state()

  # ----------------------------------------------------------------------------------------------
  # State: resumed, or started from other networks, or fresh
  # ----------------------------------------------------------------------------------------------
  checkpoints = Checkpoints(workdir, keep=settings["keep"])
  key = jax.random.key(config["seed"])
  shapes = jax.eval_shape(lambda key: run.init(key, {}), key)
  shardings = spread(shapes)
  like = jax.tree.map(
    lambda x, s: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=s), shapes, shardings
  )
  resumed = checkpoints.restore(like, config=config, references=run.references)
  if resumed:
    state, meta = resumed
    run.loader.restore(meta["loader"])
    say(f"resuming {workdir} at step {int(state.step)}")
  else:
    init = jax.jit(run.init, out_shardings=shardings, donate_argnums=1)
    state = init(key, build.load_initial(run, spread))
  frozen = load_frozen(run, spread)
  frozen_shardings = jax.tree.map(lambda x: x.sharding, frozen)
  start, stop = int(state.step), settings["steps"]
  if lead:
    write_json(workdir / "config.json", config)
  count = lambda tree: sum(x.size for x in jax.tree.leaves(tree))
  for role, net in state.nets.items():
    say(f"{role}: {count(net.params) / 1e6:.2f}M parameters on {mesh.size} device(s)")

  # ----------------------------------------------------------------------------------------------
  # One compiled step for each set of due roles
  # ----------------------------------------------------------------------------------------------
  compiled = {}

  def step_for(roles):
    if roles not in compiled:
      step = make_step(
        objective,
        run.optimizers,
        run.emas,
        roles,
        accumulate=settings["accumulate"],
        adapters=run.adapters,
      )
      step = jax.jit(
        step,
        in_shardings=(shardings, frozen_shardings, by_frame),
        out_shardings=(shardings, everywhere),
        donate_argnums=0,
      )
      begin = time.perf_counter()
      compiled[roles] = step.lower(state, frozen, batch).compile()
      say(f"compiling step ({', '.join(roles)}) ... {time.perf_counter() - begin:.1f} s")
      bar.unpause()  # the estimate of the time left starts here
    return compiled[roles]

  # ----------------------------------------------------------------------------------------------
  # Samples: a few of the same conditions from the same noise throughout the run
  # ----------------------------------------------------------------------------------------------
  seeds, look_every = watched["samples"], watched["every"] or settings["sample_every"]
  draw = jax.jit(make_sample_fn(run), out_shardings=everywhere)
  repeated = lambda x: jnp.tile(x, (seeds,) + (1,) * (x.ndim - 1))

  @functools.cache
  def reference():
    """The conditions, each once and repeated, what draws latents, and the real videos."""
    batch = sample_batch(run)
    show, sentence = make_show(run)
    if sentence:
      say(sentence)
    real = np.asarray(show(behind_context(batch, batch.x0)))
    return processes.place(jax.tree.map(repeated, batch), everywhere), show, real

  def look(step):
    """What a probe of the samples measures; their picture at every sample_every-th step."""
    role = objective.roles[0]
    params = averaged(role, state.nets[role], frozen, run.adapters)
    shown, show, real = reference()
    drawn = np.asarray(show(jax.device_get(draw(params, shown, key))))  # each process for itself
    drawn = drawn.reshape(seeds, -1, *drawn.shape[1:])
    if due(step, settings["sample_every"]) and lead:
      picture = side_by_side(real, drawn[0])
      path = workdir / "samples" / f"step_{step:07d}.png"
      save_picture(path, picture, made_by="vidstep", composite=True)
      log.image(step, "samples", picture)
    return probe(real, drawn, context=config["data"]["context"])

  def due(step, every):
    return every > 0 and (step == 1 or step % every == 0 or step == stop)

  # ----------------------------------------------------------------------------------------------
  # The loop
  # ----------------------------------------------------------------------------------------------
  if start >= stop:
    say(f"{workdir} is already trained to step {start}")
    checkpoints.close()
    return state
  log = diagnosis = None  # but in the first process
  if lead:
    log = MetricsLog(workdir, start=start, every=settings["log_every"], wandb=wandb, config=config)
    diagnosis = Diagnosis(read_metrics(workdir), total=stop, path=workdir / "diagnosis.jsonl")
  batch, position = next_batch()
  bar = tqdm(
    initial=start, total=stop, unit="step", dynamic_ncols=True, mininterval=1, smoothing=0.05,
    disable=not lead,
  )  # fmt: skip
  with processes.Preemption() as preemption:
    try:
      for number in range(start + 1, stop + 1):
        if number == first and lead:
          jax.profiler.start_trace(str(workdir / "profile"))
        step = step_for(objective.due(number - 1))
        begin = time.perf_counter()
        state, metrics = step(state, frozen, batch)

        # While the device works: the next batch. A checkpoint needs the position of this one.
        used, used_position = batch, position
        if number < stop:
          batch, position = next_batch()

        metrics = jax.device_get(metrics)
        metrics["seconds"] = time.perf_counter() - begin
        looked = due(number, look_every)
        if looked:
          metrics |= look(number)
        if lead:
          log.write(number, metrics)
          for finding in diagnosis.update(number, metrics):
            say(f"step {number}, {finding.severity}: {finding.text}")
        if not all(np.isfinite(value) for value in metrics.values()):
          dump(workdir, state, used, used_position, number, metrics, run)
        if number == last and lead:
          jax.profiler.stop_trace()
          say(f"profile of steps {first} to {last} in {workdir / 'profile'}")
        losses = {k: f"{v:.4g}" for k, v in metrics.items() if k.endswith("/loss")}
        bar.set_postfix(losses, refresh=False)
        bar.update()

        collapse = None
        if watched["stop"] and looked:  # the first process judges, all do as it says
          found = diagnosis.collapse(watched["patience"]) if lead else None
          collapse = processes.gather(found.text if found else "")[0]
        preempted = preemption.reached(number)
        if number % settings["save_every"] == 0 or number == stop or collapse or preempted:
          checkpoints.save(state, config=config, loader=used_position, references=run.references)
        if collapse:
          raise Collapsed(
            f"step {number}: {collapse} The checkpoint of this step is saved; the same command "
            "with --config.diagnose.stop=False goes on from it."
          )
        if preempted:
          say(f"SIGTERM: saved at step {number}; the same command goes on from there.")
          break
    except (Collapsed, NotFinite):
      raise
    except Exception as error:
      processes.failed(error)
      raise
    finally:
      bar.close()
      if lead:
        log.close()
      checkpoints.close()
  return state


def dump(workdir, state, batch, position, number, metrics, run):
  """Writes down the step that was not finite, then stops the run.

  A step that is not finite leaves the state as it was: what is dumped reproduces it.
  """
  folder = workdir / "nonfinite"
  store = Checkpoints(folder, keep=1)
  store.save(state, config=run.config, loader=position, references=run.references)
  store.close()
  arrays, _ = jax.tree_util.tree_flatten_with_path(processes.to_host(batch))
  arrays = {jax.tree_util.keystr(path, simple=True, separator="."): x for path, x in arrays}
  values = {name: str(float(value)) for name, value in metrics.items()}
  if processes.is_first():
    np.savez(folder / "batch.npz", **arrays)
    write_json(folder / "metrics.json", {"step": number, **values})
  broken = [name for name, value in metrics.items() if not np.isfinite(value)]
  raise NotFinite(
    f"Step {number} is not finite ({', '.join(broken)}): stopped. The state before it, its batch "
    f"and its metrics are in {folder}. Try a lower optim.lr, optim.clip=1.0, or float32."
  )


def parse_profile(text):
  """ "10:20" -> (10, 20); None -> (None, None)."""
  if text is None:
    return None, None
  first, _, last = text.partition(":")
  if not (first.isdigit() and last.isdigit() and int(first) <= int(last)):
    raise ValueError(f"--profile={text} should be start:stop, such as --profile=10:20.")
  return int(first), int(last)


def say(text):
  """Prints a line without disturbing the progress bar; the first process only."""
  if processes.is_first():
    tqdm.write(text)


if __name__ == "__main__":
  shared.run(main, distributed=True)
