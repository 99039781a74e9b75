"""Who may attend to whom: rules over token attributes.

A mask is a *rule* (`rules.py`), a static, hashable function of two tokens' attributes; the
attributes are arrays (`info.py`). Where they are NumPy arrays the host counts pairs and plans tiles
(`plan.py`), and draws (`draw.py`).
"""

from vidstep.masks.draw import draw
from vidstep.masks.info import (
  CLEAN,
  NOISY,
  TokenInfo,
  chunk_index,
  concat_info,
  teacher_forcing_info,
  token_info,
)
from vidstep.masks.plan import dense, density, pairs, tile_map
from vidstep.masks.rules import (
  PINNED,
  CausalChunks,
  CausalFrames,
  DiffusionForcing,
  Far,
  Full,
  Intersection,
  Near,
  Prefix,
  Present,
  Rule,
  TeacherForcing,
  Valid,
  Window,
)

__all__ = [
  "CLEAN",
  "NOISY",
  "PINNED",
  "CausalChunks",
  "CausalFrames",
  "DiffusionForcing",
  "Far",
  "Full",
  "Intersection",
  "Near",
  "Prefix",
  "Present",
  "Rule",
  "TeacherForcing",
  "TokenInfo",
  "Valid",
  "Window",
  "chunk_index",
  "concat_info",
  "dense",
  "density",
  "draw",
  "pairs",
  "teacher_forcing_info",
  "tile_map",
  "token_info",
]
