"""What a generated video is judged by."""

from vidstep.metrics.describe import Description, describe_clips
from vidstep.metrics.distribution import frechet_distance, frechet_gaussians, kernel_distance
from vidstep.metrics.diversity import diversity
from vidstep.metrics.features import alexnet_clip, i3d_k400
from vidstep.metrics.frames import fidelity, lpips, psnr, ssim
from vidstep.metrics.latency import Latency, Stopwatch, measure
from vidstep.metrics.motion import clipped, contrast, motion_magnitude, saturation, warp_error
from vidstep.metrics.resampling import bootstrap, bootstrap_difference, real_floor
from vidstep.metrics.summary import compare_clips, evaluate_clips

__all__ = [
  "Description",
  "Latency",
  "Stopwatch",
  "alexnet_clip",
  "bootstrap",
  "bootstrap_difference",
  "clipped",
  "compare_clips",
  "contrast",
  "describe_clips",
  "diversity",
  "evaluate_clips",
  "fidelity",
  "frechet_distance",
  "frechet_gaussians",
  "i3d_k400",
  "kernel_distance",
  "lpips",
  "measure",
  "motion_magnitude",
  "psnr",
  "real_floor",
  "saturation",
  "ssim",
  "warp_error",
]
