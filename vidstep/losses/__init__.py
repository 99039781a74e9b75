"""Objectives: pure losses over velocity functions, one file each."""

from vidstep.losses.base import Batch, Objective
from vidstep.losses.dcm import dcm
from vidstep.losses.dmd2 import dmd2
from vidstep.losses.flow_matching import flow_matching
from vidstep.losses.kd import kd
from vidstep.losses.scm import scm, sct

OBJECTIVES = {
  "flow_matching": flow_matching,
  "dcm": dcm,
  "dmd2": dmd2,
  "scm": scm,
  "sct": sct,
  "kd": kd,
}

__all__ = ["OBJECTIVES", "Batch", "Objective", "dcm", "dmd2", "flow_matching", "kd", "scm", "sct"]
