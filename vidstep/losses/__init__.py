"""Objectives: pure losses over velocity functions, one file each."""

from vidstep.losses.base import Batch, Objective
from vidstep.losses.flow_matching import flow_matching

OBJECTIVES = {
  "flow_matching": flow_matching,
}

__all__ = ["OBJECTIVES", "Batch", "Objective", "flow_matching"]
