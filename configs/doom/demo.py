"""The main job, end to end: record Doom, train a teacher, distil it, sweep the step count.

  make demo
  python -m experiments.pipeline --config=configs/doom/demo.py --workdir=runs/demo

Two CPU cores: under 20 minutes. `:gpu` is the same at 64 x 64 x 16 frames with 59M parameters, for
one GPU; it has not been run yet. Expected result: results/demo/table.md.
"""

from configs import common

CPU = {
  "record": "--size=32 --episodes=320 --frames=160 --clip_frames=16",
  "codec": "--patch=4 --channels=24 --whiten=0.3",
  "minutes": (0.8, 0.3, 6.5, 5, 5),
}
GPU = {
  "record": "--size=64 --episodes=1600 --frames=256 --clip_frames=32",
  "codec": "--patch=4 --channels=16 --whiten=0.3",
  "minutes": (3, 0.5, 10, 10, 10),
}


def get_config(arg="cpu"):
  """arg: "cpu" or "gpu"."""
  if arg not in ("cpu", "gpu"):
    raise ValueError(f'configs/doom/demo.py:{arg}: choose "cpu" or "gpu".')
  size = CPU if arg == "cpu" else GPU
  data = "--config.data.path={workdir}/data --config.data.codec={workdir}/codec.npz"
  teacher = "{workdir}/teacher:model:ema"
  networks = (
    f"--config.networks.teacher={teacher} --config.networks.student={{workdir}}/student:student:ema"
  )
  train = "experiments.train --config=configs/doom"
  stages = (
    (
      "data",
      "Recording real Doom with its actions",
      "experiments.record --source=vizdoom --scenario=health_gathering --frame_skip=2 "
      f"--test_fraction=0.25 {size['record']} --out={{workdir}}/data",
    ),
    (
      "codec",
      "Fitting the linear codec",
      f"experiments.codec --data={{workdir}}/data {size['codec']} --out={{workdir}}/codec.npz",
    ),
    (
      "teacher",
      "Training the teacher: flow matching",
      f"{train}/teacher.py:{arg} --workdir={{workdir}}/teacher {data}",
    ),
    (
      "student",
      "Distilling it into a two-step student: distribution matching",
      f"{train}/student.py:{arg} --workdir={{workdir}}/student {data} "
      f"--config.nets.teacher.init={teacher} --config.nets.student.init={teacher} "
      f"--config.nets.fake.init={teacher}",
    ),
    (
      "sweep",
      "Sweeping the step count",
      f"experiments.sweep --config=configs/doom/sweep.py:{arg} --workdir={{workdir}}/sweep "
      f"{networks}",
    ),
  )
  config = common.pipeline()
  config.stages = tuple(
    {"name": name, "title": title, "minutes": minutes, "run": run}
    for (name, title, run), minutes in zip(stages, size["minutes"], strict=True)
  )
  return config
