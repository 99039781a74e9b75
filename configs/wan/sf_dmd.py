"""Wan in few steps behind its own chunks: SF-DMD, the last stage of Causal-rCM.

  python -m experiments.train --config=configs/wan/sf_dmd.py:14b,c3 \\
    --config.data.path=datasets/wan --workdir=runs/wan/sf

Three networks: the causal student, from runs/wan/dcm (--config.nets.student.init=
runs/wan/scm:student:ema for TF-sCM); the fake score and the frozen teacher, both from the released
bidirectional Wan. Arguments, with commas between: size of the two, 14b (default), 1.3b or tiny; c1
or c3 (default); the steps of a chunk,

  4step         t = 1, 15/16, 5/6, 5/8 (default)
  2step         the same in the first chunk, then t = 1, 5/6
  2step_noisy   then t = 1, 5/8, and later chunks read what the last step computed
  1step         then t = 1: start it from the 2-step student, as the paper does

and lora: low-rank factors (rank 128) on student and fake score. The fake score then shares the
teacher's weights, so that there are two networks in memory and no optimizer state of the large one;
that is our choice, the paper trains all weights.

Hyperparameters: Table 3, column SF-DMD, steps in all by Table 4. Data: prompts alone matter (text
of the latents); the video is what the student makes. Hardware and memory: results/plan; the paper
shards over 32 devices, 4 of which share a sequence. Not run here.
"""

from configs.common import net
from configs.wan import recipe

# Times of the later chunks, what is read of a chunk, steps of training frame- and chunk-wise.
STEPS = {
  "4step": (recipe.TIMES, None, {1: 1200, 3: 1250}),
  "2step": ((1.0, 5 / 6), None, {1: 3000, 3: 2500}),
  "2step_noisy": ((1.0, 5 / 8), "last_step", {1: 1500, 3: 1750}),
  "1step": ((1.0,), None, {1: 3000, 3: 3000}),
}
LORA = {"rank": 128, "targets": "attention"}


def get_config(arg=None):
  """The config; arg: see above."""
  size, chunk, words = recipe.parse(arg, default="14b", options=(*STEPS, "lora"))
  times, context, updates = STEPS[next((word for word in words if word in STEPS), "4step")]
  student = "tiny" if size == "tiny" else recipe.STUDENT
  config = recipe.base(student, chunk)
  config.causal.context = context
  first = recipe.TIMES if times != recipe.TIMES else ()
  config.objective = {
    "name": "self_forcing", "times": times, "first_times": first, "depth": "cycle", "ratio": 6,
    "time": "uniform:5", "guidance": 5.0, "scale": recipe.elements(config),
  }  # fmt: skip
  large = {"model": recipe.fields(size)}
  lora = LORA | ({"rank": 2} if size == "tiny" else {}) if "lora" in words else None
  config.nets.student = net(f"{recipe.runs(size)}/dcm:student:ema", lora=lora)
  config.nets.fake = net(recipe.release(size), optim={"lr": 4e-7}, lora=lora, **large)
  config.nets.teacher = net(recipe.release(size), param_dtype="bfloat16", **large)
  if lora:
    for role, rate in (("student", 2e-5), ("fake", 4e-6)):  # ten times those of all weights
      config.nets[role].optim.lr = rate
      config.nets[role].param_dtype = "bfloat16"
  config.optim.update(lr=2e-6, b1=0.0)
  config.train.steps = updates[chunk]
  config.eval.update(solver="consistency", steps=len(times), times=times[1:])
  config.eval.first_times = first[1:]
  if size == "tiny":
    recipe.short(config)
    config.train.steps = 8
  else:
    config.data.batch_size = 64
  return config
