"""Attention as JAX primitives: forward, tangent and backward, with every transformation's rule.

No kernel is ever differentiated; the primitives know each other's derivatives:

    forward          x -> (o, lse)                jvp: forward_tangent
    forward_tangent  x, dx -> (o, lse, do, dlse)  one fused sweep; under grad it splits (fused.py)
    tangent          x, o, lse, dx -> (do, dlse)  linear in dx; its transpose is backward
    backward         x, lse, do, delta -> dx
    second_order     how tangent and backward vary with x: raises if anyone needs its value

with `x = (q, k, v)` and, where the host does not know it, what the mask looks at: traced attributes
or the indices of shards. Only live tangents are operands and only wanted gradients results: `flags`
says which of q, k, v they belong to. So `jax.jvp` costs one sweep, `jax.grad` a forward and a
backward, and the gradient of a loss that holds an output and its stopped tangent a forward_tangent
and a backward.
"""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
from jax.extend.core import Primitive
from jax.interpreters import ad, batching, mlir

from pallas_kernels.attention import HostArray
from vidstep.attention.dispatch import Spec, run

_PLATFORMS = ("cpu", "tpu", "cuda", "rocm")
_ALL = (True, True, True)


def attention_with_lse(x: list[jax.Array], spec: Spec) -> tuple[jax.Array, jax.Array]:
  """Output and log-sum-exp of the call `x = [q, k, v]`, plus traced attributes."""
  o, lse = forward_p.bind(*x, spec=spec, flags=_ALL)
  return o, lse


def _primitive(mode: str) -> Primitive:
  prim = Primitive(f"attention_{mode}")
  prim.multiple_results = True
  prim.def_impl(jax.jit(prim.bind, static_argnames=("spec", "flags")))
  prim.def_abstract_eval(functools.partial(_shapes, mode))
  for platform in _PLATFORMS:
    impl = functools.partial(run, mode=mode, platform=platform)
    mlir.register_lowering(prim, mlir.lower_fun(impl, multiple_results=True), platform=platform)
  batching.primitive_batchers[prim] = functools.partial(_batch, prim)
  return prim


def _shapes(mode, q, k, v, *_, spec, flags):
  if mode == "backward":
    return [_like(x) for x, wanted in zip((q, k, v), flags, strict=True) if wanted]
  wide = jnp.dtype(jnp.float64 if q.dtype == jnp.float64 else jnp.float32)
  lse = jax.core.ShapedArray((q.shape[0], q.shape[2], q.shape[1]), wide)
  return [_like(q), lse] * (2 if mode == "forward_tangent" else 1)


def _like(x):
  return jax.core.ShapedArray(x.shape, x.dtype)


# --- vmap: the mapped axis joins the batch axis -------------------------------------------------
def _batch(prim, args, dims, *, spec: Spec, flags):
  n = next(x.shape[d] for x, d in zip(args, dims, strict=True) if d is not None)
  args = [x if d is None else jnp.moveaxis(x, d, 0) for x, d in zip(args, dims, strict=True)]
  batch = args[0].shape[-4]

  def merge(i, x, mapped):
    info = 3 <= i < spec.inputs
    if info and not mapped and (x.ndim == 0 or x.shape[0] == 1):
      return x  # attributes that all samples share stay so
    x = jnp.broadcast_to(x if mapped else x[None], (n, *x.shape[1 if mapped else 0 :]))
    x = jnp.broadcast_to(x, (n, batch, *x.shape[2:])) if info else x
    return x.reshape(-1, *x.shape[2:])

  def tile(info):
    shared = info is None or info.value.shape[-3] == 1
    return info if shared else HostArray(np.tile(info.value, (n, 1, 1)))

  spec = dataclasses.replace(spec, q_info=tile(spec.q_info), k_info=tile(spec.k_info))
  args = [merge(i, x, d is not None) for i, (x, d) in enumerate(zip(args, dims, strict=True))]
  outs = prim.bind(*args, spec=spec, flags=flags)
  return [x.reshape(n, -1, *x.shape[1:]) for x in outs], [0] * len(outs)


# --- derivatives --------------------------------------------------------------------------------
def _alive(tangents):
  return tuple(type(t) is not ad.Zero for t in tangents)


def _some(values, flags):
  return [x for x, flag in zip(values, flags, strict=True) if flag]


def _spread(flags, values):
  """Flags of q, k, v from flags of those among them that `flags` already selects."""
  values = iter(values)
  return tuple(flag and next(values) for flag in flags)


def _add(a, b):
  return b if type(a) is ad.Zero else a if type(b) is ad.Zero else a + b


def _zeros(outs):
  return [ad.Zero(_like(x)) for x in outs]


def _forward_jvp(primals, tangents, *, spec, flags):
  alive = _alive(tangents[:3])
  if not any(alive):
    outs = forward_p.bind(*primals, spec=spec, flags=flags)
    return outs, _zeros(outs)
  dx = _some(tangents[:3], alive)
  outs = forward_tangent_p.bind(*primals, *dx, spec=spec, flags=alive)
  return outs[:2], outs[2:]


def _tangent_of_tangent(x, o, lse, outs, tangents, ddx, *, spec, flags):
  """Derivative of `(do, dlse)`: exact in dx; a guard stands for how it varies with x, o, lse."""
  result = _zeros(outs)
  alive = _alive(ddx)
  if any(alive):
    ddx = _some(ddx, alive)
    result = tangent_p.bind(*x, o, lse, *ddx, spec=spec, flags=_spread(flags, alive))
  alive = _alive(tangents)
  if any(alive):
    guard = second_order_p.bind(*outs, *_some(tangents, alive), outs=len(outs))
    result = [_add(a, b) for a, b in zip(result, guard, strict=True)]
  return result


def _tangent_jvp(primals, tangents, *, spec, flags):
  n = spec.inputs
  outs = tangent_p.bind(*primals, spec=spec, flags=flags)
  live = [*tangents[:3], *tangents[n : n + 2]]
  x, (o, lse), ddx = primals[:n], primals[n : n + 2], tangents[n + 2 :]
  return outs, _tangent_of_tangent(x, o, lse, outs, live, ddx, spec=spec, flags=flags)


def _forward_tangent_jvp(primals, tangents, *, spec, flags):
  n = spec.inputs
  x, ddx, alive = primals[:n], tangents[n:], _alive(tangents[:3])
  o, lse, *outs = forward_tangent_p.bind(*primals, spec=spec, flags=flags)
  first = _zeros((o, lse))
  if any(alive):
    dx = _some(tangents[:3], alive)
    first = tangent_p.bind(*x, o, lse, *dx, spec=spec, flags=alive)
  second = _tangent_of_tangent(x, o, lse, outs, tangents[:3], ddx, spec=spec, flags=flags)
  return [o, lse, *outs], [*first, *second]


def _tangent_transpose(cts, *args, spec, flags):
  n = spec.inputs + 2
  (o, lse), dx = args[n - 2 : n], args[n:]
  linear = [ad.is_undefined_primal(t) for t in dx]
  if any(_alive(cts)):
    do, dlse = map(ad.instantiate_zeros, cts)
    delta = jnp.einsum("bqhd,bqhd->bhq", do.astype(lse.dtype), o.astype(lse.dtype)) - dlse
    delta = jnp.where(lse > -jnp.inf, delta, 0)  # lse is constant there, whatever is made of -inf
    wanted = _spread(flags, linear)
    grads = iter(backward_p.bind(*args[: n - 2], lse, do, delta, spec=spec, flags=wanted))
    grads = [next(grads) if is_linear else None for is_linear in linear]
  else:
    grads = [
      ad.Zero(t.aval) if is_linear else None for t, is_linear in zip(dx, linear, strict=True)
    ]
  return [None] * n + grads


def _backward_jvp(primals, tangents, *, spec, flags):
  outs = backward_p.bind(*primals, spec=spec, flags=flags)
  alive = _alive(tangents)
  return outs, second_order_p.bind(*outs, *_some(tangents, alive), outs=len(outs))


# --- the guard: passes through linearisation, so that a stopped tangent costs nothing -------------
def _second_order(*_, **__):
  raise NotImplementedError(
    "second derivatives of attention (through a jvp or a grad of it) need implementation='xla'; "
    "if none was meant, stop_gradient the tangent."
  )


def _second_order_batch(args, dims, *, outs):
  n = next(x.shape[d] for x, d in zip(args, dims, strict=True) if d is not None)
  front = lambda x, d: jnp.broadcast_to(x, (n, *x.shape)) if d is None else jnp.moveaxis(x, d, 0)
  args = [front(x, d) for x, d in zip(args, dims, strict=True)]
  return second_order_p.bind(*args, outs=outs), [0] * outs


def _second_order_jvp(primals, tangents, *, outs):
  result = second_order_p.bind(*primals, outs=outs)
  alive = _some(tangents, _alive(tangents))
  return result, second_order_p.bind(*result, *alive, outs=outs)


forward_p = _primitive("forward")
forward_tangent_p = _primitive("forward_tangent")
tangent_p = _primitive("tangent")
backward_p = _primitive("backward")
second_order_p = Primitive("attention_second_order")
second_order_p.multiple_results = True
second_order_p.def_impl(_second_order)
second_order_p.def_abstract_eval(lambda *args, outs: [_like(x) for x in args[:outs]])
mlir.register_lowering(second_order_p, _second_order)
batching.primitive_batchers[second_order_p] = _second_order_batch

ad.primitive_jvps[forward_p] = _forward_jvp
ad.primitive_jvps[forward_tangent_p] = _forward_tangent_jvp
ad.primitive_jvps[tangent_p] = _tangent_jvp
ad.primitive_jvps[backward_p] = _backward_jvp
ad.primitive_jvps[second_order_p] = _second_order_jvp
ad.primitive_transposes[tangent_p] = _tangent_transpose
ad.primitive_transposes[second_order_p] = _second_order
