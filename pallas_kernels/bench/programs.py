"""What is timed: the modes of attention as programs of one kernel, dense XLA, a big matmul."""

from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from pallas_kernels.attention import KERNELS, Kernel, Mask, reference
from pallas_kernels.bench.shapes import Shape

# Matmuls of N x N x D that a mode cannot do without; FLOPs are counted from these for every kernel.
MODES = {
  "forward": 2,  # q k', p v
  "tangent": 5,  # q k', dq k', q dk', h v, p dv
  "forward_tangent": 6,  # both, with one q k'
  "backward": 5,  # q k', do v', ds k, ds' q, p' do
  "forward_backward": 7,
}
PARTS = {
  "forward_tangent": ("forward", "tangent"),
  "forward_backward": ("forward", "backward"),
}


def parts(mode: str) -> tuple[str, ...]:
  """The functions of a kernel that a mode calls."""
  return PARTS.get(mode, (mode,))


def flops(shape: Shape, mode: str) -> float:
  """Floating point operations over attended pairs."""
  return MODES[mode] * 2.0 * shape.pairs * shape.dim


def platform() -> str:
  """What kernels call the platform of the default device."""
  device = jax.devices()[0]
  if device.platform != "gpu":
    return device.platform
  return "rocm" if "rocm" in device.client.platform_version.lower() else "cuda"


# --- dense attention as a kernel: autodiff does what the others do by hand --------------------
def _dense_forward(q, k, v, mask, *, scale):
  return reference.attention(q, k, v, mask.dense(), scale=scale)


def _dense_tangent(q, k, v, o, lse, dq, dk, dv, mask, *, scale):
  return jax.jvp(lambda *x: _dense_forward(*x, mask, scale=scale), (q, k, v), (dq, dk, dv))[1]


def _dense_both(q, k, v, dq, dk, dv, mask, *, scale):
  out = jax.jvp(lambda *x: _dense_forward(*x, mask, scale=scale), (q, k, v), (dq, dk, dv))
  return (*out[0], *out[1])


def _dense_backward(q, k, v, lse, do, delta, mask, *, scale, wanted):
  transpose = jax.vjp(lambda *x: _dense_forward(*x, mask, scale=scale), q, k, v)[1]
  # delta = rowsum(do o) - dlse: what autodiff works out itself is the first part.
  o, _ = _dense_forward(q, k, v, mask, scale=scale)
  dlse = jnp.einsum("bqhd,bqhd->bhq", do.astype(lse.dtype), o.astype(lse.dtype)) - delta
  return transpose((do, dlse))


DENSE = Kernel(
  name="xla",
  platforms=("cpu", "tpu", "cuda", "rocm"),
  forward=_dense_forward,
  tangent=_dense_tangent,
  backward=_dense_backward,
  forward_tangent=_dense_both,
)
NAMES = tuple(dict.fromkeys(kernel.name for kernel in (*KERNELS, DENSE)))


def find(name: str) -> Kernel | str:
  """The kernel of this name for this platform, or why there is none."""
  named = [kernel for kernel in (*KERNELS, DENSE) if kernel.name == name]
  for kernel in named:
    if platform() in kernel.platforms:
      return kernel
  places = dict.fromkeys(place for kernel in named for place in kernel.platforms)
  return f"it runs on {' and '.join(places)}, not on {platform()}"


def refusal(kernel: Kernel, mode: str, shape: Shape, dtype: jnp.dtype) -> str | None:
  """Why a kernel does not support a call, in its own words, or None."""
  spec = arguments(shape, dtype)
  reasons = (kernel.refuses(part, spec["q"], spec["k"], shape.mask) for part in parts(mode))
  return next(filter(None, reasons), None)


# --- programs ---------------------------------------------------------------------------------
def arguments(shape: Shape, dtype: jnp.dtype) -> dict[str, jax.ShapeDtypeStruct]:
  """Everything a mode may take, as shapes and dtypes."""
  mask = shape.mask
  token = lambda n: jax.ShapeDtypeStruct((shape.batch, n, shape.heads, shape.dim), dtype)
  row = jax.ShapeDtypeStruct((shape.batch, shape.heads, mask.q_len), jnp.float32)
  queries = dict.fromkeys(("q", "dq", "o", "do"), token(mask.q_len))
  keys = dict.fromkeys(("k", "v", "dk", "dv"), token(mask.k_len))
  return queries | keys | {"lse": row, "delta": row}


def draw(shape: Shape, dtype: jnp.dtype) -> dict[str, jax.Array]:
  """Standard-normal arguments, and about the log-sum-exp that such logits have.

  Time does not depend on the values, as long as none is NaN or denormal.
  """
  keys = jax.random.split(jax.random.key(0), 10)
  spec = arguments(shape, dtype)
  x = {
    name: jax.random.normal(key, spec[name].shape, spec[name].dtype)
    for name, key in zip(spec, keys, strict=True)
  }
  return x | {"lse": x["lse"] / 100 + float(np.log(shape.mask.k_len)) + 0.5}


def program(kernel: Kernel, mode: str, mask: Mask, scale: float) -> Callable:
  """A function of `arguments` that runs one mode of a kernel."""
  call = {"mask": mask, "scale": scale}

  def forward(x):
    return kernel.forward(x["q"], x["k"], x["v"], **call)

  def tangent(x, o=None, lse=None):
    residuals = (x["o"], x["lse"]) if o is None else (o, lse)
    rest = (x[name] for name in ("dq", "dk", "dv"))
    return kernel.tangent(x["q"], x["k"], x["v"], *residuals, *rest, **call)

  def forward_tangent(x):
    if kernel.forward_tangent is None:
      o, lse = forward(x)
      return o, lse, *tangent(x, o, lse)
    return kernel.forward_tangent(*(x[name] for name in ("q", "k", "v", "dq", "dk", "dv")), **call)

  def backward(x, lse=None, delta=None):
    rows = (x["lse"], x["do"], x["delta"]) if lse is None else (lse, x["do"], delta)
    return kernel.backward(x["q"], x["k"], x["v"], *rows, wanted=(True, True, True), **call)

  def forward_backward(x):
    o, lse = forward(x)
    delta = jnp.einsum("bqhd,bqhd->bhq", x["do"].astype(lse.dtype), o.astype(lse.dtype))
    return o, lse, *backward(x, lse, delta)

  modes = (forward, tangent, forward_tangent, backward, forward_backward)
  return {function.__name__: function for function in modes}[mode]


def matmul(a: jax.Array, b: jax.Array) -> jax.Array:
  """The chip's peak is what this reaches; float32 at the precision that kernels use."""
  precision = None if a.dtype == jnp.bfloat16 else lax.Precision.HIGHEST
  return jnp.dot(a, b, precision=precision)
