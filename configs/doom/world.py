"""Doom world model that takes keys and prompts: the stages of Causal-rCM (arXiv 2606.25473).

  python -m experiments.train --config=configs/doom/world.py:tf --workdir=runs/world/tf
  python -m experiments.train --config=configs/doom/world.py:teacher --workdir=runs/world/teacher
  python -m experiments.train --config=configs/doom/world.py:dcm --workdir=runs/world/dcm
  python -m experiments.train --config=configs/doom/world.py:sf --workdir=runs/world/sf

Each starts from the one before; the first needs runs/world/data and codec.npz. The pipeline
causal_rcm.py runs all of them, and the evaluation. The argument is "stage" and any of the options,
with commas between:

  teacher    flow matching, whole clip; gpu: comes first; cpu, tiny: goes on from tf
  tf, df     causal: behind true frames (teacher forcing), or noisy ones (diffusion forcing)
  dcm, scm   few steps behind true frames: discrete, or continuous-time consistency
  kd, ode    few steps by regression: on the causal teacher's ODE, on the whole-clip one's (from df)
  sf         few steps behind its own frames: distribution matching (self-forcing)
  causvid    distribution matching of jumps from noised frames
  long       streaming long tuning along videos that go on, from sf

  cpu, gpu, tiny         sizes: two cores (default), one GPU (not run yet), tests
  1step, 2step, 4step    most steps of the student (default 2step)
  first4     4 steps in the first chunk of the video, whatever the others have
  noisy      later chunks read what the last step computed: a forward less for each chunk
  c3         chunks of three frames instead of one
  window     a frame sees the 6 before it and the 2 of the context: for `long`, in all stages
  smooth     time_scale=1 in every stage: networks whose derivative in time scm can follow

Two CPU cores, idle: 6, 2.4, 2.3 and 2.5 minutes. Expected: results/world/table.md.
"""

from configs import common

ADAPTED = ("tf", "df")
BEHIND_DATA = ("dcm", "scm", "kd", "ode")
ON_POLICY = ("sf", "causvid", "long")
STAGES = ("teacher", *ADAPTED, *BEHIND_DATA, *ON_POLICY)
OBJECTIVES = {"sf": "self_forcing", "long": "long_tuning", "ode": "kd"}
CAUSAL_RCM = (1.0, 15 / 16, 5 / 6, 5 / 8)
TIMES = {"1step": (1.0,), "2step": (1.0, 0.75), "4step": CAUSAL_RCM}
# What may be chosen beside the stage; the first of each row is the default.
OPTIONS = (
  ("cpu", "gpu", "tiny"),
  ("2step", "1step", "4step"),
  ("first", "first4"),
  ("clean", "noisy"),
  ("c1", "c3"),
  ("all", "window"),
  ("wan", "smooth"),
)
# Updates of each stage; learning rates of students behind data, behind themselves, and of fakes.
STEPS = {
  "cpu": {"tf": 2300, "teacher": 1100, "dcm": 500, "sf": 540},
  "gpu": {"teacher": 20_000, "tf": 10_000, "dcm": 4000, "sf": 3000},
  "tiny": {"teacher": 2, "tf": 2, "dcm": 2, "sf": 4},
}
KINDS = {"tf": ADAPTED, "dcm": BEHIND_DATA, "sf": ON_POLICY}
RATES = {
  "cpu": (3e-4, 1.5e-4, 6e-4),
  "gpu": (2e-5, 2e-5, 4e-5),
  "tiny": (3e-4, 3e-4, 6e-4),
}


def get_config(arg="teacher"):
  """arg: "stage,option,...", see above."""
  stage, size, steps, first, context, chunk, reach, scale = parse(arg)
  config = common.base()
  _world(config, size)
  config.model.time_scale = 1.0 if scale == "smooth" else 1000.0
  kind = next((k for k in ("tf", "dcm", "sf") if stage in KINDS[k]), "teacher")
  updates = STEPS[size][kind]
  config.train.update(steps=updates, save_every=-(-updates // 3), sample_every=-(-updates // 3))
  if size == "tiny":
    config.train.sample_every = 0
  if stage == "teacher" or stage in ADAPTED:
    _diffusion(config, stage, size)
  else:
    times = TIMES[steps]
    if context == "noisy" and steps == "2step":
      times = (1.0, 5 / 8)  # where the context is noisy, too: Causal-rCM's choice
    _students(config, stage, size, times)
    if stage in ON_POLICY:
      config.causal.context = "last_step" if context == "noisy" else None
      if first == "first4" and stage == "sf":
        config.objective.first_times = CAUSAL_RCM
        config.eval.first_times = CAUSAL_RCM[1:]
  if stage != "teacher":
    diffusion = stage in ("df", "ode", "causvid")
    config.causal.chunk = 3 if chunk == "c3" else 1
    config.causal.forcing = "diffusion" if diffusion else None if stage in ON_POLICY else "teacher"
    if reach == "window":
      config.causal.update(window=7, sink=2)
  return config


def parse(arg):
  """The stage, and one word out of each row of `OPTIONS`.

  Raises:
    ValueError: for words that do not exist, or two of a row.
  """
  stage, *words = arg.split(",")
  named = [[word for word in words if word in row] or [row[0]] for row in OPTIONS]
  known = {word for row in OPTIONS for word in row}
  if stage not in STAGES or not known.issuperset(words) or any(len(n) > 1 for n in named):
    raise ValueError(
      f"configs/doom/world.py:{arg}: write stage,option,... with one of {', '.join(STAGES)}, and "
      f"at most one of each of {'; '.join(', '.join(row) for row in OPTIONS)}."
    )
  return stage, *(words[0] for words in named)


def _world(config, size):
  """Data and network, which all stages share."""
  config.data.update(path="runs/world/data", codec="runs/world/codec.npz", context=2, text=True)
  config.model.update(patch=(1, 1, 1), prediction="x0")
  if size == "gpu":
    config.data.update(batch_size=32, frames=18)
    config.model.update(dim=640, depth=12, heads=10, dtype="bfloat16")
  elif size == "cpu":
    config.data.update(batch_size=4, frames=10)
    # One compiled block in place of five: 12 updates from nothing take 48 seconds instead of 68.
    config.model.update(dim=128, depth=5, heads=4, scan=True)
  else:
    config.data.update(batch_size=8, frames=5, text_tokens=8)
    config.model.update(dim=32, depth=1, heads=2)


def _diffusion(config, stage, size):
  """Flow matching at times where the past must tell what comes, as all of Causal-rCM does."""
  time = "uniform:3" if stage == "teacher" else "uniform:5"
  config.objective = {"name": "flow_matching", "time": time, "drop": 0.1}
  config.optim.update(schedule="linear", ema="power:0.1", clip=1.0, warmup=50)
  after = "tf" if stage == "teacher" else "teacher"
  if size == "gpu":
    config.optim.update(lr=3e-4, warmup=500)
    start = None if stage == "teacher" else after
  else:
    # Muon takes half the steps of AdamW to the same next frames, and to obeying the keys.
    config.optim.update(lr=3e-3, muon=0.01, warmup=30 if size == "cpu" else 0)
    # A network this small learns from next frames, of which teacher forcing has one in every frame,
    # how the keys move the picture. From whole clips of noise it learned, for as many minutes, what
    # a scenario looks like, and no motion. So the order of the two is turned around.
    start = after if stage == "teacher" else None
  config.nets.model = common.net(start and f"runs/world/{start}:model:ema")
  if stage == "teacher" and size == "cpu":
    config.nets.model.optim.update(lr=1.5e-3, muon=0.005)
  config.eval.update(solver="euler", steps=16, shift=5.0)


def _students(config, stage, size, times):
  """Few-step students: behind data, and behind themselves."""
  # Momentum 0 as in all of the papers; normalised tangents (scm) want no clipping.
  config.optim.update(b1=0.0, b2=0.99, warmup=20 if size != "tiny" else 0, schedule="linear")
  config.optim.update(clip=0.0 if stage == "scm" else 1.0, ema="constant:0.98")
  config.eval.update(solver="consistency", steps=len(times), times=times[1:])
  config.objective = {"name": OBJECTIVES.get(stage, stage)}
  behind_data, on_policy, fake_rate = RATES[size]
  whole, causal = "runs/world/teacher:model:ema", "runs/world/tf:model:ema"
  if stage in BEHIND_DATA:
    regression = {"times": times, "steps": 16}
    own = {"dcm": {"steps": 48, "shift": 3.0}, "scm": {"warmup": 200}}
    config.objective.update(own.get(stage, regression))
    config.nets.teacher = common.net(whole if stage == "ode" else causal)
    start = "runs/world/df:model:ema" if stage == "ode" else causal
    config.nets.student = common.net(start, optim={"lr": behind_data})
    return
  config.objective.update(times=times, ratio=3, time="uniform:5")
  start = {"sf": "dcm:student", "causvid": "df:model", "long": "sf:student"}[stage]
  config.nets.teacher = common.net(whole)
  fake = "runs/world/sf:fake:ema" if stage == "long" else whole
  config.nets.fake = common.net(fake, optim={"lr": fake_rate})
  config.nets.student = common.net(f"runs/world/{start}:ema", optim={"lr": on_policy})
