"""Detectors that look at losses, gradients and tangents, by role and time bin."""

import numpy as np

from vidstep.training.detectors.findings import LIMITS, Finding
from vidstep.training.detectors.scores import distillation_advice, fake_state, matched_roles
from vidstep.training.history import History, start_of_tail


def explosion(history: History):
  """Gradients, tangents or losses far above what they were, by role and time bin."""
  found = []
  for role in history.roles():
    names = [f"{role}/grad_norm", f"{role}/tangent_norm", *_bins(history, role, "tangent_norm")]
    moving = _moving(history, role)
    if not moving:
      names += [f"{role}/loss", *_bins(history, role, "loss")]
    grown = {}
    for name in names:
      steps, means = history.windows(
        name, center=np.median if name.endswith("grad_norm") else np.mean
      )
      if len(means) < LIMITS.windows:
        continue
      # What follows a gap or a warmed-up tangent starts near 0: its start is no measure.
      start = np.median(means[:-2] if moving else means[: max(3, len(means) // 4)])
      if start > 0 and np.all(means[-2:] > LIMITS.explosion * start):
        grown[name] = (
          means[-2:].min() / start,
          steps[start_of_tail(means > LIMITS.explosion * start)],
        )
    if grown:
      order = sorted(grown, key=lambda name: -grown[name][0])
      worst, listed = order[0], ", ".join(f"{name} {grown[name][0]:.0f}x" for name in order[:3])
      advice = (
        f"Lower nets.{role}.optim.lr; clip (optim.clip=1.0, but not with normalised tangents); "
        "lengthen the warm-up (optim.warmup, objective.warmup); keep network times in float32."
      )
      if matched_roles(history):
        advice = distillation_advice(history)
      found.append(
        Finding(
          f"explosion/{role}",
          "collapse" if grown[worst][0] > LIMITS.blown else "warning",
          int(min(step for _, step in grown.values())),
          f"far above what it was: {listed}",
          _cause(history, role, worst),
          advice,
        )
      )
  return found


def no_signal(history: History):
  """Gradients that have vanished."""
  found = []
  for role in history.roles():
    steps, norms = history.series(f"{role}/grad_norm")
    if len(norms) < LIMITS.missed:
      continue
    _, means = history.windows(f"{role}/grad_norm")
    zero = bool(np.all(norms[-LIMITS.missed :] == 0))
    floor = 0.0 if zero else LIMITS.silence * np.quantile(means, 0.75)
    if not zero and (len(means) < LIMITS.windows or means[-2:].max() >= floor):
      continue
    alive = np.flatnonzero(norms > floor)
    since = steps[min(alive[-1] + 1, len(steps) - 1)] if len(alive) else steps[0]
    found.append(
      Finding(
        f"no_signal/{role}",
        "collapse" if zero else "warning",
        int(since),
        f"the gradient of {role} is {'exactly zero' if zero else f'{norms[-1]:.1e}'}",
        "Nothing is learned any more: a stop-gradient too many, a fake score that is still the "
        "teacher, or outputs that have become constant.",
        f"Check the loss of {role} and its stop-gradients on one batch (docs/objectives.md); let "
        "the other roles learn first.",
      )
    )
  return found


def noise_plateau(history: History):
  """A loss that falls everywhere but at noise."""
  found = []
  for role in history.roles():
    bins = _bins(history, role, "loss")
    if len(bins) < 2 or _moving(history, role) or matched_roles(history):
      continue
    ratios, since = {}, 0
    for name in bins:
      steps, means = history.windows(name)
      if len(means) < LIMITS.windows or means[:2].mean() <= 0:
        continue
      ratios[name] = means[-max(2, len(means) // 4) :].mean() / means[:2].mean()
      since = steps[0]
    noise = ratios.pop(bins[-1], 0.0)
    if not ratios or noise < LIMITS.plateau or np.mean(list(ratios.values())) > LIMITS.others:
      continue
    found.append(
      Finding(
        f"plateau/{role}",
        "warning",
        int(since),
        f"the loss of {role} at noise ({bins[-1]}) is {noise:.2f} of its start, while other times "
        f"are at {np.mean(list(ratios.values())):.2f}",
        "Where samples begin, nothing is learned.",
        "Draw more times near noise (objective.time=uniform:5), drop a weight that vanishes there "
        "(objective.weight), and check that the condition reaches the network.",
      )
    )
  return found


def not_finite(history: History):
  """The first step that is not finite, and what grew before it."""
  first, broken = None, []
  for name in history.names():
    steps, values = history.series(name)
    bad = np.flatnonzero(~np.isfinite(values) | ((values == 0) & (name == "probe/finite")))
    if len(bad) and (first is None or steps[bad[0]] <= first):
      broken = [*(broken if steps[bad[0]] == first else []), name]
      first = steps[bad[0]]
  if first is None:
    return []
  before = []
  for role in history.roles():
    steps, norms = history.series(f"{role}/grad_norm")
    norms = norms[(steps < first) & np.isfinite(norms)]
    if len(norms) > 5 and norms[-1] > 3 * np.median(norms):
      before.append(f"{role}/grad_norm was {norms[-1] / np.median(norms):.0f} times its median")
  what = "samples are" if broken == ["probe/finite"] else f"{', '.join(broken[:6])} are"
  return [
    Finding(
      "nan",
      "collapse",
      int(first),
      f"{what} not finite",
      f"Just before, {' and '.join(before)}."
      if before
      else "Nothing had grown before: look at the batch and at what overflows in bfloat16.",
      "Lower optim.lr, set optim.clip=1.0, or model.dtype=float32; nonfinite/ has the batch.",
    )
  ]


def _moving(history, role):
  """Whether a role's loss says nothing: it follows a gap or a critic, or is a normalised tangent.

  The fake score beside a critic logs its own part of the loss as "denoising".
  """
  judged = "critic" in history.roles() and f"{role}/denoising" not in history
  return role in matched_roles(history) or judged or f"{role}/tangent_norm" in history


def _bins(history, role, metric):
  names = [f"{role}/{metric}_t{k}" for k in range(16)]
  return [name for name in names if name in history and history.series(name)[1].any()]


def _cause(history, role, name):
  matched = matched_roles(history)
  if role in matched:
    return "The gap between the scores grows: the student outruns the fake score."
  if matched:
    return "The student has left what this score knows." + fake_state(history)
  head, _, tail = name.rpartition("_t")
  if "tangent" in head and tail.isdigit():
    place = "near clean video" if tail == "0" else f"in time bin {tail}"
    return f"The derivative in time explodes {place}, where the network cannot follow it."
  return "Steps are too large for what the loss has become."
