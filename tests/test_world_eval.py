"""The world table on the synthetic world, from networks of random weights: all but the training."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from mutation import assert_caught, mutant

from configs import common
from configs.doom import world_eval
from experiments import generate, world_bench, world_picture, world_rollout, world_table
from experiments.flags import check_keys
from experiments.world_rollout import Player
from vidstep.causal.packed import PackedNetwork
from vidstep.causal.rollout import rollout
from vidstep.data.synthetic import BUTTONS
from vidstep.losses import Batch
from vidstep.models.codec import pixel_codec
from vidstep.models.cond import Cond
from vidstep.models.dit import VideoDiT
from vidstep.models.velocity import velocity_fn

pytestmark = pytest.mark.usefixtures("unoptimized")
DATA = "synthetic:clips=24,frames=24,size=16"
CONTEXT, FRAMES = 2, 5


MODEL = VideoDiT(dim=16, heads=2, depth=1, patch=(1, 4, 4), action_dim=len(BUTTONS))


@jax.jit
def weights():
  """Random ones."""
  cond = Cond(actions=jnp.zeros((1, FRAMES, len(BUTTONS))))
  init = MODEL.init(jax.random.key(1), jnp.zeros((1, FRAMES, 16, 16, 3)), jnp.zeros(1), cond=cond)
  leaves, tree = jax.tree.flatten(init["params"])
  keys = jax.random.split(jax.random.key(2), len(leaves))
  noisy = [p + 0.1 * jax.random.normal(k, p.shape) for p, k in zip(leaves, keys, strict=True)]
  return jax.tree.unflatten(tree, noisy)


def network(name, *, chunk=None):
  """A `Network` of random weights that lives in no file; causal if it has a chunk."""
  config = common.base().to_dict()
  config["data"] |= {"path": DATA, "frames": FRAMES, "context": CONTEXT}
  config["causal"]["chunk"] = chunk
  config["nets"] = {"model": {"causal": None}}
  return generate.Network(f"{name}:model", config, MODEL, weights(), pixel_codec())


@pytest.fixture(scope="module")
def networks():
  return {"whole": network("runs/x/whole"), "causal": network("runs/x/causal", chunk=1)}


@pytest.fixture(scope="module")
def recorded():
  return world_bench.episodes(DATA, "test")


def player(networks, name, **kwargs):
  return Player(networks[name], generate.Setting("consistency", 2, times=(0.6,)), **kwargs)


def conditions(recorded, count=3, frames=CONTEXT + 7):
  return world_bench.take(world_bench.windows(recorded, frames), slice(count))


# ------------------------------------------------------------------------------------------------
# Clips
# ------------------------------------------------------------------------------------------------


def stored(episode, start, frames):
  """A stored clip whose pixels are the number of the frame."""
  number = np.arange(start, start + frames, dtype=np.uint8)
  video = np.broadcast_to(number[:, None, None, None], (frames, 4, 4, 3))
  return {
    "video": video,
    "actions": np.float32(number)[:, None],
    "episode": episode,
    "start": start,
  }


def test_clips_of_an_episode_are_joined_in_order_and_parted_at_gaps():
  clips = [stored(1, 4, 4), stored(0, 0, 4), stored(1, 0, 4), stored(1, 12, 4)]
  found = world_bench.episodes(clips, "test")
  assert [(e["episode"], e["video"][:, 0, 0, 0].tolist()) for e in found] == [
    (0, [0, 1, 2, 3]),
    (1, list(range(8))),
    (1, [12, 13, 14, 15]),
  ]
  cut = world_bench.windows(found, 3)
  assert cut["actions"][..., 0].tolist() == [[0, 1, 2], [0, 1, 2], [3, 4, 5], [12, 13, 14]]
  each = world_bench.anywhere(found, 5, seed=0)
  assert each["episode"].tolist() == [1]
  np.testing.assert_array_equal(np.diff(each["actions"][0, :, 0]), 1)


def test_conditions_share_no_episode_with_the_reference():
  chosen, other = world_bench.hold_out(DATA, clips=4, length=20, reference_length=8, seed=0)
  assert len(set(chosen["episode"])) == 4
  assert len(other["video"]) == 16
  assert not set(chosen["episode"]) & set(other["episode"])


def test_too_few_or_too_short_episodes_are_told():
  with pytest.raises(ValueError, match=r"the longest has 24.*lower config.clips or config.long"):
    world_bench.hold_out(DATA, clips=4, length=25, reference_length=8, seed=0)
  with pytest.raises(ValueError, match=r"The other test episodes .* hold 0 clips"):
    world_bench.hold_out(DATA, clips=24, length=20, reference_length=8, seed=0)


def test_a_small_run_takes_what_there_is():
  one = "synthetic:clips=1,frames=12,size=16"
  chosen, other = world_bench.hold_out(
    one, clips=3, length=8, reference_length=4, seed=0, small=True
  )
  assert len(chosen["video"]) == len(other["video"]) == 3
  few = {"frames": (16, 32), "long": 100, "hold_frames": 10}
  assert world_bench.cut_down(few, one, 2) == {"frames": (10,), "long": 10, "hold_frames": 10}


# ------------------------------------------------------------------------------------------------
# Rollouts
# ------------------------------------------------------------------------------------------------


def test_a_causal_player_is_one_rollout_over_the_packed_video(networks, recorded):
  """Call after call behind a bounded cache = the teacher-forced forward of everything at once."""
  who, clips = networks["causal"], conditions(recorded)
  play = player(networks, "causal", batch=3, window=16)
  video = play.play(clips, 6, seed=5)

  first = jax.random.fold_in(jax.random.key(5), 0)
  noise, keys = [], []
  for call in range(2):
    noise_key, key = jax.random.split(jax.random.fold_in(first, call))
    noise.append(jax.random.normal(noise_key, (3, 3, 16, 16, 3)))
    keys.append(key)
  latents = jnp.asarray(clips["video"][:, :CONTEXT], jnp.float32) / 127.5 - 1
  packed = PackedNetwork(velocity_fn(who.model, chunk=1), 1)
  cond = Cond(actions=jnp.asarray(clips["actions"][:, : CONTEXT + 6]), context=latents)
  like = jax.ShapeDtypeStruct((3, 6, 16, 16, 3), jnp.float32)
  cache, parts = world_rollout.begin(packed, who.params, like, cond), []
  for call in range(2):
    now = Cond(actions=cond.actions[:, CONTEXT + 3 * call : CONTEXT + 3 * call + 3])
    part, cache = rollout(
      packed, who.params, noise[call], now, keys[call], chunk=1, times=(1.0, 0.6), cache=cache
    )
    parts.append(part)
  expected = generate.make_decoder(who)(jnp.concatenate(parts, axis=1))
  assert np.abs(video.astype(int) - np.asarray(expected).astype(int)).max() <= 1


def obeys_in_time(networks, recorded, module=world_rollout):
  """An action reaches its own frame and later ones (its own clip, if that is made at once)."""
  clips, at = conditions(recorded, count=2), 4
  changed = clips | {"actions": clips["actions"].copy()}
  changed["actions"][:, CONTEXT + at] *= -1
  for name, untouched in (("whole", 3), ("causal", at)):
    setting = generate.Setting("consistency", 2, times=(0.6,))
    play = module.Player(networks[name], setting, batch=2)
    one, two = (play.play(c, 6, seed=0) for c in (clips, changed))
    np.testing.assert_array_equal(one[:, :untouched], two[:, :untouched])
    assert all((one[:, f] != two[:, f]).any() for f in range(at, 6))


def test_actions_act_in_time(networks, recorded):
  obeys_in_time(networks, recorded)


def test_an_action_that_came_a_frame_early_would_be_caught(networks, recorded):
  broken = mutant(world_rollout, "first, k = n + call * size", "first, k = n + 1 + call * size")
  assert_caught(obeys_in_time, networks, recorded, broken)


def test_rollouts_do_not_depend_on_how_many_are_made_at_a_time(networks, recorded):
  clips = conditions(recorded, count=3)
  one = player(networks, "causal", batch=2).play(clips, 4, seed=0)
  assert one.shape == (3, 4, 16, 16, 3) and one.dtype == np.uint8
  two = player(networks, "causal", batch=2).play(world_bench.take(clips, slice(2)), 6, seed=0)
  np.testing.assert_array_equal(one[:2], two[:, :4])


def test_forwards_count_cache_writes_and_guidance(networks):
  two = generate.Setting("euler", 2)
  assert Player(networks["whole"], two).forwards == 2 / 3
  assert Player(networks["causal"], two).forwards == 3
  assert Player(networks["causal"], two, "last_step").forwards == 2
  assert Player(networks["causal"], generate.Setting("euler", 2, guidance=2.0)).forwards == 6


def test_players_say_what_they_cannot_do(networks, recorded):
  with pytest.raises(ValueError, match="is not causal"):
    Player(networks["whole"], generate.Setting(), "last_step")
  with pytest.raises(ValueError, match="do not reach frame 22"):
    player(networks, "causal").play(conditions(recorded), 20, seed=0)


# ------------------------------------------------------------------------------------------------
# The table
# ------------------------------------------------------------------------------------------------

ROWS = (
  {"name": "whole 2", "network": "whole", "solver": "euler", "steps": 2},
  {"name": "causal 1", "network": "causal", "solver": "consistency", "steps": 1},
  {"name": "late", "network": "causal", "solver": "consistency", "steps": 1, "late": 1},
)


def config():
  made = common.world()
  made.networks = {"whole": "{runs}/whole:model", "causal": "{runs}/causal:model"}
  made.update(runs="runs/x", rows=ROWS, clips=4, long_clips=2, batch=4, long=20, frames=(6, 10))
  made.update(next_clips=4, i3d_frames=(), latency_runs=1, resamples=20)
  made.update(
    reader_steps=3, reader_clips=8, hold_frames=3, hold_clips=2, shown=1, picture=("causal 1",)
  )
  made.hold.update(left="LEFT", right="RIGHT", forward="UP")
  return made.to_dict()


@pytest.fixture
def from_memory(networks, monkeypatch):
  by_reference = {f"runs/x/{name}:model": who for name, who in networks.items()}
  monkeypatch.setattr(generate, "open_network", by_reference.__getitem__)


def test_every_row_is_judged_written_and_kept(from_memory, tmp_path, monkeypatch):
  rows = world_table.evaluate(config(), tmp_path)
  assert list(rows) == ["real", "codec", "repeat last frame", "whole 2", "causal 1", "late"]
  data = json.loads((tmp_path / "world.json").read_text())
  assert list(data["rows"]) == list(rows)
  text = (tmp_path / "table.md").read_text()
  for phrase in ("Real against real", "real, actions shifted by one", "chance", "NFE a frame"):
    assert phrase in text
  for name in ("drift.png", "picture.png", "idm.npz"):
    assert (tmp_path / name).stat().st_size > 1000
  real, still, causal = (rows[name] for name in ("real", "repeat last frame", "causal 1"))
  assert real["near"]["psnr"]["value"] == 100
  assert still["distances"]["10"]["motion"]["value"] == 0
  assert len(causal["drift"]["distance"]) == 10
  assert causal["nfe"] == 2 and set(causal["latency"]) == {"denoise", "append", "decode", "total"}
  assert causal["turns"]["apart"] > 0
  assert "turns" not in rows["late"] and rows["late"]["near"] != causal["near"]
  assert causal["obeys"]["frames"] == 4 * 10

  # A second run generates nothing; a changed row alone is filled.
  monkeypatch.setattr(Player, "play", None)
  assert json.dumps(world_table.evaluate(config(), tmp_path)) == json.dumps(rows)
  few = world_table.evaluate(config(), tmp_path, rows=["2"])
  assert list(few)[3:] == ["causal 1"]


def test_a_missing_network_names_its_stage(monkeypatch):
  rows = world_table.select(ROWS, None)
  with pytest.raises(FileNotFoundError) as error:
    world_table.open_players(config(), rows)
  for part in ("Row 'whole 2' needs runs/x/whole:model", "--stages=whole", "causal_rcm.py"):
    assert part in str(error.value)


def test_rows_are_checked():
  assert list(world_table.select(ROWS, ["late", "1"])) == ["whole 2", "late"]
  for rows, wanted, sentence in (
    (ROWS, ["4"], "numbers from 1 to 3"),
    (({"name": "a", "step": 2},), None, "has the key 'step'"),
    ((ROWS[0], ROWS[0]), None, "a name of its own"),
    ((), None, "no rows"),
  ):
    with pytest.raises(ValueError, match=sentence):
      world_table.select(rows, wanted)
  with pytest.raises(ValueError, match="names the network 'x'"):
    world_table.open_players(config(), {"a": {"name": "a", "network": "x"}})


def test_a_key_that_the_world_lacks_is_named():
  with pytest.raises(ValueError, match=r"'JUMP'.*LEFT, RIGHT, UP, DOWN"):
    world_bench.hold(BUTTONS, {"left": "JUMP"})
  held = world_bench.hold(BUTTONS, {"forward": "UP", "left": "LEFT", "right": ""})
  assert list(held) == ["left", "forward"]
  np.testing.assert_array_equal(held["left"], [1, -1, -1, -1])


@pytest.mark.parametrize("arg", ["cpu", "gpu"])
def test_the_configs_are_whole(arg):
  made = world_eval.get_config(arg).to_dict()
  check_keys(made, common.world)
  rows = world_table.select(made["rows"], None)
  assert {row["network"] for row in rows.values()} == set(made["networks"])
  assert set(made["picture"]) <= set(rows)
  assert sum("late" in row for row in rows.values()) == 1


def test_keys_are_drawn_where_they_are_down():
  video = np.full((1, 2, 16, 16, 3), 99, np.uint8)
  actions = np.full((1, 2, 2), -1.0)
  actions[0, 1, 0] = 1
  drawn = world_picture.with_keys(video, actions, ("TURN_LEFT", "FIRE"))
  assert drawn.shape == (1, 2, 48, 48, 3)
  assert (drawn[0, 0] == 99).all() and (drawn[0, 1] == 255).any()


def test_batches_carry_their_condition_to_the_network(networks):
  clips = {
    "video": np.zeros((2, FRAMES, 16, 16, 3), np.uint8),
    "actions": np.ones((2, FRAMES, 4), np.float32),
  }
  batch = networks["causal"].prepare(clips)
  assert isinstance(batch, Batch) and batch.cond.context.shape[1] == CONTEXT
