"""What a network reads of frames that it has seen before, and what it leaves behind of new ones."""

from collections.abc import Callable
from typing import Any

import flax.struct
import jax

from vidstep.masks import TokenInfo


@flax.struct.dataclass
class Past:
  """Keys and values of earlier frames and of the text, as a network reads them; L blocks.

  Attributes:
    layers: pytree with a leading axis of length L; `load` makes keys and values of one block of it.
      None: no earlier frames.
    info: attributes of the P earlier frames, fields [B, P].
    text: keys and values of the text, each [L, B, tokens, heads, D]; None: made from `cond.text`.
    text_mask: [B, tokens] bool, or None for all.
    load: entry of `layers` of one block -> keys, in the order of `vidstep.models.rope.halves`, and
      values, each [B, P, S, heads, D].
    far: how many of the P frames, the first ones, may be sink or pinned.
    turned: whether keys, those in `layers` and those that the call makes, are *after* RoPE at the
      number of their frame; else they are before it.
  """

  layers: Any = None
  info: TokenInfo | None = None
  text: Any = None
  text_mask: jax.Array | None = None
  load: Callable = flax.struct.field(pytree_node=False, default=lambda layer: layer)
  far: int = flax.struct.field(pytree_node=False, default=0)
  turned: bool = flax.struct.field(pytree_node=False, default=False)


@flax.struct.dataclass
class Keys:
  """Keys and values that a call has made, of its own frames and of the text; L blocks.

  Attributes:
    k: [L, B, F, S, heads, D] keys in the order of `halves`, S tokens a frame; see `Past.turned`.
    v: [L, B, F, S, heads, D] values.
    text: (keys, values), each [L, B, tokens, heads, D], made or passed on; None without text.
  """

  k: jax.Array
  v: jax.Array
  text: Any = None
