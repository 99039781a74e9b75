"""Wan's recipe end to end, tiny: made causal, distilled, refined by low-rank factors, exported."""

import functools
import json
import pathlib
import re
import shutil
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.experimental.compilation_cache import compilation_cache
from mutation import assert_caught, mutant

from configs.wan import recipe, sf_dmd, teacher_forcing, tf_dcm, tf_scm
from experiments import flags as shared
from experiments import frozen, objectives, setup, train
from experiments.networks import chunk_of
from tests.data.grown import grow
from tests.wan_release import CHANNELS, TEXT_DIM, TEXT_TOKENS, make_release
from vidstep.data import latents
from vidstep.data.shards import Item
from vidstep.io import load_lora, load_wan
from vidstep.io.dit_names import dit_rules
from vidstep.io.rules import flatten
from vidstep.models import Cond
from vidstep.parallel.mesh import make_mesh
from vidstep.parallel.sharding import state_sharding
from vidstep.training.checkpoint import load_factors, load_network, read_references
from vidstep.training.log import read_metrics

pytest.importorskip("tokenizers")
pytestmark = [
  pytest.mark.usefixtures("unoptimized"),
  pytest.mark.timeout(900),  # it compiles much: slow where others compute
]
ROOT = pathlib.Path(__file__).parents[1]
SHAPE = (recipe.TINY_FRAMES, *recipe.TINY_SIZE, CHANNELS)


# ------------------------------------------------------------------------------------------------
# A tiny release, latents, and the stages trained on them
# ------------------------------------------------------------------------------------------------


def clip_of(index):
  rng = np.random.default_rng(index)
  text = np.zeros((TEXT_TOKENS, TEXT_DIM), np.float32)
  text[: 1 + index % 5] = rng.standard_normal((1 + index % 5, TEXT_DIM))
  values = rng.standard_normal(SHAPE)
  return latents.example(values, text, caption=f"clip {index}", index=index, source="rng")


@pytest.fixture(scope="module")
def root(tmp_path_factory):
  """Folder of a release, of data and of the runs, which share what they compile."""
  root = tmp_path_factory.mktemp("wan")
  shared.use_compilation_cache(root / "cache")
  compilation_cache.reset_cache()
  make_release(root / "release")
  grow(
    root / "data",
    lambda items: [Item([clip_of(i)]) for i in items],
    features=latents.features(SHAPE, TEXT_DIM),
    splits={"train": 16, "test": 2},
    meta={"kind": latents.KIND, "text_tokens": TEXT_TOKENS, "frame_rate": 16.0},
  )
  latents.save_null_text(root / "data", np.random.default_rng(9).standard_normal((3, TEXT_DIM)))
  yield root
  jax.config.update("jax_compilation_cache_dir", None)
  compilation_cache.reset_cache()


def config_of(root, stage):
  """The config of a stage with this folder's data and networks."""
  made = {
    "tf": teacher_forcing.get_config,
    "dcm": tf_dcm.get_config,
    "sf": lambda size: sf_dmd.get_config(f"{size},lora"),
  }
  release, tf = f"wan:{root}/release", f"{root}/tf:model:ema"
  starts = {
    "tf": {"model": release},
    "dcm": {"student": tf, "teacher": tf},
    "sf": {"student": f"{root}/dcm:student:ema", "fake": release, "teacher": release},
  }
  config = made[stage]("tiny")
  config.data.path = str(root / "data")
  for name, init in starts[stage].items():
    config.nets[name].init = init
  if stage == "sf":  # the student learns at steps 1 and 7
    config.train.update(steps=8, save_every=4)
  else:
    config.train.update(steps=2, save_every=2)
    config.mesh.update(data=-1, fsdp=1)
  return config


@pytest.fixture(scope="module")
def trained(root):
  """The state after the last stage; all three are on disk."""
  for stage in ("tf", "dcm", "sf"):
    state = train.train(config_of(root, stage), root / stage)
  return jax.device_get(state)


def test_every_stage_trains_from_the_one_before(root, trained):
  for stage, roles in {"tf": {"model"}, "dcm": {"student"}, "sf": {"student", "fake"}}.items():
    rows = read_metrics(root / stage)
    losses = [row[f"{role}/loss"] for row in rows for role in roles if f"{role}/loss" in row]
    assert np.isfinite(losses).all()
    assert {key.split("/")[0] for row in rows for key in row if "/" in key} == roles
  first = flatten(load_wan(root / "release", scan=True)[1])
  last = flatten(load_network(f"{root}/tf:model")[1])
  assert first.keys() == last.keys()
  moved = {path: np.abs(first[path] - last[path]).max() for path in first}
  assert 0 < max(moved.values()) < 1e-4  # two steps of 1e-5


# ------------------------------------------------------------------------------------------------
# Low-rank factors
# ------------------------------------------------------------------------------------------------


def test_a_checkpoint_holds_factors_and_refers_to_their_base(root, trained):
  config, references = read_references(f"{root}/sf:student")
  assert references == {
    "teacher": f"wan:{root}/release",
    "student.base": f"{root}/dcm:student:ema@2",
    "fake.base": f"wan:{root}/release",
  }
  saved = {p.name for p in (root / "sf" / "checkpoints" / "8").iterdir() if p.is_dir()}
  parts = {f"{role}.{part}" for role in ("student", "fake") for part in ("params", "ema", "opt")}
  assert saved == {*parts, "run", "meta"}
  assert trained.nets["student"].params["blocks"]["self_attn"]["q"]["a"].shape == (2, 24, 2)
  bases = setup.build(config)
  assert set(bases.frozen) == {"teacher", "student.base"}  # the fake score shares the teacher


def test_what_is_loaded_is_base_and_factors_as_in_training(root, trained):
  run = setup.build(config_of(root, "sf"))
  held = frozen.load_frozen(run)
  matrix, bias = (held["teacher"]["blocks"]["ffn_in"][k] for k in ("kernel", "bias"))
  assert (matrix.dtype, bias.dtype) == (jnp.bfloat16, jnp.float32)
  for role in ("student", "fake"):
    want = run.adapters[role](trained.nets[role].ema, held)
    got = load_network(f"{root}/sf:{role}:ema")[1]
    jax.tree.map(np.testing.assert_array_equal, got, want)
    assert any(
      np.abs(b).max() > 0 for p, b in flatten(trained.nets[role].ema).items() if p[-1] == "b"
    )
  base = load_network(f"{root}/dcm:student:ema")[1]
  got = load_network(f"{root}/sf:student")[1]
  same = np.asarray(base["blocks"]["ffn_in"]["bias"])  # no layer with factors: not touched
  np.testing.assert_array_equal(got["blocks"]["ffn_in"]["bias"], same)
  # Onto a mesh, in the dtype that is asked for: the start of another run.
  like = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, jnp.float32), got)
  shardings = state_sharding(like, make_mesh(2, 4))
  like = jax.tree.map(lambda x, sharding: x.update(sharding=sharding), like, shardings)
  onto = load_network(f"{root}/sf:student", like=like)[1]
  jax.tree.map(lambda a, b: np.testing.assert_array_equal(a, np.float32(b)), onto, got)
  assert jax.tree.map(lambda x: x.sharding, onto) == shardings


def test_a_run_of_factors_resumes_bit_for_bit(root, trained, tmp_path):
  workdir = tmp_path / "again"
  shutil.copytree(root / "sf", workdir)
  shutil.rmtree(workdir / "checkpoints" / "8")
  again = jax.device_get(train.train(config_of(root, "sf"), workdir))
  bits = lambda x: jax.random.key_data(x) if jnp.issubdtype(x.dtype, jax.dtypes.prng_key) else x
  jax.tree.map(lambda a, b: np.testing.assert_array_equal(bits(a), bits(b)), trained, again)
  other = config_of(root, "sf")
  other.nets.student.lora.alpha = 7.0
  with pytest.raises(ValueError, match=r"nets\.student\.lora\.alpha: absent -> 7\.0"):
    train.train(other, workdir)
  other = config_of(root, "sf")
  other.nets.student.init = f"{root}/tf:model:ema"
  with pytest.raises(ValueError, match=r"frozen network student\.base: .*dcm.* -> .*tf:model"):
    train.train(other, workdir)


def test_an_exported_student_is_read_back(root, trained):
  reference = f"{root}/sf:student:ema"
  command = [sys.executable, "-m", "experiments.export", f"--network={reference}"]
  for out, extra in {"whole": ["--dtype=float32"], "factors.safetensors": []}.items():
    made = subprocess.run(
      [*command, f"--out={root}/out/{out}", *extra], cwd=ROOT, capture_output=True, text=True
    )
    assert made.returncode == 0, made.stderr
  want = load_network(reference)[1]
  model, got = load_wan(root / "out" / "whole", scan=True)
  jax.tree.map(np.testing.assert_array_equal, got, jax.tree.map(jnp.float32, want))
  lora, factors = load_factors(reference)
  got = load_lora(root / "out" / "factors.safetensors", dit_rules(model))
  jax.tree.map(np.testing.assert_array_equal, got, lora.export(factors))
  raw = (root / "out" / "factors.safetensors").read_bytes()
  note = json.loads(raw[8 : 8 + int.from_bytes(raw[:8], "little")])["__metadata__"]["note"]
  for word in ("self_forcing", "dcm", "flow_matching", f"wan:{root}/release", "rank 2", "0.9375"):
    assert word in note
  assert lora.rank == 2
  with pytest.raises(ValueError, match="has no low-rank factors"):
    load_factors(f"{root}/dcm:student")


# ------------------------------------------------------------------------------------------------
# References, guidance, shapes
# ------------------------------------------------------------------------------------------------


def test_a_public_network_comes_onto_the_mesh_and_must_be_the_configs(root):
  run = setup.build(config_of(root, "tf"))
  spread = functools.partial(state_sharding, mesh=make_mesh(2, 4))
  like = jax.eval_shape(run.fresh["model"], jax.random.key(0))
  got = frozen.load_onto(f"wan:{root}/release#", run.models["model"], like, spread)
  jax.tree.map(np.testing.assert_array_equal, got, load_wan(root / "release", scan=True)[1])
  kernel = got["time_proj"]["kernel"]
  assert "fsdp" in kernel.sharding.spec and kernel.addressable_shards[0].data.size < kernel.size
  model = run.models["model"].clone(depth=3, heads=4, second_time=True)
  told = r"depth=3 \(there 2\).*second_time=True \(there False\)"
  with pytest.raises(
    ValueError, match=rf"release is another network .*heads=4 \(there 2\).*{told}"
  ):
    frozen.load_onto(f"wan:{root}/release", model, like)
  with pytest.raises(FileNotFoundError, match="nothing at nowhere"):
    frozen.load_onto("wan:nowhere", model, like)
  with pytest.raises(ValueError, match="'wan:' names nothing"):
    frozen.load_onto("wan:", model, like)


def check_null(module, root):
  run = setup.build(config_of(root, "tf"))
  text = np.random.default_rng(1).standard_normal((2, TEXT_TOKENS, TEXT_DIM)).astype(np.float32)
  null = module.null_of(run.config, run.loader)(Cond(text=jnp.asarray(text)))
  want = np.zeros((TEXT_TOKENS, TEXT_DIM), np.float32)
  want[:3] = np.random.default_rng(9).standard_normal((3, TEXT_DIM)).astype(np.float16)
  assert null.text_mask is None
  np.testing.assert_array_equal(null.text, np.stack([want, want]))


def test_guidance_compares_with_the_negative_prompt_of_the_data(root, monkeypatch):
  check_null(objectives, root)
  wrong = mutant(objectives, "if not holds_latents(data)", "if True")
  assert_caught(check_null, wrong, root)
  monkeypatch.setattr(objectives, "null_text", lambda *_: None)
  run = setup.build(config_of(root, "tf"))
  with pytest.raises(ValueError, match="no embedded negative prompt"):
    objectives.null_of(run.config, run.loader)(Cond())


@pytest.mark.parametrize("module", [teacher_forcing, tf_dcm, tf_scm, sf_dmd])
@pytest.mark.parametrize("words", ["14b,c1", "1.3b,c3", "tiny"])
def test_shapes_follow_from_a_config_alone(module, words):
  """Nothing is opened: there are neither data nor runs nor weights."""
  run = setup.build(module.get_config(words), data=False)
  assert run.loader is None and run.codec is None
  state = jax.eval_shape(lambda key: run.init(key, {}), jax.random.key(0))
  tiny = words == "tiny"
  assert run.example.x0.shape[1:] == (SHAPE if tiny else (21, 60, 104, 16))
  assert run.example.cond.text.shape[1:] == ((16, 10) if tiny else (512, 4096))
  assert (run.example.cond.clean is not None) == (module is not sf_dmd)
  width = lambda tree: tree["patch_embed"]["kernel"].shape[-1]
  large = {"14b,c1": 5120, "1.3b,c3": 1536, "tiny": 24}[words]
  small = min(large, 1536)
  roles = {role: width(net.params) for role, net in state.nets.items()}
  held = {name: width(tree) for name, tree in run.frozen.items()}
  if module is teacher_forcing:
    assert (roles, held) == ({"model": large}, {})
  elif module is sf_dmd:
    assert (roles, held) == ({"student": small, "fake": large}, {"teacher": large})
  else:
    assert (roles, held) == ({"student": small}, {"teacher": large})
  causal = {name for name in run.models if chunk_of(run.config, name)}
  assert causal == {"model", "student", "teacher"} & {*run.models} - (
    {"teacher"} if module is sf_dmd else set()
  )


def test_words_that_do_not_exist_are_named():
  with pytest.raises(ValueError, match="Unknown argument '7b' of a Wan config: there are"):
    tf_dcm.get_config("7b")


@pytest.mark.parametrize(
  ("module", "key", "value", "told"),
  [
    (teacher_forcing, "data.latent_size", None, "follow from the config: give data.latent_size"),
    (teacher_forcing, "data.text", False, "set data.text to True"),
    (sf_dmd, "nets.fake.param_dtype", "bfloat16", "nets.fake.param_dtype: weights that are"),
    (sf_dmd, "nets.teacher.lora.rank", 2, "nets.teacher.lora: only student, fake can train"),
    (sf_dmd, "nets.teacher.param_dtype", "float8", "param_dtype='float8': choose float32 or"),
  ],
)
def test_what_does_not_fit_is_named(module, key, value, told):
  config = module.get_config("tiny")
  config.update_from_flattened_dict({key: value})
  with pytest.raises(ValueError, match=re.escape(told)):
    setup.build(config, data=False)
