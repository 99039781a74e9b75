"""Checkpoints: whole, damaged, foreign, of another architecture, on another mesh, cut by a kill."""

import shutil
import signal
import subprocess
import sys
import textwrap

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from vidstep.parallel.mesh import make_mesh
from vidstep.parallel.sharding import state_sharding
from vidstep.training.checkpoint import (
  Checkpoints,
  load_network,
  parse_reference,
  read_config,
  resolve_reference,
)
from vidstep.training.checksum import checksum
from vidstep.training.compare import config_changes, first_mismatch

# Orbax leaves reads of a truncated file behind, which then complain to a loop that is gone.
pytestmark = pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")

CONFIG = {"model": {"dim": 3, "patch": (1, 2)}, "objective": {"name": "x"}, "nets": {}}


def numbers(state):
  return jax.device_get(state.replace(key=jax.random.key_data(state.key)))


def assert_same(a, b):
  jax.tree.map(np.testing.assert_array_equal, numbers(a), numbers(b))


@pytest.fixture
def saved(toy, tmp_path):
  """A run with checkpoints 1 and 2, whose weights differ."""
  checkpoints = Checkpoints(tmp_path)
  states = {}
  for step in (1, 2):
    nets = jax.tree.map(lambda x, step=step: x + step * jnp.ones_like(x), toy.state.nets)
    states[step] = toy.state.replace(step=jnp.int32(step), nets=nets)
    checkpoints.save(
      states[step], config=CONFIG, loader={"position": step}, references={"teacher": "t:m@5"}
    )
  checkpoints.wait()
  yield checkpoints, states, tmp_path
  checkpoints.close()


def truncate(folder):
  for file in folder.rglob("d/*"):
    if file.is_file():
      with file.open("r+b") as f:
        f.truncate(file.stat().st_size // 2)


def test_restores_every_part_bit_by_bit(saved):
  checkpoints, states, _ = saved
  like = jax.eval_shape(lambda s: s, states[2])
  state, meta = checkpoints.restore(like, config=CONFIG, references={"teacher": "t:m@5"})
  assert_same(state, states[2])
  assert meta["loader"] == {"position": 2} and meta["references"] == {"teacher": "t:m@5"}
  assert state.nets["b"].ema is None and jnp.issubdtype(state.key.dtype, jax.dtypes.prng_key)


def test_restores_onto_another_mesh(saved):
  checkpoints, states, _ = saved
  mesh = make_mesh(2, 4)
  big = states[2].replace(aux={"table": jnp.arange(4096.0).reshape(64, 64)})
  checkpoints.save(big.replace(step=jnp.int32(3)), config=CONFIG)
  checkpoints.wait()
  like = jax.tree.map(
    lambda x, s: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=s), big, state_sharding(big, mesh)
  )
  state, _ = checkpoints.restore(like)
  assert_same(state, big.replace(step=jnp.int32(3)))
  assert state.aux["table"].sharding.spec == jax.sharding.PartitionSpec(None, "fsdp")


def test_an_empty_workdir_has_nothing_to_resume(toy, tmp_path):
  checkpoints = Checkpoints(tmp_path)
  assert checkpoints.restore(toy.state) is None and checkpoints.latest() is None
  checkpoints.close()


def test_a_truncated_checkpoint_is_refused_and_the_last_good_one_used(saved, caplog):
  checkpoints, states, workdir = saved
  truncate(workdir / "checkpoints" / "2" / "a.opt")
  state, _ = checkpoints.restore(states[1])
  assert_same(state, states[1])
  sentence = caplog.text
  assert "checkpoints/2 is truncated (a.opt" in sentence
  assert "Using the last good checkpoint, step 1" in sentence
  assert (workdir / "checkpoints_refused" / "2").is_dir()
  checkpoints.save(states[2], config=CONFIG)  # the number is free again
  checkpoints.wait()
  assert checkpoints.latest() == 2


def test_numbers_that_do_not_match_their_checksum_are_refused(saved, caplog):
  checkpoints, states, workdir = saved
  meta = workdir / "checkpoints" / "2" / "meta" / "metadata"
  meta.write_text(meta.read_text().replace('"a.ema": ', '"a.ema": 1'))
  state, _ = checkpoints.restore(states[1])
  assert int(state.step) == 1 and "a.ema does not match its checksum" in caplog.text


def test_a_foreign_checkpoint_is_refused(saved, caplog):
  checkpoints, states, workdir = saved
  shutil.rmtree(workdir / "checkpoints" / "2" / "meta")
  state, _ = checkpoints.restore(states[1])
  assert int(state.step) == 1 and "checkpoints/2 is no vidstep checkpoint" in caplog.text


def test_nothing_is_moved_when_no_checkpoint_is_usable(saved):
  checkpoints, states, workdir = saved
  for step in "12":
    truncate(workdir / "checkpoints" / step)
  with pytest.raises(ValueError, match=r"No usable checkpoint .* Choose another --workdir"):
    checkpoints.restore(states[1])
  assert {p.name for p in (workdir / "checkpoints").iterdir()} == {"1", "2"}


def test_another_model_objective_or_teacher_is_refused_with_what_differs(saved):
  checkpoints, states, _ = saved
  wider = CONFIG | {"model": {"dim": 4, "patch": [1, 2]}, "objective": {"name": "x", "drop": 0.1}}
  with pytest.raises(ValueError, match=r"model.dim: 3 -> 4; objective.drop: absent -> 0.1"):
    checkpoints.restore(states[1], config=wider)
  with pytest.raises(ValueError, match=r"frozen network teacher: t:m@5 -> t:m@6"):
    checkpoints.restore(states[1], config=CONFIG, references={"teacher": "t:m@6"})


def test_one_network_is_read_without_the_rest(saved):
  _, states, workdir = saved
  for part in (workdir / "checkpoints" / "2").iterdir():
    if part.is_dir() and part.name not in ("a.ema", "meta"):
      shutil.rmtree(part)
  config, params = load_network(f"{workdir}:a:ema")
  assert config["model"]["dim"] == 3 == read_config(f"{workdir}:a")["model"]["dim"]
  jax.tree.map(np.testing.assert_array_equal, params, states[2].nets["a"].ema)


def test_references_can_name_a_step_and_fall_back_to_weights(saved):
  _, states, workdir = saved
  assert resolve_reference(f"{workdir}:a:ema") == f"{workdir}:a:ema@2"
  old = load_network(f"{workdir}:a@1")[1]
  jax.tree.map(np.testing.assert_array_equal, old, states[1].nets["a"].params)
  without = load_network(f"{workdir}:b:ema")[1]  # b keeps no average
  jax.tree.map(np.testing.assert_array_equal, without, states[2].nets["b"].params)


def test_another_architecture_names_the_first_parameter_that_differs(saved):
  _, _, workdir = saved
  like = {"w": jnp.zeros((2, 4)), "b": jnp.zeros(3)}
  with pytest.raises(
    ValueError, match=r"a.params has w with shape \(2, 3\), the model with \(2, 4"
  ):
    load_network(f"{workdir}:a", like=like)
  with pytest.raises(ValueError, match=r"has w with shape \(2, 3\), which the model lacks"):
    load_network(f"{workdir}:a", like={"b": jnp.zeros(3)})


def test_references_that_lead_nowhere_say_so(saved, tmp_path):
  _, _, workdir = saved
  for reference, error, sentence in [
    ("a", ValueError, "names no network"),
    (f"{tmp_path}/none:a", FileNotFoundError, "no checkpoint in"),
    (f"{workdir}:a@7", FileNotFoundError, r"steps \[1, 2\]"),
    (f"{workdir}:c", FileNotFoundError, "holds the roles a, b, not 'c'"),
  ]:
    with pytest.raises(error, match=sentence):
      load_network(reference)
  assert parse_reference("a:b:m") == ("a:b", "m", False, None)
  assert parse_reference("x:m:ema@12") == ("x", "m", True, 12)


def test_a_kill_during_a_save_leaves_the_last_checkpoint_usable(tmp_path):
  script = """
    import os, signal, sys
    import jax, jax.numpy as jnp
    from vidstep.training.checkpoint import Checkpoints
    from vidstep.training.optim import adamw
    from vidstep.training.state import init_state
    weights = {"w": jnp.arange(2.0**22).reshape(2048, 2048)}
    state = init_state({"m": weights}, {"m": adamw(1.0)}, {"m": None}, {}, jax.random.key(0))
    checkpoints = Checkpoints(sys.argv[1])
    checkpoints.save(state.replace(step=jnp.int32(1)), config={})
    checkpoints.wait()
    checkpoints.save(state.replace(step=jnp.int32(2)), config={})
    os.kill(os.getpid(), signal.SIGKILL)
  """
  done = subprocess.run([sys.executable, "-c", textwrap.dedent(script), str(tmp_path)], check=False)
  assert done.returncode == -signal.SIGKILL
  names = {p.name for p in (tmp_path / "checkpoints").iterdir()}
  assert "1" in names and "2" not in names and len(names) == 2  # the half-written one, aside
  _, params = load_network(f"{tmp_path}:m")
  np.testing.assert_array_equal(params["w"].ravel(), np.arange(2.0**22))
  checkpoints = Checkpoints(tmp_path)
  assert checkpoints.latest() == 1
  checkpoints.close()


def test_checksums_see_order_zeros_and_places_but_not_meshes():
  x = jnp.arange(4096.0).reshape(64, 64)
  one = lambda x: checksum({"p": {"x": x}})["p"]
  spread = jax.device_put(x, state_sharding(x, make_mesh(2, 4)))
  assert one(x) == one(spread)
  others = [x.T, x.at[3, 3].set(0), x[::-1], -x, x.at[0, 1].set(2).at[0, 2].set(1), x.reshape(-1)]
  assert len({one(o) for o in [x, *others]}) == len(others)  # only the reshape is the same
  assert one(x) == one(x.reshape(-1))


def test_differences_in_words():
  struct = lambda *shape: jax.ShapeDtypeStruct(shape, jnp.float32)
  assert first_mismatch({"a": struct(2)}, {"a": struct(2)}) is None
  assert first_mismatch({}, {"a": struct(2)}) == "lacks a, which the model has with shape (2,)"
  old = {"model": {"dim": 3, "clip": None}, "objective": {}, "nets": {"m": {"model": {}}}}
  assert config_changes(old, {"model": {"dim": 3}, "nets": {"m": {"init": "x", "model": {}}}}) == []
