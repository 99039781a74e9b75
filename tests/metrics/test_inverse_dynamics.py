"""Actions read off frames of the synthetic world: right on real ones, chance on shuffled ones."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from mutation import assert_caught, mutant

from vidstep.data.synthetic import BUTTONS, rollout
from vidstep.metrics import actions as module
from vidstep.metrics.actions import (
  InverseDynamics,
  fit_inverse_dynamics,
  following,
  shifted,
  shuffled,
)

FRAMES, SIZE = 4, 16


def clips(seed, count):
  """Videos and actions, drawn anew at every frame; never two opposite keys at once."""

  def clip(key):
    start, *axes = jax.random.split(key, 3)
    ways = jnp.float32([[-1, -1], [1, -1], [-1, 1]])
    held = jnp.concatenate([jax.random.choice(k, ways, (FRAMES,)) for k in axes], axis=-1)
    actions = held.at[0].set(0.0)
    return rollout(start, actions, SIZE)[1], actions

  keys = jax.random.split(jax.random.key(seed), count)
  return [np.asarray(x) for x in jax.jit(jax.vmap(clip))(keys)]


@pytest.fixture(scope="module")
def train():
  return clips(0, 1000)


@pytest.fixture(scope="module")
def reader(train):
  return fit_inverse_dynamics(*train, names=BUTTONS, steps=250, batch_size=64)


@pytest.fixture(scope="module")
def told(reader):
  """(odds, actions) of held-out clips."""
  video, actions = clips(1, 100)
  return reader.read(video), actions


def score(told, reader, change=lambda actions: actions):
  return following(told[0], change(told[1]), reader, resamples=50)


def test_it_reads_the_keys_of_held_out_frames(told, reader):
  result = score(told, reader)
  assert result["balanced"]["low"] > 0.95
  assert result["exact"]["low"] > 0.85 > result["majority"]
  assert min(result["buttons"].values()) > 0.95
  assert result["frames"] == 100 * (FRAMES - 1)


@pytest.mark.parametrize("change", [shuffled, shifted])
def test_shuffled_and_late_actions_are_at_chance(told, reader, change):
  """These keys are drawn anew at every frame: one frame late is as wrong as shuffled."""
  result = score(told, reader, change)
  assert 0.45 < result["balanced"]["value"] < 0.55
  assert result["exact"]["value"] < 0.2


def test_the_same_seed_gives_the_same_reader_and_a_file_keeps_it(train, tmp_path):
  few = [x[:8] for x in train]
  one, two, other = (
    fit_inverse_dynamics(*few, names=BUTTONS, steps=2, batch_size=8, seed=s) for s in (0, 0, 1)
  )
  one.save(tmp_path / "idm.npz")
  back = InverseDynamics.load(tmp_path / "idm.npz")
  assert back.names == BUTTONS
  read = one.read(few[0])
  for same in (two, back):
    np.testing.assert_array_equal(read, same.read(few[0]))
  assert np.abs(read - other.read(few[0])).max() > 0


def odds_of(read):
  """Certain odds [N, T-1, A] of buttons read."""
  return np.where(np.asarray(read), 9.0, -9.0)


def perfect(names, share):
  return InverseDynamics({}, names, np.asarray(share))


def counted_by_hand(following):
  down = np.array([[[1, 0], [1, 0], [0, 1], [0, 0]], [[0, 0], [1, 1], [0, 0], [1, 0]]], bool)
  read = down.copy()
  read[0, 0, 0], read[1, 2, 1] = False, True  # one down missed, one up taken for down
  actions = np.concatenate([np.zeros((2, 1, 2)), np.where(down, 1.0, -1.0)], axis=1)
  result = following(odds_of(read), actions, perfect(("A", "B"), (0.5, 0.5)), resamples=20)
  assert result["buttons"]["A"] == pytest.approx((3 / 4 + 4 / 4) / 2)
  assert result["buttons"]["B"] == pytest.approx((2 / 2 + 5 / 6) / 2)
  assert result["balanced"]["value"] == pytest.approx((7 / 8 + 11 / 12) / 2)
  assert result["exact"]["value"] == 6 / 8
  assert result["majority"] == 3 / 8
  assert (
    result["changes"]["value"] == 7 / 8
  )  # of eight buttons just pressed or let go one is misread
  one = following(odds_of(read), actions, perfect(("A", "B"), (0.5, 0.5)), buttons=("B",))
  assert one["balanced"]["value"] == pytest.approx(11 / 12)
  assert one["changes"]["value"] == 3 / 4


def test_scores_are_those_of_counting_by_hand():
  counted_by_hand(following)


@pytest.mark.parametrize(
  "old, new",
  [
    (
      "actions[:, 1:] > 0, (",
      "actions[:, :-1] > 0, (",
    ),  # those into the frame before
    ("count(~read & ~down)", "count(~read)"),
    ("& known).sum(axis=1)", ").sum(axis=1) + 1"),
    ("(down != before)", "(down == before)"),
  ],
)
def test_counting_by_hand_catches(old, new):
  assert_caught(counted_by_hand, mutant(module, old, new).following)


def out_of_time(following):
  """Held keys: balanced accuracy hardly tells a frame too early or too late, changes do."""
  held = np.repeat(np.random.default_rng(0).choice([-1.0, 1.0], (40, 8, 2)), 6, axis=1)
  late = np.concatenate([held[:, :1], held[:, :-1]], axis=1)
  early = np.concatenate([held[:, 1:], held[:, -1:]], axis=1)
  reader, odds = perfect(("A", "B"), (0.5, 0.5)), odds_of(held[:, 1:] > 0)
  for asked, changes in ((held, 1.0), (late, 0.0), (early, 0.0)):
    result = following(odds, asked, reader, resamples=20)
    assert result["balanced"]["value"] > 0.85
    assert result["changes"]["value"] == changes


def test_answers_out_of_time_are_found_out():
  out_of_time(following)
  assert_caught(out_of_time, mutant(module, "&= (read == down)[:, :-1]", "&= True").following)


def test_a_rare_button_counts_as_read_above_its_share():
  odds = np.full((2, 4, 1), -2.0)  # likelier up, yet far above a share of 1 %
  actions = np.where(np.arange(5) % 2, 1.0, -1.0).reshape(1, 5, 1).repeat(2, 0)
  assert following(odds, actions, perfect(("A",), (0.01,)))["buttons"]["A"] == 0.5
  odds[:, 1::2] = -9.0
  assert following(odds, actions, perfect(("A",), (0.01,)))["buttons"]["A"] == 1.0
  assert following(odds, actions, perfect(("A",), (0.5,)))["buttons"]["A"] == 0.5


def test_of_choices_the_likeliest_is_the_answer():
  odds = np.array([[[-3.0, -1.0, -2.0], [-1.0, -5.0, -4.0]]])
  actions = np.full((1, 3, 3), -1.0)
  actions[0, 1, 1] = actions[0, 2, 0] = 1
  result = following(odds, actions, perfect(("A", "B", "C"), (1 / 3,) * 3), resamples=20)
  assert result["exact"]["value"] == 1.0
  assert result["buttons"]["C"] is None  # never down here


def test_unknown_actions_are_neither_learnt_nor_judged():
  actions = np.ones((2, 4, 1))
  actions[:, 2] = -1
  actions[1] = 0
  result = following(np.ones((2, 3, 1)), actions, perfect(("A",), (0.5,)), resamples=20)
  assert result["frames"] == 3
  np.testing.assert_array_equal(shuffled(actions)[1], 0)
  np.testing.assert_array_equal(shifted(actions)[0, :, 0], [0, 1, 1, -1])


def test_bad_input_gets_one_sentence(train):
  video, actions = (x[:2] for x in train)
  with pytest.raises(ValueError, match="must be buttons"):
    fit_inverse_dynamics(video, actions * 0.5, names=BUTTONS)
  with pytest.raises(ValueError, match=r"must be \[N, T, 3\]"):
    fit_inverse_dynamics(video, actions, names=BUTTONS[:3])
  with pytest.raises(ValueError, match="No frame has a known action"):
    fit_inverse_dynamics(video, 0 * actions, names=BUTTONS)
  reader = perfect(BUTTONS, (0.5,) * 4)
  with pytest.raises(ValueError, match="not of the pairs"):
    following(np.zeros((2, 12, 4)), actions, reader)
  with pytest.raises(ValueError, match="nothing to follow"):
    following(np.zeros((2, FRAMES - 1, 4)), np.ones_like(actions), reader)
