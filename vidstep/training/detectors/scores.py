"""Detectors of a fake score that cannot follow the student, and of a critic that always wins."""

import numpy as np

from vidstep.training.detectors.findings import LIMITS, Finding
from vidstep.training.history import History, start_of_tail


def fake_score(history: History):
  """A fake score that is not updated, or cannot follow the student."""
  found = []
  for student in matched_roles(history):
    steps, _ = history.series(f"{student}/gap")
    fakes = [role for role in history.roles() if role not in (student, "critic")]
    if not fakes and len(steps) >= LIMITS.missed and history.late(LIMITS.grace):
      found.append(
        Finding(
          "fake_frozen",
          "collapse",
          int(steps[0]),
          f"{student} has been updated {len(steps)} times and no fake score once",
          "The gap that it follows says nothing about its own samples.",
          "Let `due` of the objective name the fake's role; in a config: objective.ratio >= 2.",
        )
      )
    for fake in fakes:
      found += _stopped(history, student, fake) or _lagging(history, student, fake)
  return found


def critic_wins(history: History):
  """A critic that tells real from generated every time has no direction left to give."""
  found = []
  for name in history.names("/right"):
    steps, right = history.windows(name)
    late = max(2, len(right) // 4)
    if len(right) < LIMITS.windows or np.any(right[-late:] < LIMITS.right):
      continue
    critic = name.removesuffix("/right")
    found.append(
      Finding(
        f"wins/{critic}",
        "warning",
        int(steps[start_of_tail(right >= LIMITS.right)]),
        f"{critic} is right {right[-late:].mean():.0%} of the time",
        "It wins everywhere, and its gradient has no direction left to give.",
        f"Lower nets.{critic}.optim.lr, raise objective.r1, or noise what it sees more "
        "(objective.time).",
      )
    )
  return found


def _stopped(history, student, fake):
  last = missed_since(history, student, fake)
  if last is None:
    return []
  missed = int(np.sum(history.series(f"{student}/gap")[0] > last))
  return [
    Finding(
      "fake_frozen",
      "collapse",
      last,
      f"{fake} has not been updated while {student} was {missed} times",
      "The student now runs away from a score of what it used to draw.",
      f"Let `due` of the objective name {fake} again (objective.ratio), and its schedule last as "
      f"long as the run (nets.{fake}.optim.steps).",
    )
  ]


def _lagging(history, student, fake):
  own = f"{fake}/denoising"  # its part of the loss beside a critic
  _, loss = history.series(own if own in history else f"{fake}/loss")
  steps, gap = history.series(f"{student}/gap")
  if min(len(loss), len(gap)) < LIMITS.trend:
    return []
  rise = _median(loss, 0.75, 1) / max(_median(loss, 0, 0.25), 1e-12)
  growth = _median(gap, 0.75, 1) / max(_median(gap, 0.25, 0.75), 1e-12)
  if rise < LIMITS.lag_loss or growth < LIMITS.lag_gap:
    return []
  return [
    Finding(
      "fake_lagging",
      "warning",
      int(steps[3 * len(steps) // 4]),
      f"the loss of {fake} is {rise:.1f} times its start and the score gap of {student} "
      f"{growth:.1f} times what it was",
      "The student moves faster than the fake score can follow.",
      f"Raise objective.ratio or nets.{fake}.optim.lr, or lower nets.{student}.optim.lr.",
    )
  ]


def _median(values, start, stop):
  """Median over a part of the run: the loss of a score is heavy-tailed, near t = 0 above all."""
  return np.median(values[int(start * len(values)) : int(stop * len(values))])


def matched_roles(history):
  """Roles that follow a gap between two scores."""
  return [name.removesuffix("/gap") for name in history.names("/gap")]


def missed_since(history, student, fake):
  """The fake's last update, if the student has had many since; None if all is well."""
  steps, _ = history.series(f"{fake}/grad_norm")
  _, rate = history.series(f"{fake}/lr")
  if len(rate) == len(steps) and rate.any():  # a schedule that has ended updates nothing either
    steps = steps[rate > 0]
  of_student, _ = history.series(f"{student}/gap")
  usual = max(int(np.median(np.diff(steps))), 1) if len(steps) > 1 else 1
  late = history.step - steps[-1] > LIMITS.missed * usual
  return int(steps[-1]) if late and np.sum(of_student > steps[-1]) >= LIMITS.missed else None


def fake_state(history):
  for student in matched_roles(history):
    for fake in history.roles():
      last = None if fake in (student, "critic") else missed_since(history, student, fake)
      if last is not None:
        return f" The score {fake!r} has not been updated since step {last}."
  return ""


def distillation_advice(history):
  for student in matched_roles(history):
    return f"Raise objective.ratio or lower nets.{student}.optim.lr."
  return "Lower optim.lr; check the stop-gradients of the target and its anchor at t = 0."
