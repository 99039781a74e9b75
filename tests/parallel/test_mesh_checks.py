"""A network that does not fit its mesh is refused in one sentence, before anything is traced."""

import pytest

from vidstep.models.dit import VideoDiT
from vidstep.parallel.attention import ShardedAttention, sharded_attention
from vidstep.parallel.checks import check_network, check_rules
from vidstep.parallel.mesh import make_mesh
from vidstep.parallel.sharding import PRESETS
from vidstep.releases import WAN

SMALL = VideoDiT(**WAN["wan2.1-t2v-1.3b"].fields)


def check(sizes, *, method="ring", model=SMALL, frames=21, size=(60, 104), **how):
  attend = sharded_attention(make_mesh(*sizes), method=method)
  check_network("student", model.clone(attention=attend), frames=frames, size=size, **how)


@pytest.mark.parametrize(
  ("sizes", "how", "message"),
  [
    ((1, 1, 1, 8), {}, r"student: mesh.tensor=8 does not divide model.heads=12: choose one of "
     r"\[1, 2, 3, 4, 6, 12\]\."),
    ((1, 1, 8, 1), {"frames": 24, "method": "all_to_all"},
     r'share of 12 heads, which mesh.sequence=8 .* or mesh.sequence_method="ring"'),
    ((1, 1, 4, 2), {"frames": 24, "method": "all_to_all"}, r"share of 6 heads, .* \[1, 2, 3, 6\]"),
    ((1, 1, 8, 1), {"size": (60, 90)}, r"mesh.sequence=8 divides neither the 21 latent frames of a "
     r"video nor the 1350 tokens of each: choose data.frames=16 or 24, or mesh.sequence among "
     r"\[1, 2, 3, 5, 6, 7, 9, .*\]\."),
    ((1, 1, 8, 1), {"frames": 16, "context": 1, "teacher_forced": True, "size": (60, 90)},
     r"the 1 \+ 16 latent frames of a video .*: choose mesh.sequence among \[1, 2, 3, 5, 6, 9, 10"),
    ((1, 1, 8, 1), {"frames": 8, "model": SMALL.clone(patch=(4, 2, 2)), "size": (60, 90)},
     "in patches of 4 nor"),
    ((2, 1, 4, 1), {"frames": 24, "size": (2, 2), "chunks": (1,)},
     r"does not divide the 1 tokens that it generates together: choose one of \[1\]"),
  ],
)  # fmt: skip
def test_what_does_not_divide_is_said_with_what_does(sizes, how, message):
  with pytest.raises(ValueError, match=message):
    check(sizes, **how)


def test_what_divides_passes():
  check((8, 1, 1, 1))
  check((1, 2, 1, 4), frames=21)
  check((1, 1, 4, 2), frames=20, context=4, teacher_forced=True)
  check((1, 1, 8, 1))  # of each of 21 frames 195 tokens a device
  check((2, 1, 4, 1), frames=24, method="all_to_all", chunks=(3, 3))
  check_network("student", SMALL, frames=21, size=(60, 104))


def test_a_mesh_of_one_device_leaves_attention_alone():
  one = make_mesh(devices=make_mesh().devices.ravel()[:1])
  assert sharded_attention(one, implementation="xla") == "xla"
  assert sharded_attention(None) is None


def test_attention_uses_the_axes_that_there_are():
  attend = sharded_attention(make_mesh(2, 1, 2, 2), method="all_to_all", implementation="xla")
  want = {"sequence": "sequence", "heads": "tensor", "method": "all_to_all"}
  assert attend == ShardedAttention(attend.mesh, **want, implementation="xla")
  assert attend.shards == 2 and attend.whole().shards == 1 and attend.whole().batch == ()
  plain = sharded_attention(make_mesh())
  assert (plain.sequence, plain.heads, plain.shards) == (None, None, 1)
  with pytest.raises(ValueError, match="choose 'ring' or 'all_to_all'"):
    sharded_attention(make_mesh(), method="star")


def test_whole_matrices_on_a_tensor_axis_are_refused():
  mesh = make_mesh(tensor=2)
  cut = {name for name in PRESETS if "tensor" in name}
  for name in PRESETS:
    if name in cut:
      check_rules(mesh, name)
      continue
    with pytest.raises(ValueError, match=r'mesh.tensor=2 with mesh.rules=.*: choose "tensor"'):
      check_rules(mesh, name)
  check_rules(make_mesh(), "fsdp")
  with pytest.raises(ValueError, match="choose one of"):
    check_rules(mesh, "ddp")
