"""A real training step gives the numbers of one device under every preset, and lies as it says.

Copies alone: test_training, and test_train_meshes, which trains them beside all axes.
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import PartitionSpec as P
from mutation import assert_caught, mutant
from tiny_steps import MODEL, build, params

from vidstep.parallel import sharding
from vidstep.parallel.mesh import make_mesh
from vidstep.parallel.sharding import state_sharding
from vidstep.training.checkpoint import Checkpoints

pytestmark = [pytest.mark.timeout(900), pytest.mark.usefixtures("unoptimized")]

# objective, (data, fsdp, sequence, tensor), rules, method
CASES = {
  "weights in parts": ("flow_matching", (1, 8, 1, 1), "fsdp", "ring"),
  "copies of parts": ("flow_matching", (2, 4, 1, 1), "zero", "ring"),
  "ring of frames": ("flow_matching", (2, 1, 4, 1), "fsdp_sequence", "ring"),
  "frames for heads": ("flow_matching", (2, 1, 4, 1), "fsdp_matrices", "all_to_all"),
  "parts of matrices": ("flow_matching", (4, 1, 1, 2), "tensor", "ring"),
  "tangents": ("scm", (1, 2, 2, 2), "fsdp_tensor", "ring"),
  "rollouts": ("self_forcing", (1, 2, 2, 2), "fsdp_sequence_tensor", "ring"),
}


@functools.cache
def stepped(case):
  """(state, metrics) after one step."""
  name, sizes, preset, method = CASES[case]
  step, args = build(name, make_mesh(*sizes), preset=preset, method=method)
  return step(*args)


@functools.cache
def alone(name):
  step, args = build(name, make_mesh(devices=jax.devices()[:1]))
  state, metrics = step(*args)
  return jax.device_get(state.nets), metrics


@pytest.mark.parametrize("case", CASES)
def test_losses_gradients_and_updates_are_those_of_one_device(case):
  state, metrics = stepped(case)
  want, want_metrics = alone(CASES[case][0])
  for name, value in want_metrics.items():
    np.testing.assert_allclose(metrics[name], value, rtol=1e-5, atol=1e-6, err_msg=name)
  # Adam's first moment is 0.1 g: with it every gradient is compared.
  leaves = jax.tree_util.tree_leaves_with_path(want)
  for (path, b), a in zip(leaves, jax.tree.leaves(state.nets), strict=True):
    scale = max(float(np.abs(b).max()), 1e-6)
    name = jax.tree_util.keystr(path)
    np.testing.assert_allclose(a, b, rtol=0, atol=1e-5 * scale, err_msg=name)
  assert all(np.abs(a).max() > 0 for net in want.values() for a in jax.tree.leaves(net.opt[1][0]))


def test_a_step_moves_the_weights():
  net = alone("flow_matching")[0]["model"]
  moved = jax.tree.map(lambda a, b: np.abs(a - b).max(), net.params, params()[0])
  assert min(jax.tree.leaves(moved)) > 1e-6


@pytest.mark.parametrize("case", CASES)
def test_what_comes_out_lies_as_the_rules_say_and_ema_and_moments_as_the_weights(case):
  state, _ = stepped(case)
  want = state_sharding(state, make_mesh(*CASES[case][1]), CASES[case][2])
  same = jax.tree.map(lambda x, s: x.sharding.is_equivalent_to(s, x.ndim), state, want)
  assert all(jax.tree.leaves(same))
  spec = lambda tree: jax.tree.map(lambda x: x.sharding.spec, tree)
  for net in state.nets.values():
    moments = net.opt[1][0]
    assert spec(net.ema) == spec(moments.mu) == spec(moments.nu)
    assert (spec(net.params) == spec(net.ema)) == (CASES[case][2] != "zero")


def share(tree):
  """Bytes on the busiest device, as a share of all bytes."""
  held = {}
  for x in jax.tree.leaves(tree):
    for shard in x.addressable_shards:
      held[shard.device] = held.get(shard.device, 0) + shard.data.nbytes
  return max(held.values()) / sum(x.nbytes for x in jax.tree.leaves(tree))


# Of weights, of EMA and moments: what the axes divide by, and in so small a network a rest that is
# not worth cutting; `tensor` halves the matrices of the blocks, not the embeddings.
SHARES = {
  "weights in parts": (0.18, 0.18),
  "copies of parts": (1, 0.18),
  "ring of frames": (0.3, 0.3),
  "frames for heads": (1, 1),
  "parts of matrices": (0.72, 0.72),
  "tangents": (0.39, 0.39),
  "rollouts": (0.22, 0.22),
}


def place_all(preset, sizes, rules=sharding):
  """A role's weights, and what else there is of it, placed by a preset."""
  tree = {"params": params()[0], "opt": params()[1], "ema": params()[2]}
  tree = {"nets": {"student": tree}}
  placed = jax.device_put(tree, rules.state_sharding(tree, make_mesh(*sizes), preset))
  return placed["nets"]["student"]


def check_shares(rules):
  for case, (weights, rest) in SHARES.items():
    _, sizes, preset, _ = CASES[case]
    placed = place_all(preset, sizes, rules)
    assert share(placed["params"]) <= weights, case
    assert share((placed["opt"], placed["ema"])) <= rest, case


def test_a_device_holds_its_share_of_the_bytes():
  check_shares(sharding)


@pytest.mark.parametrize(
  ("old", "new"),
  [
    ("MIN_SIZE = 1024", "MIN_SIZE = 10**6"),
    ('    spec[cut.tensor] = "tensor"', "    pass"),
    ('r"/(opt|ema)/"', 'r"/opt/"'),
    ('Cut(None, ("fsdp", "sequence"))', 'Cut(None, ("fsdp",))'),
  ],
)
def test_rules_that_keep_too_much_are_noticed(old, new):
  assert_caught(check_shares, mutant(sharding, old, new))


def test_fresh_weights_come_into_being_in_parts():
  x, cond = jnp.zeros((1, 8, 4, 4, 2)), None
  init = lambda key: MODEL.clone(text_dim=None).init(key, x, jnp.zeros(1), cond=cond)["params"]
  key = jax.random.key(3)
  spread = state_sharding(jax.eval_shape(init, key), make_mesh(1, 4, 1, 2), "fsdp_tensor")
  program = jax.jit(init, out_shardings=spread).lower(key).compile()
  got, want = program(key), jax.jit(init)(key)
  jax.tree.map(np.testing.assert_array_equal, jax.device_get(got), jax.device_get(want))
  whole = sum(a.nbytes for a in jax.tree.leaves(want))
  memory = program.memory_analysis()
  assert memory.output_size_in_bytes < whole / 3
  assert memory.temp_size_in_bytes < whole / 3
  assert got["blocks"]["ffn_in"]["kernel"].sharding.spec == P(None, "fsdp", "tensor")


def test_a_state_is_saved_on_one_mesh_and_restored_on_another(tmp_path):
  state, _ = stepped("tangents")
  checkpoints = Checkpoints(tmp_path)
  config = {"model": {"dim": 32}, "objective": {"name": "scm"}, "nets": {}}
  checkpoints.save(state, config=config)
  checkpoints.wait()
  mesh = make_mesh(2, 4)
  shape = lambda x, s: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=s)
  like = jax.tree.map(shape, state, state_sharding(state, mesh, "fsdp"))
  restored, _ = checkpoints.restore(like, config=config)
  checkpoints.close()
  same = lambda a, b: np.testing.assert_array_equal(jax.device_get(a), jax.device_get(b))
  jax.tree.map(same, restored.nets, state.nets)
  assert restored.nets["student"].ema["blocks"]["ffn_in"]["kernel"].sharding.mesh == mesh
