"""Objectives: pure losses over velocity functions, one file each."""

from vidstep.losses.base import Batch, Objective
from vidstep.losses.causvid import causvid
from vidstep.losses.cm import cm
from vidstep.losses.dcm import dcm
from vidstep.losses.dmd import dmd
from vidstep.losses.dmd2 import dmd2
from vidstep.losses.f_distill import f_distill
from vidstep.losses.flow_map import flow_map
from vidstep.losses.flow_matching import flow_matching
from vidstep.losses.gan import dmd2_gan
from vidstep.losses.kd import kd
from vidstep.losses.ladd import ladd
from vidstep.losses.long_tuning import long_tuning
from vidstep.losses.mean_flow import mean_flow
from vidstep.losses.progressive import progressive
from vidstep.losses.rcm import rcm
from vidstep.losses.scm import scm, sct
from vidstep.losses.self_forcing import self_forcing, self_forcing_gan
from vidstep.losses.shortcut import shortcut
from vidstep.losses.sid import sid
from vidstep.losses.tcm import tcm

OBJECTIVES = {
  "flow_matching": flow_matching,
  "dcm": dcm,
  "dmd": dmd,
  "dmd2": dmd2,
  "dmd2_gan": dmd2_gan,
  "f_distill": f_distill,
  "ladd": ladd,
  "scm": scm,
  "sct": sct,
  "mean_flow": mean_flow,
  "flow_map": flow_map,
  "rcm": rcm,
  "kd": kd,
  "cm": cm,
  "tcm": tcm,
  "shortcut": shortcut,
  "progressive": progressive,
  "sid": sid,
  "self_forcing": self_forcing,
  "self_forcing_gan": self_forcing_gan,
  "causvid": causvid,
  "long_tuning": long_tuning,
}

__all__ = [
  "OBJECTIVES",
  "Batch",
  "Objective",
  "causvid",
  "cm",
  "dcm",
  "dmd",
  "dmd2",
  "dmd2_gan",
  "f_distill",
  "flow_map",
  "flow_matching",
  "kd",
  "ladd",
  "long_tuning",
  "mean_flow",
  "progressive",
  "rcm",
  "scm",
  "sct",
  "self_forcing",
  "self_forcing_gan",
  "shortcut",
  "sid",
  "tcm",
]
