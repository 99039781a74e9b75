"""Speed of a streamed architecture on a GPU: latent Doom at 320 x 240, 117M parameters.

  python -m experiments.stream --config=configs/doom/stream_gpu.py --frames=3000 --require_fps=60 \\
    --paced=false --out=results/streaming/gpu

Random weights: the numbers are of speed alone. A frame is 30 x 40 latents of 48 channels, 300
tokens; the cache keeps 16 of them in bfloat16 (an int8 one: --config.cache_dtype=int8). A chunk is
one frame: one denoising step, and one forward that writes the cache. Hardware: one H200. Goal: 60
frames a second at p95 and action-to-photon under 33 ms at p99, decode included; the latter with
--paced --config.frame_rate=60. Not run yet.

  --config=configs/doom/stream_gpu.py:tiny is a toy of the same shape, for tests on a CPU, and
  --config=configs/doom/stream_gpu.py:cpu the architecture of configs/doom/teacher.py.
"""

from configs import common


def get_config(arg="gpu"):
  """arg: "gpu", "cpu" or "tiny"."""
  if arg not in ("gpu", "cpu", "tiny"):
    raise ValueError(f'configs/doom/stream_gpu.py:{arg}: choose "gpu", "cpu" or "tiny".')
  config = common.stream()
  config.model.action_dim = 6
  if arg == "gpu":
    config.model.update(dim=768, heads=12, depth=16, patch=(1, 2, 2), dtype="bfloat16")
    config.update(size=(240, 320), codec_patch=8, codec_channels=48, cache_dtype="bfloat16")
    config.update(window=16, sink=1)
  elif arg == "cpu":
    config.model.update(dim=192, heads=3, depth=6, patch=(1, 2, 2))
    config.update(window=16, sink=1, frame_rate=17.5)
  else:
    config.model.update(dim=24, heads=2, depth=2, patch=(1, 2, 2))
    config.update(size=(16, 16), window=4, sink=1)
  return config
