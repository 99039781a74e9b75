"""Counts the floating-point operations of a traced function: what its matrix multiplies cost.

Read from the jaxpr, so that nothing is compiled and what a compiler's own count leaves out is in:
a `scan` counts its body times its length (XLA counts it once), rematerialisation counts what is
computed again, and tangents and gradients are whatever tracing made of them. Elementwise work is
not counted: utilisation is measured against the peak of the matrix units, and theirs is the work.
"""

import dataclasses
import math
from collections.abc import Callable
from typing import Any

import jax
from jax.extend.core import jaxprs_in_params
from jax.interpreters import partial_eval as pe

from pallas_kernels.attention import HostArray, Mask
from vidstep.attention.dispatch import Spec


@dataclasses.dataclass(frozen=True)
class Flops:
  """Floating-point operations, a multiply-add being two.

  Attributes:
    dots: of matrix multiplies.
    convolutions: of convolutions; multiplies with padding count.
    attention: of the attention primitives, attended pairs only.
    notes: what had to be guessed, one sentence each; empty if the count is exact.
  """

  dots: float = 0.0
  convolutions: float = 0.0
  attention: float = 0.0
  notes: frozenset[str] = frozenset()

  @property
  def total(self) -> float:
    """All of them."""
    return self.dots + self.convolutions + self.attention

  def __add__(self, other: "Flops") -> "Flops":
    return Flops(
      self.dots + other.dots,
      self.convolutions + other.convolutions,
      self.attention + other.attention,
      self.notes | other.notes,
    )

  def __mul__(self, times: float) -> "Flops":
    counts = (times * n for n in (self.dots, self.convolutions, self.attention))
    return Flops(*counts, self.notes)


def count_flops(function: Callable, *args: Any, loops: float = 1.0) -> Flops:
  """Operations of one call `function(*args)`, on all devices together.

  Args:
    function: traceable; a `jax.jit` function or not.
    *args: arrays, `ShapeDtypeStruct`s, or pytrees of them: only shapes are read.
    loops: see `jaxpr_flops`.

  Returns:
    `Flops`. Inside a `shard_map` they are one device's times the devices of its mesh axes:
    work that those repeat counts as often as it is done.
  """
  return jaxpr_flops(jax.make_jaxpr(function)(*args).jaxpr, loops=loops)


def jaxpr_flops(jaxpr: Any, *, loops: float = 1.0) -> Flops:
  """Operations of a jaxpr (open or closed); what nothing reads is left out, as compilers do.

  A `cond` counts its dearest branch, a `while` its body as often as `loops` says: both are noted.

  Args:
    jaxpr: the program.
    loops: how often loops run whose length is known when they run (a rollout of random depth).
  """
  jaxpr = getattr(jaxpr, "jaxpr", jaxpr)
  live, _ = pe.dce_jaxpr(jaxpr, [True] * len(jaxpr.outvars))
  return _walk(live, loops)


def _walk(jaxpr, loops) -> Flops:
  jaxpr = getattr(jaxpr, "jaxpr", jaxpr)
  return sum((_equation(eqn, loops) for eqn in jaxpr.eqns), Flops())


def _equation(eqn, loops) -> Flops:
  name, params = eqn.primitive.name, eqn.params
  if name in _COUNTED:
    return _COUNTED[name](eqn)
  inner = [_walk(jaxpr, loops) for jaxpr in jaxprs_in_params(params)]
  if name == "scan":
    return inner[0] * params["length"]
  if name == "shard_map":
    sizes, manual = dict(params["mesh"].shape), params.get("manual_axes", ())
    return inner[0] * math.prod(sizes[axis] for axis in manual or sizes)
  if name == "cond":
    dearest = max(inner, key=lambda flops: flops.total)
    unequal = len({flops.total for flops in inner}) > 1
    note = {"of a cond, the dearest branch is counted"} if unequal else set()
    return dataclasses.replace(dearest, notes=dearest.notes | note)
  if name == "pallas_call":
    return Flops(notes=frozenset({"a Pallas kernel is not counted"}))
  total = sum(inner, Flops())
  if name == "while" and total.total:
    return total * loops + Flops(notes=frozenset({f"a loop of unknown length counts {loops:g} x"}))
  return total


# --- what multiplies matrices -------------------------------------------------------------------
def _dot(eqn) -> Flops:
  (contracted, _), _ = eqn.params["dimension_numbers"]
  shape = eqn.invars[0].aval.shape
  return Flops(dots=2.0 * eqn.outvars[0].aval.size * math.prod(shape[i] for i in contracted))


def _convolution(eqn) -> Flops:
  kernel, spec = eqn.invars[1].aval.shape, eqn.params["dimension_numbers"].rhs_spec
  terms = math.prod(kernel) / kernel[spec[0]]  # in one number of the output
  terms /= eqn.params["batch_group_count"]
  return Flops(convolutions=2.0 * eqn.outvars[0].aval.size * terms)


def _attention(eqn) -> Flops:
  """2 D operations for each matrix multiply of a kernel's contract and each attended pair."""
  spec, flags = eqn.params["spec"], eqn.params["flags"]
  q, k = (x.aval for x in eqn.invars[:2])
  pairs, notes = _pairs(spec, q, k)
  each = 2.0 * q.shape[-1] * _multiplies(eqn.primitive.name, flags)
  return Flops(attention=each * pairs, notes=notes)


def _multiplies(name: str, flags: tuple[bool, bool, bool]) -> int:
  """Matrix multiplies a pair; see `pallas_kernels.attention` for the formulas."""
  q, k, v = flags
  if name == "attention_forward":
    return 2  # q k', P v
  if name == "attention_backward":
    return 1 + (q or k) + q + k + v  # q k', do v', ds k, ds' q, P' do
  tangent = q + k + (q or k) + v  # dq k', q dk', H v, P dv
  return tangent + (2 if name == "attention_forward_tangent" else 1)


def _pairs(spec: Spec, q, k) -> tuple[float, frozenset[str]]:
  """Attended pairs over batch and heads, and what was guessed."""
  rows, everyone = q.shape[0] * q.shape[2], float(q.shape[1] * k.shape[1])
  if spec.rule is None:
    return rows * everyone, frozenset()
  if spec.q_info is None:
    return rows * everyone, frozenset({"a mask is known when it runs: all its pairs are counted"})
  masks = [spec.mask([q, k, None])] if not spec.sharded else _shards(spec, q, k)
  return rows * sum(mask.pairs() / mask.batch for mask in masks) / len(masks), frozenset()


def _shards(spec: Spec, q, k) -> list[Mask]:
  """The mask of every shard of queries with every shard of keys.

  Which of them meet is known on the device alone: in a ring each pair does, once.
  """
  mask = spec.mask([q, k, None, None, None])
  parts = lambda info: [HostArray(part) for part in info.value]
  return [
    dataclasses.replace(mask, q_info=of_q, k_info=of_k, at=None)
    for of_q in parts(spec.q_info)
    for of_k in parts(spec.k_info)
  ]


_COUNTED = {"dot_general": _dot, "conv_general_dilated": _convolution}
_MODES = ("forward", "forward_tangent", "tangent", "backward")
_COUNTED |= {f"attention_{mode}": _attention for mode in _MODES}
