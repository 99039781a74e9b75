"""The objective contract: what it refuses, in which words, and what it is to jax."""

import pytest

from vidstep.losses import OBJECTIVES, Objective
from vidstep.losses.base import network


def loss(trainable, nets, aux, batch, key, step):
  return trainable, ({}, aux)


def test_every_role_is_due_at_every_step_by_default_and_aux_is_empty():
  objective = Objective(roles=("a", "b"), loss={"a": loss, "b": loss})
  assert objective.due(0) == objective.due(7) == ("a", "b")
  assert objective.init_aux() == {} and objective.frozen == ()


def test_updates_follow_the_schedule():
  due = lambda step: ("a", "b") if step % 2 else ("b",)
  objective = Objective(roles=("a", "b"), loss={"a": loss, "b": loss}, due=due)
  assert [objective.due(step) for step in range(3)] == [("b",), ("a", "b"), ("b",)]


@pytest.mark.parametrize(
  ("fields", "words"),
  [
    ({"roles": ("a", "b"), "loss": {"a": loss}}, "No loss for role 'b'"),
    ({"roles": ("a",), "loss": {"a": loss, "c": loss}}, "loss for 'c', but roles are 'a'"),
    ({"roles": (), "loss": {}}, "at least one role"),
    ({"roles": "a", "loss": {"a": loss}}, "tuple of names"),
    ({"roles": ("a",), "loss": {"a": loss}, "frozen": ("a",)}, "cannot both learn"),
    ({"roles": ("a",), "loss": {"a": loss}, "due": lambda step: ("c",)}, "out of 'a'"),
    ({"roles": ("a",), "loss": {"a": loss}, "due": lambda step: "a"}, "tuple of roles"),
  ],
)
def test_a_malformed_objective_is_refused(fields, words):
  with pytest.raises(ValueError, match=words):
    Objective(**fields)


def test_an_unknown_role_is_refused_at_the_step_that_asks_for_it():
  objective = Objective(("a",), {"a": loss}, due=lambda step: ("a",) if step < 5 else ("b",))
  assert objective.due(4) == ("a",)
  with pytest.raises(ValueError, match=r"due\(5\) returned \('b',\)"):
    objective.due(5)


def test_missing_networks_are_named():
  assert network({"a": 1, "teacher": 2}, "teacher") == 2
  with pytest.raises(ValueError, match="needs the network 'teacher', but nets holds 'a'"):
    network({"a": 1}, "teacher")
  with pytest.raises(ValueError, match="nets holds none"):
    network({}, "student.ema")


def test_objectives_are_found_by_name():
  velocity = lambda params, x, t, cond: x
  assert OBJECTIVES["flow_matching"](velocity).roles == ("model",)
  assert OBJECTIVES["dcm"](velocity, velocity).frozen == ("teacher",)
  assert OBJECTIVES["dmd2"](velocity, velocity, velocity).roles == ("student", "fake")
