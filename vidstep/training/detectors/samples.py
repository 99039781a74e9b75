"""Detectors that look at samples: static, flickering, alike, over-exposed."""

import numpy as np

from vidstep.training.detectors.findings import LIMITS, Finding
from vidstep.training.detectors.scores import distillation_advice, fake_state
from vidstep.training.history import History, start_of_tail


def static_video(history: History):
  """Samples that hardly move beside real ones."""
  steps, ratio = _against_real(history, "motion", least=0.5)
  since = _low(history, steps, ratio, LIMITS.static)
  if since is None:
    return []
  return [
    Finding(
      "static",
      "collapse",
      int(steps[since]),
      f"samples move {_percent(ratio[-1])} as much as real video ({_before(steps, ratio, since)})",
      _lost_or_never(
        ratio, since, "The network has lost motion.", "Motion has never been learned."
      ),
      "Check that samples are drawn with steps enough for this objective (eval.steps); lower "
      "optim.lr; start from a checkpoint that moves (nets.<role>.init).",
    )
  ]


def flicker(history: History):
  """Samples that move far more than real ones, and did not always."""
  steps, ratio = _against_real(history, "motion", least=0.5)
  since = _risen(ratio - 1, LIMITS.flicker)
  if since is None:
    return []
  return [
    Finding(
      "flicker",
      "warning",
      int(steps[since]),
      f"frames change {ratio[-1]:.1f} times as much as in real video",
      "Samples flicker or turn into noise.",
      "Lower optim.lr; give the fake score more updates (objective.ratio); look at the gradient "
      "norm of the same steps.",
    )
  ]


def diversity_collapse(history: History):
  """Samples of one condition, or of all, that are alike."""
  found = []
  for measure, name, whose, lost, never in (
    ("diversity", "diversity", "of one condition", "Mode collapse.", "Seeds have never mattered."),
    (
      "spread", "constant", "of different conditions", "Collapse to one answer for everything.",
      "Conditions have never mattered.",
    ),
  ):  # fmt: skip
    steps, ratio = _against_real(history, measure, least=0.5)
    since = _low(history, steps, ratio, LIMITS.alike, fall=LIMITS.alike_fall)
    if since is None:
      continue
    found.append(
      Finding(
        name,
        "collapse",
        int(steps[since]),
        f"samples {whose} differ by {_percent(ratio[-1])} of what real video does "
        f"({_before(steps, ratio, since)})",
        _lost_or_never(ratio, since, lost, never) + fake_state(history),
        distillation_advice(history),
      )
    )
  return found


def fading(history: History):
  """Samples that have lost contrast, or what tells one condition from another: on the way down."""
  since, seen = [], []
  for measure, what in (("contrast", "contrast"), ("spread", "the distance between conditions")):
    steps, ratio = _against_real(history, measure, least=0.5)
    best = np.maximum.accumulate(ratio) if len(ratio) else ratio
    start = _run((ratio < LIMITS.faded) & (ratio < LIMITS.faded_fall * best))
    if start is not None:
      since.append(int(steps[start]))
      seen.append(f"{what} is {_percent(ratio[-1])} of real ({_before(steps, ratio, start)})")
  if not since:
    return []
  return [
    Finding(
      "fading",
      "warning",
      min(since),
      "; ".join(seen),
      "Samples wash out: what they show no longer depends on what was asked." + fake_state(history),
      distillation_advice(history),
    )
  ]


def saturation(history: History):
  """Colours, contrast or exposure that drift away from real ones, upwards."""
  contrast_steps, contrast = _against_real(history, "contrast", least=0.5)
  looks = {
    "clipped": _over_real(history, "clipped"),
    "contrast": (contrast_steps, contrast - 1),
    "saturation": _over_real(history, "saturation"),
  }
  since, seen = [], []
  for name, (steps, above) in looks.items():
    start = _risen(above, getattr(LIMITS, name))
    if start is not None:
      since.append(int(steps[start]))
      seen.append(SATURATION[name].format(above[-1]))
  if not since:
    return []
  return [
    Finding(
      "saturation",
      "collapse" if looks["clipped"][1][-1] > LIMITS.burnt else "warning",
      min(since),
      "; ".join(seen),
      "Samples drift towards over-exposure, as they do under strong guidance and in long "
      "distribution matching." + fake_state(history),
      "Lower objective.guidance or stop earlier. " + distillation_advice(history),
    )
  ]


SATURATION = {
  "clipped": "black and white are {:.0%} more of all values than in real video",
  "contrast": "contrast is {:.0%} above that of real video",
  "saturation": "colour saturation is {:.2f} above that of real video",
}


def _against_real(history, measure, *, least):
  """Steps and ratios to real at the probes at which real has at least `least` of it."""
  steps, drawn = history.series(f"probe/{measure}")
  _, real = history.series(f"probe/{measure}_real")
  fine = real >= least
  return steps[fine], drawn[fine] / real[fine]


def _over_real(history, measure):
  """Steps and differences from real at the probes."""
  steps, drawn = history.series(f"probe/{measure}")
  _, real = history.series(f"probe/{measure}_real")
  return steps, drawn - real


def _run(mask):
  """Where the trues that end the mask begin; None if they are fewer than `LIMITS.probes`."""
  if len(mask) < LIMITS.probes or not mask[-LIMITS.probes :].all():
    return None
  return start_of_tail(mask)


def _risen(above, limit):
  """Where an excess over real passed `limit` for good, having been sound at two looks in a row.

  What was never sound is a network that has not learned yet: noise is bright and moves a lot.
  """
  since = _run(above > limit)
  sound = np.abs(above) < LIMITS.sound * limit
  return since if since is not None and np.any(sound[:since][1:] & sound[:since][:-1]) else None


def _low(history, steps, ratio, limit, fall=1.0):
  """Where a ratio fell below `limit` and has not come back since, or past the grace never was."""
  below, start = ratio < limit, start_of_tail(ratio < LIMITS.had)
  twice = np.flatnonzero(below[start:-1] & below[start + 1 :])
  if not len(twice):
    return None
  since = start + int(twice[0])
  if since and ratio[:since].max() >= LIMITS.had:
    return since if ratio[-1] < fall * ratio[:since].max() else None
  late = history.late(LIMITS.grace) and len(steps) >= LIMITS.grace_probes
  return since if late else None


def _lost_or_never(ratio, since, lost, never):
  return lost if since and ratio[:since].max() >= LIMITS.had else never


def _percent(share):
  return f"{share:.0%}"


def _before(steps, ratio, since):
  if not since:
    return "from the first look on"
  best = int(np.argmax(ratio[:since]))
  return f"{_percent(ratio[best])} at step {steps[best]}"
