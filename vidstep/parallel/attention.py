"""Attention over a device mesh: batch, heads and sequence sharded, by ring or by all-to-all.

`ShardedAttention(mesh, ...)` is called like `vidstep.attention.attention`, or given to it, or to a
model, as its `implementation`: who calls attention need not know. Here, and only here, `shard_map`
is opened: the partitioner cannot split a Pallas kernel.
"""

import dataclasses
import functools
import math
from typing import Literal

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.ad_checkpoint import checkpoint_name
from jax.custom_derivatives import SymbolicZero
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from pallas_kernels.attention import HostArray
from vidstep.attention.dispatch import Spec
from vidstep.attention.merge import merge
from vidstep.attention.op import prepare, run
from vidstep.attention.primitives import tangent_p
from vidstep.masks import Rule, TokenInfo
from vidstep.models.remat import MERGED


@dataclasses.dataclass(frozen=True)
class ShardedAttention:
  """`attention` on global arrays `[B, N, heads, D]` sharded over a mesh.

  With `method="ring"` every device keeps its queries and sees the other devices' keys one shard at
  a time, merging by log-sum-exp: any number of heads, N/P keys in memory. With "all_to_all"
  (DeepSpeed-Ulysses) devices trade sequence for heads, attend to the whole sequence, and trade
  back: less traffic, but the heads must divide among the devices. Keys that are not as many as the
  queries (text) are not sharded.

  Attributes:
    mesh: the devices.
    batch: mesh axes that split the batch.
    sequence: mesh axis that splits the tokens; None for none.
    heads: mesh axis that splits the heads; None for none.
    method: how shards of the sequence meet.
    implementation: what runs on each device; see `attention`.
  """

  mesh: Mesh
  batch: tuple[str, ...] = ("data", "fsdp")
  sequence: str | None = None
  heads: str | None = None
  method: Literal["ring", "all_to_all"] = "ring"
  implementation: str | None = None

  def __post_init__(self):
    if self.method not in ("ring", "all_to_all"):
      raise ValueError(f"method={self.method!r}: choose 'ring' or 'all_to_all'.")
    axes = [*self.batch, *filter(None, (self.sequence, self.heads))]
    if missing := set(axes) - set(self.mesh.axis_names):
      raise ValueError(f"the mesh has axes {self.mesh.axis_names}, not {sorted(missing)}.")

  def __call__(
    self,
    q: jax.Array,
    k: jax.Array,
    v: jax.Array,
    mask: Rule | None = None,
    *,
    q_info: TokenInfo | None = None,
    k_info: TokenInfo | None = None,
    scale: float | None = None,
    return_lse: bool = False,
  ) -> jax.Array | tuple[jax.Array, jax.Array]:
    """See `vidstep.attention.attention`.

    Raises:
      ValueError: if batch, heads or tokens do not divide among the devices.
    """
    x, spec = prepare(q, k, v, mask, q_info, k_info, scale, self.implementation)
    self._check(q)
    keys = self.sequence if k.shape[1] == q.shape[1] else None
    x, spec, info_specs = self._place(x, spec, keys)
    key_spec = P(self.batch, keys, self.heads)
    o, lse = jax.shard_map(
      functools.partial(self._local, spec, keys),
      mesh=self.mesh,
      in_specs=(P(self.batch, self.sequence, self.heads), key_spec, key_spec, *info_specs),
      out_specs=(
        P(self.batch, self.sequence, self.heads),
        P(self.batch, self.heads, self.sequence),
      ),
      check_vma=False,
    )(*x)
    return (o, lse) if return_lse else o

  @property
  def shards(self) -> int:
    """Devices that share a sequence."""
    return self._size(self.sequence)

  def whole(self) -> "ShardedAttention":
    """The same for calls of a few samples, whole on every device: only heads are shared."""
    return dataclasses.replace(self, batch=(), sequence=None)

  def place(self, x: jax.Array, *, frames: bool = True) -> jax.Array:
    """Says where activations lie: samples and frames on their devices, channels whole.

    Without it the partitioner may gather them all between two calls of attention, or cut channels
    as it finds weights cut.

    Args:
      x: [B, F, ...]. Frames that do not divide stay together.
      frames: False for [B, L, ...] without frames, such as text: all devices read it.
    """
    sequence = self.sequence if frames and x.shape[1] % self.shards == 0 else None
    place = NamedSharding(self.mesh, P(self.batch, sequence))
    return jax.lax.with_sharding_constraint(x, place)

  def _size(self, *axes: str | None) -> int:
    return math.prod(self.mesh.shape[axis] for axis in axes if axis)

  def _check(self, q: jax.Array):
    trade = self.sequence if self.method == "all_to_all" else None
    parts = {
      "samples": (q.shape[0], self._size(*self.batch)),
      "tokens": (q.shape[1], self._size(self.sequence)),
      "heads": (q.shape[2], self._size(self.heads, trade)),
    }
    for name, (length, devices) in parts.items():
      if length % devices:
        raise ValueError(f"{length} {name} do not divide among {devices} devices: pad, or re-mesh.")

  def _place(self, x: list[jax.Array], spec: Spec, keys: str | None):
    """Decides where the attributes go: host tables by shard if they can, else sharded arrays."""
    q, k, v, *infos = x
    if spec.rule is None:
      return x, spec, ()
    whole = keys is not None and self.method == "all_to_all"
    axes = (None, None) if whole else (self.sequence, keys)
    static = (spec.q_info, spec.k_info)
    if not infos and spec.mask(x).batch == 1:
      if any(axes):
        static = [_table(info, self._size(axis)) for info, axis in zip(static, axes, strict=True)]
      return x, dataclasses.replace(spec, q_info=static[0], k_info=static[1]), ()
    infos = infos or [jnp.asarray(info.value) for info in static]
    specs = [
      P(self.batch if len(info) > 1 else None, None, axis)
      for info, axis in zip(infos, axes, strict=True)
    ]
    return [q, k, v, *infos], dataclasses.replace(spec, q_info=None, k_info=None), specs

  def _local(self, spec: Spec, keys: str | None, *x: jax.Array):
    """What one device does with its shards."""
    if keys is None:
      if spec.sharded:
        x = (*x, lax.axis_index(self.sequence), jnp.int32(0))
      return run(list(x), spec)
    if self.method == "all_to_all":
      return _all_to_all(self.sequence, spec, *x)
    ring = _Ring(spec, self.sequence, self._size(self.sequence))
    return _plain_ring(ring, *x) if spec.implementation == "xla" else _ring(ring, *x)


def _table(info: HostArray, shards: int) -> HostArray:
  """Attributes `[1, F, N]` by shard: `[shards, 1, F, N / shards]`."""
  return HostArray(np.stack(np.split(info.value, shards, axis=-1)))


def _all_to_all(axis: str, spec: Spec, q, k, v, *infos):
  trade = functools.partial(lax.all_to_all, axis_name=axis, tiled=True)
  q, k, v = (trade(x, split_axis=2, concat_axis=1) for x in (q, k, v))
  o, lse = run([q, k, v, *infos], spec)
  return trade(o, split_axis=1, concat_axis=2), trade(lse, split_axis=2, concat_axis=1)


def sharded_attention(
  mesh: Mesh | None, *, method="ring", implementation: str | None = None
) -> ShardedAttention | str | None:
  """Attention for the networks of a run: sharded as its mesh says.

  Args:
    mesh: see `vidstep.parallel.mesh.make_mesh`; None for one device.
    method: see `ShardedAttention`.
    implementation: what runs on each device; see `attention`.

  Returns:
    A `ShardedAttention`; on one device `implementation` itself.

  Raises:
    ValueError: for an unknown method.
  """
  several = lambda axis: axis if mesh.shape[axis] > 1 else None
  if mesh is None or mesh.size == 1:
    return implementation
  return ShardedAttention(
    mesh,
    sequence=several("sequence"),
    heads=several("tensor"),
    method=method,
    implementation=implementation,
  )


# --- ring ---------------------------------------------------------------------------------------
@dataclasses.dataclass(frozen=True)
class _Ring:
  """`size` devices along mesh axis `axis`, each with one shard of queries and of keys."""

  spec: Spec
  axis: str
  size: int

  def send(self, x: jax.Array, hops: int) -> jax.Array:
    """Passes `x` on by `hops` devices: each receives what stood `hops` before it."""
    to = [(i, (i + hops) % self.size) for i in range(self.size)]
    return lax.ppermute(x, self.axis, to) if hops else x

  def step(self, hops: int, q, k, v, *infos) -> list[jax.Array]:
    """x of attention to the keys that stood `hops` devices before this one."""
    if self.spec.sharded:
      here = lax.axis_index(self.axis)
      infos = (here, (here - hops) % self.size)
    elif infos:
      infos = (infos[0], self.send(infos[1], hops))
    return [q, self.send(k, hops), self.send(v, hops), *infos]


def _plain_ring(ring: _Ring, *x: jax.Array) -> tuple[jax.Array, jax.Array]:
  o, lse = run(ring.step(0, *x), ring.spec)
  o = o.astype(lse.dtype)
  for hops in range(1, ring.size):
    o, lse = merge([(o, lse), run(ring.step(hops, *x), ring.spec)])
  return o.astype(x[0].dtype), lse


# Its tangent is the sum over shards of the tangents taken with the *global* o and lse, and so is
# linear pieces whose transposes are the backward kernels: no partial result is kept.
_ring = functools.partial(jax.custom_jvp, nondiff_argnums=(0,))(_plain_ring)


@functools.partial(_ring.defjvp, symbolic_zeros=True)
def _ring_jvp(ring: _Ring, primals, tangents):
  o, lse = (checkpoint_name(a, MERGED) for a in _ring(ring, *primals))
  alive = tuple(not isinstance(t, SymbolicZero) for t in tangents[:3])
  live = [t for t, is_alive in zip(tangents, alive, strict=False) if is_alive]

  @functools.partial(jax.checkpoint, static_argnums=(0,))  # the keys are sent again, not kept
  def piece(hops, x, o, lse, live):
    moves = [name != "q" for name, is_alive in zip("qkv", alive, strict=True) if is_alive]
    live = [ring.send(t, hops) if move else t for t, move in zip(live, moves, strict=True)]
    return tangent_p.bind(*ring.step(hops, *x), o, lse, *live, spec=ring.spec, flags=alive)

  pieces = (piece(hops, primals, o, lse, live) for hops in range(ring.size))
  do, dlse = functools.reduce(
    lambda a, b: jax.tree.map(jnp.add, a, b), ((do.astype(lse.dtype), dlse) for do, dlse in pieces)
  )
  return (o, lse), (do.astype(o.dtype), dlse)
