"""Attention kernels: one interface, several machines.

This is the contract between `vidstep.attention`, which turns kernels into a differentiable op, and
whoever writes one. `chunked.py` is a complete kernel in 250 lines of plain JAX: read it as the
executable specification. A kernel is three functions, pure and never differentiated themselves.

Shapes. `q [B, Nq, H, D]`, `k, v [B, Nk, H, D]` in one dtype (float32, bfloat16; float64 only
plain JAX); `Nk` differs from `Nq` in cross-attention; no length is a multiple of anything. A kernel
that wants `[B*H, N, D]` transposes in its wrapper. Row statistics `lse`, `delta`, `dlse` are
`[B, H, Nq]`, float32 (float64 for float64). Accumulate in float32; tangents and
gradients come in and go out in the dtype of the array they belong to.

    S = scale q k'      P = softmax(S) over the allowed keys      lse = log sum exp S

`forward(q, k, v, mask, *, scale) -> (o, lse)`
    `o = P v`. A row that may attend to nothing: `o = 0`, `lse = -inf`.

`tangent(q, k, v, o, lse, dq, dk, dv, mask, *, scale) -> (do, dlse)`
    With `P = exp(S - lse)`, `dS = scale (dq k' + q dk')`, `H = P * dS`:
    `do = H v - rowsum(H) o + P dv` and `dlse = rowsum(H)`.
    A dead tangent is None: drop its matmul and its loads. At least one is alive.
    Rows that attend to nothing: zeros (lse is -inf there: mask P, do not multiply).

`backward(q, k, v, lse, do, delta, mask, *, scale, wanted) -> (dq, dk, dv)`
    The transpose of the tangent. With `delta = rowsum(do * o) - dlse` (given):
    `ds = P * (do v' - delta)`, `dq = scale ds k`, `dk = scale ds' q`, `dv = P' do`.
    `wanted` is three bools; what is not wanted is returned as None and costs nothing.

`forward_tangent(q, k, v, dq, dk, dv, mask, *, scale) -> (o, lse, do, dlse)`, or None
    Both in one sweep over K and V, six matmuls instead of seven: used where a jvp is asked for.

The mask is a `Mask` (`mask.py`): `mask.rule is None` for dense attention; else
`mask.rule(q_fields, k_fields) -> bool` on the fields of `mask.q_info`, `mask.k_info` (int32
`[B or 1, F, N]`), sliced and reshaped by the kernel so that they broadcast to the tile
(`[bq, 1]` against `[1, bk]`). The rule uses operators only and may be traced inside a kernel.
`mask.tiles(block_q, block_k)` gives the `TileMap` for tile sizes of the kernel's own choice: which
tiles to touch and which of them need no rule. It lists no empty tile, and calls a tile that
sticks out past the last key or query partial. Its arrays are NumPy, ready for scalar prefetch; for
traced attributes (`mask.static` is False) all tiles are listed as partial, and a kernel may test
`rule(...).any()` before the matmuls. On sharded sequences the lists themselves may be traced.

`refuses(mode, q, k, mask) -> str | None` says why a call is not supported ("head dim 80 is not a
multiple of 64"), looking at shapes and dtypes only; `mode` is "forward", "tangent" or "backward".
It is asked while tracing: a kernel never discovers inside itself that it cannot.

A kernel that was never run on its hardware is `experimental`: it is used when named, never by
default. To run a TPU kernel in the interpreter, give it a name of its own with platform "cpu".
"""

from pallas_kernels.attention import chunked, cudnn, gpu, tpu
from pallas_kernels.attention.kernel import Kernel
from pallas_kernels.attention.mask import HostArray, Mask, TileMap

__all__ = ["KERNELS", "HostArray", "Kernel", "Mask", "TileMap"]

# Best first; one name may have an entry for each platform. The interpreted twin of the TPU kernel
# stays out: it is for tests.
KERNELS = (*chunked.KERNELS, tpu.KERNELS[0], *gpu.KERNELS, *cudnn.KERNELS)
