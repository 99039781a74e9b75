"""Proofs of this folder run on broken code: each must fail."""

import jax
import jax.numpy as jnp
import pytest
import test_actions
import test_dit
import test_velocity

from vidstep.masks import CausalFrames
from vidstep.models import actions, blocks, dit, layout

rope_table, sinusoid, cross_attention = dit.rope_table, dit.sinusoid, blocks.cross_attention
embed_actions, pack_time = actions.ActionEmbed.__call__, layout.pack_time


def index_for_frame(frame, *args):
  return rope_table(jnp.broadcast_to(jnp.arange(frame.shape[-1]), frame.shape), *args)


def actions_one_frame_late(self, given, patch_frames=1):
  return embed_actions(self, jnp.roll(given, 1, axis=1), patch_frames)


def context_as_noisy_as_the_rest(t, packed):
  return jnp.maximum(pack_time(t, packed), t[:, None])


MUTANTS = {
  "index for frame": (
    (dit, "rope_table", index_for_frame),
    test_dit.test_position_in_time_is_the_frame_number_not_the_index,
  ),
  "text mask forgotten": (
    (
      dit,
      "cross_attention",
      lambda q, k, v, valid, implementation: cross_attention(q, k, v, None, implementation),
    ),
    test_dit.test_text_counts_where_its_mask_is_true,
  ),
  "time without a tangent": (
    (dit, "sinusoid", lambda t: sinusoid(jax.lax.stop_gradient(t))),
    test_dit.test_forward_mode_equals_differences_in_float64,
  ),
  "times in bfloat16": (
    (dit, "sinusoid", lambda t: sinusoid(t.astype(jnp.bfloat16).astype(t.dtype))),
    test_dit.test_bfloat16_compute_keeps_times_and_output_in_float32,
  ),
  "actions one frame late": (
    (actions.ActionEmbed, "__call__", actions_one_frame_late),
    test_actions.test_an_action_changes_its_own_frame_and_what_follows,
  ),
  "context as noisy as the rest": (
    (layout, "pack_time", context_as_noisy_as_the_rest),
    test_velocity.test_context_is_a_clean_prefix_at_time_zero,
  ),
  "own clean copy seen": (
    (test_velocity.SOURCE, "TeacherForcing", CausalFrames),
    test_velocity.test_teacher_forcing_is_every_chunk_behind_the_clean_ones_before_it,
  ),
}


@pytest.mark.parametrize("mutant", MUTANTS)
def test_a_mutant_is_noticed(mutant, monkeypatch, request, net):
  patch, proof = MUTANTS[mutant]
  net.cache_clear()  # compiled networks would not see the patch
  monkeypatch.setattr(*patch)
  names = proof.__code__.co_varnames[: proof.__code__.co_argcount]
  with pytest.raises(AssertionError):
    proof(*(request.getfixturevalue(name) for name in names))
  net.cache_clear()
