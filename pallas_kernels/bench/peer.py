"""Times the public Triton kernel of NVlabs/rcm beside ours, from a file the user brings.

The file is `rcm/utils/flash_attention_jvp_triton.py` of that repository: loaded, never
copied. Its `attention(q, k, v, tq, tk, tv)` takes `[B, heads, N, D]` and returns the output and its
tangent: one fused pass, no mask. Its gradient is flash-attn's, which is not what is compared.
"""

import importlib
import importlib.util
import sys
import types
from typing import Any

import jax.numpy as jnp
import numpy as np

from pallas_kernels.bench.shapes import Shape
from pallas_kernels.bench.timing import NotRun, Run

NAME = "rcm-triton"
_GRADIENTS = ("_flash_attn_backward", "_flash_attn_varlen_backward")


def load(path: str) -> Any:
  """The module in that file, with stand-ins for what only its gradient imports.

  Raises:
    FileNotFoundError: if there is no such file.
    ImportError: without torch or triton.
  """
  _stand_in("flash_attn.flash_attn_interface", *_GRADIENTS)
  _stand_in("einops", "rearrange")
  spec = importlib.util.spec_from_file_location("rcm_triton", path)
  module = importlib.util.module_from_spec(spec)
  spec.loader.exec_module(module)
  return module


def run(module: Any, shape: Shape, mode: str, dtype: jnp.dtype) -> Run:
  """The kernel on a shape.

  Raises:
    NotRun: for a mode or a mask that it does not have.
  """
  import torch

  if mode != "forward_tangent":
    raise NotRun("it has one mode, forward_tangent")
  if shape.mask.rule is not None:
    raise NotRun("it has no mask")
  device = "cuda" if torch.cuda.is_available() else "cpu"
  kind = getattr(torch, jnp.dtype(dtype).name)
  draw = lambda n: torch.randn(shape.batch, shape.heads, n, shape.dim, dtype=kind, device=device)
  mask = shape.mask
  q, k, v, tq, tk, tv = (draw(n) for n in (mask.q_len, mask.k_len, mask.k_len) * 2)
  wait = lambda _: torch.cuda.synchronize() if device == "cuda" else None
  return Run(lambda: module.attention(q, k, v, tq, tk, tv), wait)


def outputs(module: Any, x: tuple, dx: tuple) -> tuple[np.ndarray, np.ndarray]:
  """Output and tangent for our arrays `[B, N, heads, D]`, to see that it is called right."""
  import torch

  device = "cuda" if torch.cuda.is_available() else "cpu"
  kind = getattr(torch, jnp.dtype(x[0].dtype).name)
  tensor = lambda a: torch.tensor(np.asarray(a, np.float32), dtype=kind, device=device)
  arrays = [tensor(a).transpose(1, 2).contiguous() for a in (*x, *dx)]
  back = lambda a: a.transpose(1, 2).float().cpu().numpy()
  o, do = module.attention(*arrays)
  return back(o), back(do)


def _stand_in(name: str, *functions: str):
  """An importable module of functions that raise, if there is no such module."""
  try:
    importlib.import_module(name)
    return
  except ImportError:
    pass

  def missing(*args, **kwargs):
    raise NotImplementedError(f"{name} is not installed.")

  parent, _, _ = name.partition(".")
  for part in dict.fromkeys((parent, name)):
    sys.modules.setdefault(part, types.ModuleType(part))
  for function in functions:
    setattr(sys.modules[name], function, missing)
