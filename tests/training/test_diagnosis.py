"""Detectors fire on runs that were made to collapse, and stay silent on runs that learn."""

import functools
import importlib
import json

import jax.numpy as jnp
import numpy as np
import pytest
from mutation import assert_caught, mutant
from toy_runs import init, train, velocity, x0_velocity

from vidstep import paths
from vidstep.losses import dcm, dmd2, flow_matching, scm
from vidstep.training.detectors import samples, scores, updates
from vidstep.training.diagnosis import Diagnosis
from vidstep.training.history import History
from vidstep.training.probe import probe

pytestmark = pytest.mark.usefixtures("unoptimized")
DCM = importlib.import_module("vidstep.losses.dcm")  # the package exports the function
STEPS, EVERY = 300, 30
RATES = {"student": 1e-3, "fake": 1e-3}


@pytest.fixture(scope="module")
def teacher():
  """(rows, weights) of a healthy run of flow matching."""
  return train(flow_matching(velocity), init(0), {"model": 4e-3}, steps=500, every=50)


def distil(objective, teacher, rates, steps=STEPS, **options):
  frozen = dict.fromkeys(objective.frozen, teacher[1])
  return train(objective, teacher[1], rates, steps=steps, every=EVERY, frozen=frozen, **options)[0]


@functools.cache
def matching(**options):
  options = {"times": (1.0,), "time": paths.Uniform(2.0), "ratio": 3} | options
  return dmd2(velocity, velocity, velocity, **options)


def names(rows, total=STEPS):
  """Every finding that a run would have been told of."""
  events = Diagnosis(rows, total=total).events
  return {event["name"] for event in events if "gone" not in event}


# ------------------------------------------------------------------------------------------------
# Healthy runs
# ------------------------------------------------------------------------------------------------


def test_flow_matching_from_noise_is_silent(teacher):
  rows = teacher[0]
  assert names(rows, total=500) == set()
  assert rows[-1]["model/loss"] < 0.6 * rows[0]["model/loss"]  # and it did learn


@pytest.fixture(scope="module")
def healthy(teacher):
  """Students that learn."""
  return {
    "dcm": distil(dcm(velocity, velocity, steps=16, shift=2.0), teacher, {"student": 1e-3}),
    "scm": distil(scm(velocity, velocity, warmup=100), teacher, {"student": 3e-4}),
    "dmd2": distil(matching(), teacher, RATES, b1=0.0),
  }


@pytest.mark.parametrize("name", ["dcm", "scm", "dmd2"])
def test_distillation_is_silent(healthy, name):
  assert names(healthy[name]) == set()


# ------------------------------------------------------------------------------------------------
# Provoked collapses
# ------------------------------------------------------------------------------------------------


def constant_student(teacher):
  """Consistency without its stop-gradient, and without its anchor at t = 0, from random weights.

  The anchor alone keeps the mutant from collapsing, and a start from the teacher does for long.
  """
  old = "goal = jax.lax.stop_gradient(jump(other, x_t1, t1, batch.cond))"
  new = (
    "goal = jnp.where(paths.expand(t1, x0) > 0, jump(other, x_t1, t1, batch.cond), "
    "jump(trainable, x_t0, t0, batch.cond))"
  )
  objective = mutant(DCM, old, new).dcm(x0_velocity, velocity, steps=4, shift=2.0)
  frozen = {"teacher": teacher[1]}
  start, rates = init(3, 0.1), {"student": 3e-3}
  return train(
    objective, start, rates, steps=STEPS, every=EVERY, frozen=frozen, velocity=x0_velocity
  )[0]


@pytest.fixture(scope="module")
def collapsed(teacher, healthy):
  """Runs that were made to collapse."""
  stops = lambda step: matching().due(step) if step < 60 else ("student",)
  guided = matching(guidance=6.0, unconditional=jnp.zeros_like)
  return {
    "student too fast": distil(matching(), teacher, {"student": 3e-2, "fake": 1e-4}, b1=0.0),
    "fake stops": distil(matching(), teacher, RATES, b1=0.0, due=stops),
    "fake never": distil(matching(), teacher, RATES, 90, b1=0.0, due=lambda step: ("student",)),
    "guidance": distil(guided, teacher, RATES, b1=0.0),
    "no stop-gradient": constant_student(teacher),
  }


@pytest.mark.parametrize(
  ("run", "expected"),
  [
    ("student too fast", {"fake_lagging"}),
    ("fake stops", {"fake_frozen", "diversity", "constant", "saturation"}),
    ("fake never", {"fake_frozen", "no_signal/student"}),
    ("guidance", {"saturation"}),
    ("no stop-gradient", {"constant", "static", "diversity"}),
  ],
)
def test_a_provoked_collapse_is_named(collapsed, run, expected):
  assert names(collapsed[run]) >= expected


def test_a_warning_says_what_since_when_why_and_what_to_try(collapsed):
  events = Diagnosis(collapsed["fake stops"], total=STEPS).events
  frozen, alike = (next(e for e in events if e["name"] == name) for name in NAMES)
  assert frozen["severity"] == "collapse" and 55 <= frozen["since"] <= 60
  assert "fake has not been updated while student was" in frozen["seen"]
  assert "objective.ratio" in frozen["advice"]
  assert "of one condition differ by" in alike["seen"] and "at step" in alike["seen"]
  assert "'fake' has not been updated since step" in alike["cause"]
  assert "nets.student.optim.lr" in alike["advice"]


NAMES = ("fake_frozen", "diversity")


def found(detector, rows):
  """Whether a detector speaks at any probe of a run."""
  history = History(total=STEPS)
  for row in rows:
    history.add(row["step"], {k: v for k, v in row.items() if k != "step"})
    if "probe/finite" in row and detector(history):
      return True
  return False


CHECKS = {
  # detector: (module, the run in which it speaks, a mutation)
  "diversity_collapse": (samples, "fake stops", "ratio < limit", "ratio > limit"),
  "static_video": (samples, "no stop-gradient", '"motion", least', '"contrast_real", least'),
  "saturation": (samples, "guidance", "above > limit", "above < -limit"),
  "fake_score": (scores, "fake stops", "history.step - steps[-1] >", "history.step - steps[-1] <"),
  "no_signal": (updates, "fake never", "norms[-LIMITS.missed :] == 0", "norms[:0] != 0"),
}


@pytest.mark.parametrize("name", CHECKS)
def test_a_broken_detector_is_found_out(name, healthy, collapsed):
  module, run, old, new = CHECKS[name]

  def check(module):
    detector = getattr(module, name)
    assert found(detector, collapsed[run])
    assert not any(found(detector, rows) for rows in healthy.values())

  check(module)
  assert_caught(check, mutant(module, old, new))


# ------------------------------------------------------------------------------------------------
# What is quicker made by hand than trained
# ------------------------------------------------------------------------------------------------


def history_of(total=None, **columns):
  """A history from columns; "/" in names is written "__"."""
  n = len(next(iter(columns.values())))
  rows = [{k.replace("__", "/"): v[i] for k, v in columns.items()} for i in range(n)]
  return History([{"step": i + 1, **row} for i, row in enumerate(rows)], total=total)


def noisy(level, n=400, seed=0):
  return level * np.exp(0.5 * np.random.default_rng(seed).normal(size=n))


def test_an_explosion_is_placed_in_its_time_bin():
  level = np.where(np.arange(400) < 350, 1.0, 300.0)
  columns = {f"student__tangent_norm_t{k}": noisy(1.0, seed=k) for k in range(4)}
  calm = history_of(student__grad_norm=noisy(1.0), **columns)
  assert updates.explosion(calm) == []
  columns["student__tangent_norm_t2"] *= level
  (finding,) = updates.explosion(history_of(student__grad_norm=noisy(1.0), **columns))
  assert finding.name == "explosion/student" and finding.severity == "collapse"
  assert "student/tangent_norm_t2" in finding.seen and "_t1" not in finding.seen
  assert 330 <= finding.since <= 351 and "in time bin 2" in finding.cause


def test_a_fake_score_whose_schedule_has_ended_is_not_updated():
  def run(ends):
    rows = []
    for i in range(1, 301):
      fake = {"fake/grad_norm": 1.0, "fake/loss": 1.0, "fake/lr": 1e-3 * (i < ends)}
      student = {"student/grad_norm": 1.0, "student/gap": 0.4}
      rows.append({"step": i, **(student if i % 3 == 0 else fake)})
    return History(rows)

  assert scores.fake_score(run(ends=1000)) == []
  (finding,) = scores.fake_score(run(ends=101))
  assert finding.since == 100 and "nets.fake.optim.steps" in finding.advice


def test_a_student_may_warm_up_without_its_fake_score():
  alone = [{"step": i, "student/gap": 0.2, "student/grad_norm": 1.0} for i in range(1, 41)]
  assert scores.fake_score(History(alone, total=400)) == []  # as rCM does
  assert scores.fake_score(History(alone, total=100))[0].name == "fake_frozen"


def test_a_critic_that_always_wins_is_named_and_one_that_is_good_is_not():
  right = np.where(np.arange(400) < 250, 0.8, 1.0)
  (finding,) = scores.critic_wins(history_of(critic__grad_norm=noisy(1.0), critic__right=right))
  assert finding.name == "wins/critic" and 250 < finding.since <= 270 and "r1" in finding.advice
  good = 0.9 + 0.1 * np.random.default_rng(0).integers(0, 2, 400)
  assert scores.critic_wins(history_of(critic__grad_norm=noisy(1.0), critic__right=good)) == []


def test_losses_that_say_nothing_are_not_judged():
  """An adversarial loss crosses zero; a tangent grows with its warm-up: neither is an explosion."""
  grown = noisy(1.0) * np.linspace(1e-3, 1, 400)
  columns = {"student__loss": grown**2, "student__grad_norm": grown}
  assert updates.explosion(history_of(**columns)) != []
  assert updates.explosion(history_of(**columns, critic__grad_norm=noisy(1.0))) == []
  assert updates.explosion(history_of(**columns, student__tangent_norm=grown)) == []
  assert updates.explosion(history_of(**columns, student__gap=grown)) == []


def test_a_critic_is_no_fake_score():
  rows = []
  for i in range(1, 241):
    judges = {"fake/grad_norm": 1.0, "fake/loss": i, "fake/denoising": 1.0, "critic/grad_norm": 1.0}
    judges["critic/loss"] = float(i)
    rows.append(
      {"step": i, **({"student/gap": i, "student/grad_norm": 1} if i % 3 == 0 else judges)}
    )
  assert scores.fake_score(History(rows)) == []


def test_single_spikes_and_bins_that_are_rarely_drawn_are_no_explosion():
  spiky = noisy(1.0)
  spiky[[120, 250, 398]] *= 1e4
  rare = np.zeros(400)
  rare[[30, 200, 390]] = 1e3  # unbiased, and 0 at most steps
  assert updates.explosion(history_of(a__grad_norm=spiky, a__loss_t0=rare)) == []


def test_a_loss_that_stays_at_noise_is_named():
  falling = noisy(1.0) * np.geomspace(1, 0.1, 400)
  bins = {f"model__loss_t{k}": falling for k in range(3)}
  stuck = history_of(model__grad_norm=noisy(1.0), model__loss_t3=noisy(2.0), **bins)
  (finding,) = updates.noise_plateau(stuck)
  assert finding.name == "plateau/model" and "objective.time" in finding.advice
  learning = history_of(model__grad_norm=noisy(1.0), model__loss_t3=2 * falling, **bins)
  assert updates.noise_plateau(learning) == []
  converged = history_of(model__grad_norm=noisy(1.0), model__loss_t3=noisy(2.0),
                         **{f"model__loss_t{k}": noisy(1.0, seed=k) for k in range(3)})  # fmt: skip
  assert updates.noise_plateau(converged) == []


def test_vanishing_gradients_are_a_warning_and_a_falling_loss_is_not():
  gone = noisy(1.0) * np.where(np.arange(400) < 330, 1.0, 1e-7)
  (finding,) = updates.no_signal(history_of(student__grad_norm=gone))
  assert finding.severity == "warning" and finding.since == 331
  falling = noisy(1.0) * np.geomspace(1, 1e-3, 400)
  assert updates.no_signal(history_of(student__grad_norm=falling)) == []
  start = noisy(1.0) * np.where(np.arange(400) < 40, 1e6, 1.0)  # a wild start is no silence after
  assert updates.no_signal(history_of(student__grad_norm=start)) == []


def test_the_first_number_that_is_not_finite_is_named_with_what_grew_before():
  norms, loss = noisy(1.0, 50), noisy(1.0, 50)
  norms[45:], loss[49] = 40.0, np.nan
  (finding,) = updates.not_finite(history_of(model__grad_norm=norms, model__loss=loss))
  assert finding.since == 50 and "model/loss" in finding.seen and "grad_norm" not in finding.seen
  assert "model/grad_norm was" in finding.cause
  words = History([{"step": 3, "model/loss": "nan"}, {"step": 4, "model/loss": "-inf"}])
  assert updates.not_finite(words)[0].since == 3
  assert updates.not_finite(History([{"step": 7, "probe/finite": 0.0}]))[0].seen.startswith(
    "samples"
  )


def probes(total=None, **ratios):
  columns = {f"probe__{name}": 10.0 * np.asarray(r) for name, r in ratios.items()}
  real = {f"probe__{name}_real": np.full(len(r), 10.0) for name, r in ratios.items()}
  return history_of(total, **columns, **real)


@pytest.mark.parametrize(
  ("motion", "since"),
  [
    ([1, 0.9, 0.5, 0.1, 0.1], 4),
    ([1, 0.1, 0.1, 0.25, 0.1], 2),  # a little better is not well
    ([1, 0.1, 0.1, 0.5, 0.6], None),  # back again
    ([1, 0.9, 0.8, 0.9, 0.1], None),  # once is not enough
    ([0.0, 0.0, 0.1, 0.3, 0.6], None),  # learning
    ([0.0, 0.0, 0.0, 0.01, 0.02], 1),  # never learned
    ([8.0, 4.0, 2.0, 1.1, 0.9], None),  # noise that clears
  ],
)
def test_static_video_is_what_lost_motion_or_never_had_it(motion, since):
  findings = samples.static_video(probes(motion=motion))
  assert [f.since for f in findings] == ([] if since is None else [since])


def test_a_network_that_has_not_learned_yet_has_its_time():
  assert samples.static_video(probes(motion=[0.0] * 5, total=100)) == []
  assert samples.static_video(probes(motion=[0.0] * 5, total=20)) != []


def test_still_data_have_no_static_video():
  still = history_of(probe__motion=np.zeros(6), probe__motion_real=np.full(6, 0.1))
  assert samples.static_video(still) == [] and samples.flicker(still) == []


def test_fading_is_losing_what_was_there():
  (finding,) = samples.fading(probes(contrast=[0.9, 0.9, 0.4, 0.35], spread=[1, 1, 0.9, 0.8]))
  assert finding.since == 3 and "contrast is 35% of real (90% at step 1)" in finding.seen
  assert "conditions" not in finding.seen
  for fine in ([0.0, 0.2, 0.3, 0.4], [0.7, 0.45, 0.45, 0.44], [3.0, 2.0, 1.0, 0.9]):
    assert samples.fading(probes(contrast=fine, spread=fine)) == []


def test_flicker_needs_to_have_been_calm():
  assert samples.flicker(probes(motion=[1, 1.1, 1.2, 2.5, 3]))[0].since == 4
  assert samples.flicker(probes(motion=[9, 5, 4, 4, 5])) == []


# ------------------------------------------------------------------------------------------------
# The diagnosis of a run as it goes
# ------------------------------------------------------------------------------------------------


def test_each_finding_is_told_once_and_a_resumed_run_goes_on_as_if_never_stopped(
  collapsed, tmp_path
):
  rows = collapsed["fake stops"]
  whole = Diagnosis(path=tmp_path / "whole.jsonl", total=STEPS)
  told = [f.name for row in rows for f in whole.update(row["step"], without_step(row))]
  assert told.count("diversity") == 1 and set(told) == names(rows)
  resumed = Diagnosis(rows[:200], path=tmp_path / "resumed.jsonl", total=STEPS)
  for row in rows[200:]:
    resumed.update(row["step"], without_step(row))
  texts = [(tmp_path / f"{name}.jsonl").read_text() for name in ("whole", "resumed")]
  assert texts[0] == texts[1] and resumed.standing == whole.standing
  lines = [json.loads(line) for line in texts[0].splitlines()]
  assert lines == whole.events and {"step", "name", "severity", "since"} < set(lines[0])


def test_a_collapse_must_stand_for_as_many_looks_as_asked():
  diagnosis = Diagnosis()
  for step, motion in enumerate([10, 10, 1, 1, 1, 10, 1, 1], 1):
    diagnosis.update(step, {"probe/motion": motion, "probe/motion_real": 10})
    standing = [diagnosis.collapse(patience) is not None for patience in (1, 2)]
    assert standing == [step in (4, 5, 8), step == 5]
  assert [e["step"] for e in diagnosis.events] == [4, 6, 8]


def without_step(row):
  return {name: value for name, value in row.items() if name != "step"}


# ------------------------------------------------------------------------------------------------
# The probe
# ------------------------------------------------------------------------------------------------


def clips(*shape, seed=0):
  return np.random.default_rng(seed).uniform(-1, 1, size=(*shape, 4, 2, 3, 3))


def test_a_probe_measures_what_it_says():
  real, drawn = clips(3), clips(2, 3, seed=1)
  values = probe(real, drawn, context=1)
  byte = lambda x: (x + 1) * 127.5
  step = lambda x: np.abs(np.diff(byte(x)[..., 1:, :, :, :], axis=-4)).mean()
  apart = lambda a, b: np.abs(byte(a) - byte(b))[..., 1:, :, :, :].mean()
  pairs = [(0, 1), (0, 2), (1, 2)]
  expected = {
    "motion": step(drawn),
    "motion_real": step(real),
    "diversity": apart(drawn[0], drawn[1]),
    "diversity_real": apart(drawn, real[None]),
    "spread": np.mean([apart(drawn[:, a], drawn[:, b]) for a, b in pairs]),
    "spread_real": np.mean([apart(real[a], real[b]) for a, b in pairs]),
    "clipped_real": np.mean(np.abs(real[:, 1:]) >= 1 - 1.5 / 127.5),
  }
  for name, value in expected.items():
    np.testing.assert_allclose(values[f"probe/{name}"], value, rtol=1e-5)
  changed = drawn.copy()
  changed[:, :, 0] = 0.0
  assert probe(real, changed, context=1) == values  # what was given is not judged


def test_a_probe_leaves_out_what_it_cannot_measure():
  values = probe(clips(1), clips(1, 1), context=3)
  assert "probe/motion" in values  # one new frame: its step from the last that was given
  assert not {"probe/diversity", "probe/spread"} & set(values)
  broken = clips(2, 3)
  broken[0, 0, 0, 0, 0, 0] = np.nan
  assert probe(clips(3), broken) == {"probe/finite": 0.0}
  with pytest.raises(ValueError, match="give real"):
    probe(clips(3), clips(2, 2))
