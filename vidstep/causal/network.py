"""What a rollout and a streaming engine ask of a causal network: pure functions on a cache."""

from typing import Any, Protocol

import jax

from vidstep.models.cond import Cond


class CausalNetwork(Protocol):
  """A network that makes a video chunk after chunk and remembers the chunks before in a cache.

  A cache is a pytree of fixed shapes whose leaves all have a batch axis: every row is a stream of
  its own. All functions are pure: to keep a cache is to fork the stream.

  `cond` of `read`, `append` and `read_append` is that of the frames of x alone: actions [B, c, A],
  image [B, c, H, W, Ci]. The text is in the cache.
  """

  def start(self, params, like: jax.Array, cond: Cond) -> Any:
    """An empty cache for videos shaped like `like` [B, F, H, W, C], with the text of `cond`.

    `cond.context` is not consumed: append it as the first chunk.
    """

  def read(self, params, x, t, cond: Cond, cache, *, s=None) -> jax.Array:
    """Velocity of the next chunk x [B, c, H, W, C] at time t [B] or [B, c]."""

  def append(self, params, x, cond: Cond, cache, *, t=None) -> Any:
    """The cache after chunk x, read by the network at time t (None: 0, clean)."""

  def read_append(self, params, x, t, cond: Cond, cache, *, s=None) -> tuple[jax.Array, Any]:
    """`read`, and the cache after that very forward: context from the last step, one forward."""
