"""Doom world model that takes keys and prompts: the stages of Causal-rCM (arXiv 2606.25473).

  python -m experiments.train --config=configs/doom/world.py:teacher --workdir=runs/world/teacher
  python -m experiments.train --config=configs/doom/world.py:tf --workdir=runs/world/tf
  python -m experiments.train --config=configs/doom/world.py:dcm --workdir=runs/world/dcm
  python -m experiments.train --config=configs/doom/world.py:sf --workdir=runs/world/sf

Each starts from the one before; the first needs runs/world/data and codec.npz. The pipeline
causal_rcm.py runs all of them, and the evaluation. The argument is "stage" and any of these, after
commas:

  teacher   flow matching, whole clip
  tf, df    made causal: behind true frames (teacher forcing), or noisy ones (diffusion forcing)
  dcm, scm  few steps behind true frames: discrete, or continuous-time consistency
  sf        few steps behind its own frames: distribution matching (self-forcing)
  causvid   the same by jumps from noised frames, from df
  cpu, gpu, tiny    sizes: two cores (default), one GPU (not run yet), tests
  1step, 2step, 4step    most steps of the student (default 2step)
  c3        chunks of three frames instead of one
  smooth    time_scale=1 in every stage: networks whose derivative in time scm can follow

Two CPU cores, idle: 4, 4, 3 and 4 minutes. Expected: results/world/table.md.
"""

from configs import common

STAGES = ("teacher", "tf", "df", "dcm", "scm", "sf", "causvid")
SIZES = ("cpu", "gpu", "tiny")
TIMES = {"1step": (1.0,), "2step": (1.0, 0.75), "4step": (1.0, 15 / 16, 5 / 6, 5 / 8)}
CHUNKS = {"c1": 1, "c3": 3}
SCALES = {"wan": 1000.0, "smooth": 1.0}
# Updates and learning rates of each stage; (student, fake) where there are two.
STEPS = {
  "cpu": {"teacher": 3000, "tf": 1800, "dcm": 600, "sf": 600},
  "gpu": {"teacher": 20_000, "tf": 10_000, "dcm": 4000, "sf": 3000},
  "tiny": {"teacher": 4, "tf": 4, "dcm": 4, "sf": 4},
}
RATES = {"cpu": (3e-4, 6e-4), "gpu": (2e-5, 4e-5), "tiny": (3e-4, 6e-4)}


def get_config(arg="teacher"):
  """arg: "stage,option,...", see above."""
  stage, size, steps, chunk, scale = parse(arg)
  config = common.base()
  _world(config, size)
  config.model.time_scale = SCALES[scale]
  updates = STEPS[size][{"df": "tf", "scm": "dcm", "causvid": "sf"}.get(stage, stage)]
  config.train.update(steps=updates, save_every=-(-updates // 3), sample_every=-(-updates // 3))
  if size == "tiny":
    config.train.sample_every = 0
  if stage != "teacher":
    config.causal.chunk = CHUNKS[chunk]
    config.causal.forcing = {"df": "diffusion", "causvid": "diffusion", "sf": None}.get(
      stage, "teacher"
    )
  if stage in ("teacher", "tf", "df"):
    _diffusion(config, stage, size)
  elif stage in ("dcm", "scm"):
    _consistency(config, stage, size)
  else:
    _matching(config, stage, size, TIMES[steps])
  if stage not in ("teacher", "tf", "df"):
    config.eval.update(solver="consistency", steps=len(TIMES[steps]), times=TIMES[steps][1:])
  return config


def parse(arg):
  """(stage, size, steps, chunk, scale) of an argument.

  Raises:
    ValueError: for words that do not exist, or two of a kind.
  """
  stage, *options = arg.split(",")
  chosen = []
  for kind, default in ((SIZES, "cpu"), (TIMES, "2step"), (CHUNKS, "c1"), (SCALES, "wan")):
    named = [option for option in options if option in kind] or [default]
    chosen.append(named[0] if len(named) == 1 else None)
  known = {*SIZES, *TIMES, *CHUNKS, *SCALES}
  if stage not in STAGES or None in chosen or not known.issuperset(options):
    raise ValueError(
      f"configs/doom/world.py:{arg}: write stage,option,... with one of {', '.join(STAGES)}, and "
      f"at most one of each of {'; '.join(', '.join(k) for k in (SIZES, TIMES, CHUNKS, SCALES))}."
    )
  return stage, *chosen


def _world(config, size):
  """Data and network, which all stages share."""
  config.data.update(path="runs/world/data", codec="runs/world/codec.npz", context=2, text=True)
  config.model.update(patch=(1, 1, 1), prediction="x0")
  if size == "gpu":
    config.data.update(batch_size=32, frames=18)
    config.model.update(dim=640, depth=12, heads=10, dtype="bfloat16")
  elif size == "cpu":
    config.data.update(batch_size=4, frames=12)
    config.model.update(dim=128, depth=5, heads=4)
  else:
    config.data.update(batch_size=2, frames=5, text_tokens=8)
    config.model.update(dim=32, depth=1, heads=2)


def _diffusion(config, stage, size):
  """Flow matching at times where the past must tell what comes, as all of Causal-rCM does."""
  config.objective = {"name": "flow_matching", "time": "uniform:5", "drop": 0.1}
  config.optim.update(schedule="linear", ema="power:0.1", clip=1.0, warmup=50)
  if size == "gpu":
    config.optim.update(lr=3e-4, warmup=500)
  else:
    # Muon takes half the steps of AdamW to the same next frames, and to obeying the keys.
    config.optim.update(lr=3e-3, muon=0.01, warmup=30 if size == "cpu" else 0)
  start = None if stage == "teacher" else "runs/world/teacher:model:ema"
  config.nets.model = common.net(start)
  if stage != "teacher" and size == "cpu":
    config.nets.model.optim.update(lr=1.5e-3, muon=0.005)
  config.eval.update(solver="euler", steps=16, shift=5.0)


def _few_steps(config, stage, size):
  """What the stages of few-step students share: averages, momentum 0 as in all of the papers."""
  config.optim.update(b1=0.0, b2=0.99, warmup=20 if size != "tiny" else 0, schedule="linear")
  config.optim.update(clip=0.0 if stage == "scm" else 1.0, ema="constant:0.98")


def _consistency(config, stage, size):
  _few_steps(config, stage, size)
  options = {"steps": 48, "shift": 3.0} if stage == "dcm" else {"warmup": 200}
  config.objective = {"name": stage, **options}
  config.nets.teacher = common.net("runs/world/tf:model:ema")
  config.nets.student = common.net("runs/world/tf:model:ema", optim={"lr": RATES[size][0]})


def _matching(config, stage, size, times):
  _few_steps(config, stage, size)
  name = {"sf": "self_forcing"}.get(stage, stage)
  config.objective = {"name": name, "times": times, "ratio": 3, "time": "uniform:5"}
  start = "runs/world/dcm:student:ema" if stage == "sf" else "runs/world/df:model:ema"
  fast, slow = RATES[size]
  config.nets.teacher = common.net("runs/world/teacher:model:ema")
  config.nets.fake = common.net("runs/world/teacher:model:ema", optim={"lr": slow})
  config.nets.student = common.net(start, optim={"lr": fast})
