"""Samples networks and writes videos: text to video by Wan 2.1, or a run's network beside the data.

  python -m experiments.sample --model=wan2.1-t2v-1.3b --prompt="A cat surfs." --out=cat.mp4
  python -m experiments.sample --model=folder --prompts=prompts.txt --out=videos --size=480x832
  python -m experiments.sample --model=wan2.1-t2v-1.3b --transformer=self_forcing_dmd.pt \\
    --chunk=3 --times=causal --prompt="A cat surfs." --out=cat.mp4
  python -m experiments.sample --network=runs/demo/student:student:ema --out=samples.mp4

--model is a name in vidstep/releases.py, a repository of the hub, or a folder. docs/wan.md
says more. --network is a network of a run: real videos above generated ones, whose contexts and
actions are those of held-out clips; solver, steps, shift, guidance and times default to what the
run's own config.eval says. The suffix of --out chooses the form: .mp4, .webp, .gif, or .png for a
film strip.
"""

from absl import flags

from experiments import flags as shared
from experiments.flags import parse_size, read_lines
from experiments.sample_files import LAYOUTS
from vidstep.samplers import SOLVERS

NETWORK = flags.DEFINE_string(
  "network", None, 'Network of a run: "workdir:role:ema", or "...@step".'
)
MODEL = flags.DEFINE_string("model", None, "Wan 2.1: name of a release, hub repository or folder.")
OUT = shared.define_out("File to write, or folder of several.", "samples.mp4")
VIDEOS = flags.DEFINE_integer("videos", None, "How many; with --model, of each prompt.", 1)
SEED = flags.DEFINE_integer("seed", 0, "Of the noise.")
SOLVER = flags.DEFINE_enum("solver", None, sorted(SOLVERS), "ODE solver or consistency sampling.")
STEPS = flags.DEFINE_integer("steps", None, "Steps of the solver.", 1)
SHIFT = flags.DEFINE_float("shift", None, "Time shift of the grid.")
GUIDANCE = flags.DEFINE_float("guidance", None, "v_uncond + w (v_cond - v_uncond): 1 is none.")
SPLIT = flags.DEFINE_string("split", "test", "--network: whose contexts and actions.")

PROMPT = flags.DEFINE_string("prompt", None, "What the video shows.")
PROMPTS = flags.DEFINE_string("prompts", None, "File with a prompt a line.")
NAMES = flags.DEFINE_string("names", None, "File with as many lines: names of the files instead.")
NEGATIVE = flags.DEFINE_string("negative_prompt", None, 'Default: Wan\'s own, in Chinese; or "".')
LAYOUT = flags.DEFINE_enum("layout", "plain", LAYOUTS, 'vbench: "<prompt>-<index>.mp4", resumable.')
SIZE = flags.DEFINE_string("size", None, "HEIGHTxWIDTH, multiples of 16; default: the release's.")
FRAMES = flags.DEFINE_integer("frames", None, "1 + 4 n; default: the release's 81.", 1)
TIMES = flags.DEFINE_string(
  "times", None, "Few-step students: a list such as 0.9,0.6, or its name."
)
FIRST = flags.DEFINE_string("first_times", None, "Those of a causal student's first chunk.")
CHUNK = flags.DEFINE_integer("chunk", None, "Causal students: latent frames made together.", 1)
WINDOW = flags.DEFINE_integer("window", None, "Causal students: latent frames seen.", 1)
SINK = flags.DEFINE_integer("sink", 0, "Causal students: first frames that are always seen.", 0)
IMAGE = flags.DEFINE_string("image", None, "Picture to start from, for image to video.")
TRANSFORMER = flags.DEFINE_string(
  "transformer", None, 'A student: its file or folder, or "workdir:role:ema" of a run.'
)
LORA = flags.DEFINE_string("lora", None, "Low-rank factors to merge: file, or file:weight.")
TINY = flags.DEFINE_string("tiny_decoder", None, "File of TAEHV, to decode by: fast, less detail.")
DTYPE = flags.DEFINE_enum("dtype", "bfloat16", ["bfloat16", "float32"], "Of --model but its VAE.")
REPORT = flags.DEFINE_string("report", None, "JSON file: settings, seconds of stages, memory.")


def main(argv):
  del argv
  if bool(NETWORK.value) == bool(MODEL.value):
    raise ValueError(
      "Which network? Give --model=wan2.1-t2v-1.3b (or a folder), or --network=workdir:role:ema."
    )
  if NETWORK.value:
    from experiments import sample_network as chosen

    order = chosen.Order(
      NETWORK.value, OUT.value, VIDEOS.value or 8, SEED.value, SPLIT.value, SOLVER.value,
      STEPS.value, SHIFT.value, GUIDANCE.value,
    )  # fmt: skip
  else:
    from experiments import sample_wan as chosen

    order = chosen.Order(
      model=MODEL.value, prompts=tuple(_prompts()), out=OUT.value, layout=LAYOUT.value,
      names=tuple(read_lines(NAMES.value)) if NAMES.value else None, videos=VIDEOS.value,
      negative=NEGATIVE.value, seed=SEED.value,
      size=parse_size(SIZE.value) if SIZE.value else None, frames=FRAMES.value,
      steps=STEPS.value, times=_times("times", TIMES.value),
      first_times=_times("first_times", FIRST.value), shift=SHIFT.value, solver=SOLVER.value,
      guidance=GUIDANCE.value, chunk=CHUNK.value, window=WINDOW.value, sink=SINK.value,
      image=IMAGE.value, transformer=TRANSFORMER.value, lora=_lora(LORA.value),
      tiny_decoder=TINY.value, dtype=DTYPE.value, report=REPORT.value,
    )  # fmt: skip
  chosen.draw(order)


def _prompts():
  if (PROMPT.value is None) == (PROMPTS.value is None):
    raise ValueError('What shall be seen? Give --prompt="...", or --prompts=file with one a line.')
  return [PROMPT.value] if PROMPTS.value is None else read_lines(PROMPTS.value)


def _times(flag, text):
  """ "causal", or "0.9,0.6"."""
  if text is None or any(c.isalpha() for c in text):
    return text
  try:
    return tuple(float(part) for part in text.split(",") if part.strip())
  except ValueError as e:
    raise ValueError(f"--{flag}={text} should be a list such as 0.9,0.6, or a name.") from e


def _lora(text):
  """ "file" or "file:weight" -> (file, weight)."""
  if text is None:
    return None
  file, colon, weight = text.rpartition(":")
  try:
    return (file, float(weight)) if colon else (text, 1.0)
  except ValueError:
    return text, 1.0


if __name__ == "__main__":
  shared.run(main, distributed=True)
