"""Detectors of collapse: pure functions from the history of a run's metrics to findings in words.

Every detector compares the run with real video, with its own past, or with both, so that no
threshold depends on data, model or objective. `findings.LIMITS` is the table of them all.
"""

from vidstep.training.detectors import samples, scores, updates
from vidstep.training.detectors.findings import LIMITS, Finding, Limits

DETECTORS = (
  updates.not_finite,
  samples.static_video,
  samples.flicker,
  samples.diversity_collapse,
  samples.fading,
  samples.saturation,
  scores.fake_score,
  scores.critic_wins,
  updates.explosion,
  updates.no_signal,
  updates.noise_plateau,
)


def diagnose(history):
  """All findings at the last step of a history, the gravest first.

  Args:
    history: a `History`.

  Returns:
    list of `Finding`; empty for a run that looks well.
  """
  found = [finding for detector in DETECTORS for finding in detector(history)]
  return sorted(found, key=lambda f: (f.severity != "collapse", f.since))


__all__ = ["DETECTORS", "LIMITS", "Finding", "Limits", "diagnose"]
