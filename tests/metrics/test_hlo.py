"""Traffic of compiled programs whose traffic is known, over 8 simulated devices."""

import functools

import jax
import jax.numpy as jnp
import pytest
from jax import lax
from jax.sharding import PartitionSpec as P
from mutation import assert_caught, mutant

from vidstep.metrics import hlo
from vidstep.parallel.mesh import make_mesh

DATA, FSDP = 2, 4
ROWS, COLUMNS = 16, 32
SIZE = 4 * ROWS // DATA * COLUMNS  # bytes of x on one device
OUTER, INNER = 5, 3


def everything(x):
  """Each kind of collective once for all, and two of them inside of nested loops."""

  def inner(x, _):
    return lax.ppermute(x, "fsdp", [(i, (i + 1) % FSDP) for i in range(FSDP)]) + 1, None

  def outer(x, _):
    x, _ = lax.scan(inner, x, None, INNER)
    part = lax.psum_scatter(jnp.sin(x), "fsdp", scatter_dimension=1, tiled=True)
    return x + lax.all_gather(jnp.cos(part), "fsdp", axis=1, tiled=True), None

  x, _ = lax.scan(outer, x, None, OUTER)
  x = lax.psum(x, ("data", "fsdp"))
  return lax.all_to_all(jnp.sin(x), "data", 1, 0, tiled=True)


@functools.cache
def program():
  mesh = make_mesh(DATA, FSDP)
  specs = {"in_specs": P("data"), "out_specs": P("data"), "check_vma": False}
  function = jax.shard_map(everything, mesh=mesh, **specs)
  return jax.jit(function).lower(jnp.ones((ROWS, COLUMNS))).compile().as_text()


def check_everything(reader):
  traffic = reader.read_traffic(program(), devices=8, node=4)
  part, rest = SIZE / FSDP, (FSDP - 1) / FSDP
  assert traffic.sent == {
    "collective-permute": OUTER * INNER * SIZE,
    "reduce-scatter": OUTER * rest * SIZE,
    "all-gather": OUTER * (FSDP - 1) * part,
    "all-reduce": 2 * 7 / 8 * SIZE,
    "all-to-all": SIZE / 2,
  }
  assert traffic.counts == {
    "collective-permute": OUTER * INNER,
    "reduce-scatter": OUTER,
    "all-gather": OUTER,
    "all-reduce": 1,
    "all-to-all": 1,
  }
  # Nodes are rows of `fsdp`. The sum crosses once, four devices of a node sharing it; of the trade
  # over `data` all crosses that moves.
  assert traffic.far == 2 * SIZE / 2 / 4 + SIZE / 2
  assert not traffic.notes


def test_what_a_device_sends_is_what_its_collectives_say():
  check_everything(hlo)


@pytest.mark.parametrize(
  ("old", "new"),
  [
    ("return once * times", "return once"),
    ("sent, far = 2 * size * share", "sent, far = size * share"),
    ("share, leaves = (n - 1) / n", "share, leaves = 1"),
    ("sent, far = size * n * share", "sent, far = size * share"),
    ("device // self.node", "device"),
    ("size * (n - each) / n", "0.0"),
  ],
)
def test_a_wrong_reader_is_caught(old, new):
  assert_caught(check_everything, mutant(hlo, old, new))


def test_devices_that_meet_are_read_in_every_way_of_writing_them():
  groups = hlo._Reader({}, 8, 8, 1)._groups
  assert groups("replica_groups={{0,1},{2,3}}, x={}") == [[0, 1], [2, 3]]
  assert groups("replica_groups=[4,2]<=[8]") == [[0, 1], [2, 3], [4, 5], [6, 7]]
  assert groups("replica_groups=[4,2]<=[2,4]T(1,0), y") == [[0, 4], [1, 5], [2, 6], [3, 7]]
  named = "replica_groups=mesh['a'=2,'b'=4] {%s}, dimensions={0}"
  assert groups(named % "'b'") == [[0, 1, 2, 3], [4, 5, 6, 7]]
  assert groups(named % "'a'") == [[0, 4], [1, 5], [2, 6], [3, 7]]
  assert groups(named % "'a','b'") == [list(range(8))]
  assert groups(named % "'b':(1)2") == [[0, 2], [1, 3], [4, 6], [5, 7]]
  assert groups(named % "'b':(2)2") == [[0, 1], [2, 3], [4, 5], [6, 7]]
  assert groups("source_target_pairs={{0,1},{1,0}}") == [[0, 1], [1, 0]]
  assert groups("replica_groups={}") == groups("") == [list(range(8))]


def test_bytes_of_shapes():
  assert hlo.shape_bytes("bf16[8,128]{1,0:T(8,128)(2,1)}") == 2048
  assert hlo.shape_bytes("(f32[3]{0}, (pred[5], s4[4]), token[], f32[])") == 12 + 5 + 2 + 4
  assert hlo.shape_bytes("(f8e4m3fn[7], u32[2]{0:S(1)}, s32[])", main_memory=True) == 7 + 4


TPU = """
HloModule step, is_scheduled=true

%slices (p0: f32[40,64], p1: s32[]) -> f32[1,64] {
  %p0 = f32[40,64]{1,0:T(8,128)} parameter(0)
  %p1 = s32[]{:T(128)} parameter(1)
  ROOT %cut = f32[1,64]{1,0} dynamic-slice(%p0, %p1, %p1), dynamic_slice_sizes={1,64}
}

%stores (q0: f32[40,64], q1: f32[1,64], q2: s32[]) -> f32[40,64] {
  %q0 = f32[40,64]{1,0} parameter(0)
  %q1 = f32[1,64]{1,0} parameter(1)
  %q2 = s32[] parameter(2)
  ROOT %put = f32[40,64]{1,0} dynamic-update-slice(%q0, %q1, %q2, %q2)
}

%near (r0: f32[1,64]) -> f32[1,64] {
  %r0 = f32[1,64]{1,0} parameter(0)
  ROOT %twice = f32[1,64]{1,0} add(%r0, %r0)
}

%body (b: (s32[], f32[40,64])) -> (s32[], f32[40,64]) {
  %b = (s32[]{:T(128)}, f32[40,64]{1,0}) parameter(0)
  %i = s32[]{:T(128)} get-tuple-element(%b), index=0
  %w = f32[40,64]{1,0} get-tuple-element(%b), index=1
  %row = f32[1,64]{1,0:T(1,128)S(1)} fusion(%w, %i), kind=kLoop, calls=%slices
  %row2 = f32[1,64]{1,0:S(1)} fusion(%row), kind=kLoop, calls=%near
  %ag = (f32[1,64]{1,0:S(1)}, f32[4,64]{1,0}) all-gather-start(%row2), replica_groups=[2,4]<=[8]
  %agd = f32[4,64]{1,0} all-gather-done(%ag)
  %new = f32[40,64]{1,0} fusion(%w, %row2, %i), kind=kLoop, calls=%stores
  %one = s32[]{:T(128)} constant(1)
  %next = s32[]{:T(128)} add(%i, %one)
  ROOT %t = (s32[], f32[40,64]{1,0}) tuple(%next, /*index=1*/%new)
}

%condition (c: (s32[], f32[40,64])) -> pred[] {
  %c = (s32[], f32[40,64]{1,0}) parameter(0)
  %ci = s32[] get-tuple-element(%c), index=0
  %n = s32[]{:T(128)} constant(40)
  ROOT %less = pred[]{:T(512)} compare(%ci, %n), direction=LT
}

ENTRY %main (x: f32[40,64]) -> f32[40,64] {
  %x = f32[40,64]{1,0} parameter(0)
  %zero = s32[] constant(0)
  %in = (s32[], f32[40,64]{1,0}) tuple(%zero, %x)
  %loop = (s32[], f32[40,64]{1,0}) while(%in), condition=%condition, body=%body
  ROOT %out = f32[40,64]{1,0} get-tuple-element(%loop), index=1
}
"""


def check_layers(reader):
  traffic = reader.read_traffic(TPU, devices=8)
  row = 4 * 64
  # In each of 40 rounds a row and its number are read, a row is written beside its number, and
  # the number goes up: neither the whole stack, nor what stays in the fast memory, S(1).
  assert traffic.memory == 40 * (row + 4 + row + 4 + 3 * 4)
  assert traffic.sent == {"all-gather": 40 * 3 * row}


def test_a_loop_over_layers_reads_one_layer_at_a_time():
  check_layers(hlo)
  for old, new in [
    ('("dynamic-slice", "slice", "gather"):\n    return shape', '("none",):\n    return shape'),
    ("whole -= shape_bytes(part.shape)", "whole -= 0 * shape_bytes(part.shape)"),
    ('if main_memory and re.search(r"S', 'if False and re.search(r"S'),
    ("return max(-(-(bounds[0] - start) // step), 0)", "return 1"),
  ]:
    assert_caught(check_layers, mutant(hlo, old, new))


def check_steps(reader):
  count = lambda text: reader.read_traffic(text, devices=8).counts["all-gather"]
  assert count(TPU) == 40
  twice = TPU.replace("%one = s32[]{:T(128)} constant(1)", "%one = s32[]{:T(128)} constant(2)")
  assert count(twice) == 20
  assert count(twice.replace("%zero = s32[] constant(0)", "%zero = s32[] constant(5)")) == 18
  fused = twice.replace("add(%i, %one)", "fusion(%i, %one), kind=kLoop, calls=%sum")
  inner = "%sum (a: s32[], b: s32[]) -> s32[] {\n  %a = s32[] parameter(0)\n"
  inner += "  %b = s32[] parameter(1)\n  ROOT %c = s32[] add(%a, %b)\n}\n"
  assert count(inner + fused) == 20


def test_a_loop_that_counts_by_two_runs_half_as_often():
  check_steps(hlo)
  assert_caught(check_steps, mutant(hlo, "// step)", "// 1)"))
  assert_caught(check_steps, mutant(hlo, "bounds[0] - start", "bounds[0]"))


SCATTER = """
%all-reduce-scatter (p: f32[8,96]) -> f32[8,32] {
  %p = f32[8,96]{1,0} parameter(0)
  %zero = f32[] constant(0)
  %padded = f32[8,128]{1,0} pad(%p, %zero), padding=0_0x0_32
  %sum = f32[8,128]{1,0} all-reduce(%padded), replica_groups={{0,1,2,3}}, to_apply=%add
  %at = u32[] partition-id()
  ROOT %own = f32[8,32]{1,0} dynamic-slice(%sum, %at, %at), dynamic_slice_sizes={8,32}
}

ENTRY %main (x: f32[8,96]) -> f32[8,32] {
  %x = f32[8,96]{1,0} parameter(0)
  ROOT %part = f32[8,32]{1,0} fusion(%x), kind=kCustom, calls=%all-reduce-scatter
}
"""


def check_scatter(reader):
  assert reader.read_traffic(SCATTER, devices=4).sent == {"reduce-scatter": 3 / 4 * 4 * 8 * 128}


def test_a_sum_of_which_each_keeps_its_part_is_a_reduce_scatter():
  check_scatter(hlo)
  assert_caught(check_scatter, mutant(hlo, 'kind = "reduce-scatter"', "pass"))


def test_a_loop_of_unknown_length_is_said():
  traffic = hlo.read_traffic(TPU.replace("add(%i, %one)", "add(%i, %i)"), devices=8, loops=2)
  assert traffic.notes == {"a loop of unknown length counts 2 x"}


def test_other_text_is_refused():
  with pytest.raises(ValueError, match="no compiled program"):
    hlo.read_traffic("HloModule nothing", devices=8)


ASYNC_SLICE = """
%cut (p0: bf16[30,8,16], p1: s32[]) -> bf16[1,8,16] {
  %p0 = bf16[30,8,16]{2,1,0} parameter(0)
  %p1 = s32[] parameter(1)
  %zero = s32[] constant(0)
  ROOT %slice = bf16[1,8,16]{2,1,0} dynamic-slice(%p0, %p1, %zero, %zero)
}

ENTRY %main (a: bf16[30,8,16], i: s32[]) -> bf16[1,8,16] {
  %a = bf16[30,8,16]{2,1,0} parameter(0)
  %i = s32[] parameter(1)
  %start = ((bf16[30,8,16], s32[]), bf16[1,8,16]) fusion-start(%a, %i), calls=%cut
  ROOT %done = bf16[1,8,16]{2,1,0} fusion-done(%start)
}
"""


def test_a_slice_that_a_gpu_takes_in_the_background_is_one_slice():
  assert hlo.read_traffic(ASYNC_SLICE, devices=1).memory == pytest.approx(2 * 8 * 16 * 2, abs=8)
