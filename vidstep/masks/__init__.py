"""Who may attend to whom: rules over token attributes.

A mask is a *rule* (`rules.py`), a static, hashable function of two tokens' attributes; the
attributes are arrays (`info.py`).
"""

from vidstep.masks.info import (
  CLEAN as CLEAN,
  NOISY as NOISY,
  TokenInfo as TokenInfo,
  chunk_index as chunk_index,
  concat_info as concat_info,
  teacher_forcing_info as teacher_forcing_info,
  token_info as token_info,
)
from vidstep.masks.rules import (
  CausalChunks as CausalChunks,
  CausalFrames as CausalFrames,
  DiffusionForcing as DiffusionForcing,
  Full as Full,
  Intersection as Intersection,
  Rule as Rule,
  TeacherForcing as TeacherForcing,
  Valid as Valid,
  Window as Window,
)
