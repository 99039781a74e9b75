import jax
import numpy as np
import pytest

from vidstep.models.dit import VideoDiT
from vidstep.models.wan import wan_fields, wan_params

CONFIG = {
  "num_attention_heads": 2,
  "attention_head_dim": 8,
  "num_layers": 1,
  "ffn_dim": 24,
  "patch_size": [1, 2, 2],
  "in_channels": 3,
  "out_channels": 3,
  "text_dim": 5,
}


@pytest.fixture
def state(normal):
  """The names and shapes of a Wan checkpoint, written out from its architecture."""
  dim, ffn, text = 16, 24, 5
  shapes = {
    "patch_embedding": (dim, 3, 1, 2, 2),
    "condition_embedder.time_embedder.linear_1": (dim, 256),
    "condition_embedder.time_embedder.linear_2": (dim, dim),
    "condition_embedder.time_proj": (6 * dim, dim),
    "condition_embedder.text_embedder.linear_1": (dim, text),
    "condition_embedder.text_embedder.linear_2": (dim, dim),
    "blocks.0.norm2": (dim,),
    "blocks.0.ffn.net.0.proj": (ffn, dim),
    "blocks.0.ffn.net.2": (dim, ffn),
    "proj_out": (12, dim),
  }
  out = {"scale_shift_table": normal(1, 2, dim), "blocks.0.scale_shift_table": normal(1, 6, dim)}
  for attn in ("blocks.0.attn1", "blocks.0.attn2"):
    shapes |= {f"{attn}.{name}": (dim, dim) for name in ("to_q", "to_k", "to_v", "to_out.0")}
    out |= {f"{attn}.{name}.weight": normal(dim) for name in ("norm_q", "norm_k")}
  for name, shape in shapes.items():
    out |= {f"{name}.weight": normal(*shape), f"{name}.bias": normal(shape[0])}
  return out


def test_the_mapping_fills_every_parameter(state, normal):
  model = VideoDiT(**wan_fields(CONFIG))
  x, t = normal(1, 1, 2, 2, 3), np.zeros(1, np.float32)
  want = jax.eval_shape(lambda: model.init(jax.random.key(0), x, t))["params"]
  got = wan_params(state, 1)
  shapes = lambda tree: jax.tree.map(lambda a: (a.shape, str(a.dtype)), tree)
  assert shapes(got) == shapes(want)


def test_missing_and_left_over_weights_are_named(state):
  state["blocks.0.attn1.to_q.lora"] = state.pop("blocks.0.attn1.to_q.weight")
  with pytest.raises(ValueError) as error:
    wan_params(state, 1)
  assert "missing blocks.0.attn1.to_q.weight" in str(error.value)
  assert "left over blocks.0.attn1.to_q.lora" in str(error.value)


def test_a_wrong_depth_is_a_misfit(state):
  with pytest.raises(
    ValueError, match=r"of 2 blocks: missing blocks\.1\..* and 22 more; left over"
  ):
    wan_params(state, 2)


def test_another_block_is_refused():
  with pytest.raises(NotImplementedError, match="added_kv_proj_dim=16"):
    wan_fields(CONFIG | {"added_kv_proj_dim": 16})
