"""Held keys as action vectors: Doom's buttons, arcade choices, axes."""

import numpy as np
import pytest

from experiments.play_server import keys
from experiments.play_server.protocol import KEYS
from vidstep.data.controls import Control

BUTTONS = tuple(Control("button", (n,)) for n in ("TURN_LEFT", "TURN_RIGHT", "MOVE_FORWARD"))
ARCADE = (
  Control(
    "choice",
    ("NOOP", "FIRE", "UP", "RIGHT", "LEFT", "DOWN", "UPRIGHT", "UPLEFT", "UPRIGHTFIRE", "LEFTFIRE"),
  ),
)


def chosen(down, control=ARCADE):
  vector = keys.action(down, control)
  assert sorted(set(vector)) == [-1.0, 1.0] and (vector > 0).sum() == 1
  return control[0].names[int(np.argmax(vector))]


def test_every_key_of_the_protocol_has_a_meaning_somewhere():
  assert set(keys.NAMES) == set(KEYS)


def test_buttons_are_down_while_held_and_up_otherwise():
  np.testing.assert_array_equal(keys.action([], BUTTONS), [-1, -1, -1])
  np.testing.assert_array_equal(keys.action(["left", "up", "fire"], BUTTONS), [1, -1, 1])
  assert keys.action([], BUTTONS).dtype == np.float32


def test_only_keys_that_do_something_are_offered():
  assert keys.labels(BUTTONS) == {
    "up": "Move forward", "left": "Turn left", "right": "Turn right",
  }  # fmt: skip
  assert set(keys.labels(ARCADE)) == {"up", "down", "left", "right", "fire"}


def test_where_nobody_can_turn_the_arrows_sidestep():
  cover = tuple(Control("button", (n,)) for n in ("MOVE_LEFT", "MOVE_RIGHT"))
  np.testing.assert_array_equal(keys.action(["right"], cover), [-1, 1])


@pytest.mark.parametrize(
  ("down", "name"),
  [
    ([], "NOOP"),
    (["up"], "UP"),
    (["up", "right"], "UPRIGHT"),
    (["up", "right", "fire"], "UPRIGHTFIRE"),
    (["left", "fire"], "LEFTFIRE"),
    (["right", "fire"], "FIRE"),
  ],
)
def test_a_choice_is_the_name_that_fits_best(down, name):
  assert chosen(down) == name


def test_numbered_choices_take_the_arrows_in_order():
  pole = (Control("choice", ("action_0", "action_1")),)
  assert [chosen(down, pole) for down in (["left"], ["right"], [])] == [
    "action_0", "action_1", "action_0",
  ]  # fmt: skip


def test_an_axis_is_pulled_to_its_ends_and_rests_at_zero():
  turn = (Control("axis", ("TURN_LEFT_RIGHT_DELTA",), -10.0, 10.0),)
  assert [keys.action(down, turn)[0] for down in (["left"], [], ["right"])] == [-10, 0, 10]
