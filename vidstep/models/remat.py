"""What a block of the video DiT keeps for its gradient, by name; all else is computed again."""

import jax

from vidstep.attention.primitives import forward_p

# `checkpoint_name`s: of the tokens that enter a block, of a result merged of several attentions.
BLOCK_INPUT, MERGED = "block_input", "merged_attention"

_jax = jax.checkpoint_policies


def _attention(prim, *_, **params):
  """Saves output and log-sum-exp of attention, the part whose cost grows with the square."""
  return prim is forward_p or params.get("name") == MERGED


# From the smallest memory to the largest. Every one keeps the inputs of the blocks.
POLICIES = {
  # The inputs of the blocks wait in the memory of the host.
  "offload": _jax.save_and_offload_only_these_names(
    names_which_can_be_saved=[],
    names_which_can_be_offloaded=[BLOCK_INPUT],
    offload_src="device",
    offload_dst="pinned_host",
  ),
  "nothing": _jax.nothing_saveable,
  "attention": _attention,
  # Outputs of all linear layers; attention is computed again.
  "dots": _jax.dots_with_no_batch_dims_saveable,
  "dots_attention": _jax.save_from_both_policies(_jax.dots_with_no_batch_dims_saveable, _attention),
}
POLICIES |= {name: getattr(_jax, name) for name in dir(_jax) if name.endswith("_saveable")}
