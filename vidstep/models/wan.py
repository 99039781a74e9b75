"""Maps the weights of diffusers' `WanTransformer3DModel` to the parameters of `VideoDiT`."""

from collections.abc import Callable, Iterator, Mapping

import numpy as np

Weights = Mapping[str, np.ndarray]


def wan_fields(config: Mapping) -> dict:
  """Fields of the `VideoDiT` that a diffusers Wan transformer config describes.

  Args:
    config: `config.json` of a `WanTransformer3DModel`, as a dict.

  Returns:
    Keyword arguments of `VideoDiT`.

  Raises:
    NotImplementedError: for a variant whose block is another one.
  """
  fixed = {
    "cross_attn_norm": True,
    "qk_norm": "rms_norm_across_heads",
    "eps": 1e-6,
    "freq_dim": 256,
    "image_dim": None,
    "added_kv_proj_dim": None,
    "pos_embed_seq_len": None,
  }
  for name, value in fixed.items():
    if config.get(name, value) != value:
      raise NotImplementedError(
        f"a Wan transformer with {name}={config[name]} is not supported; it must be {value}."
      )
  heads = config["num_attention_heads"]
  return {
    "dim": heads * config["attention_head_dim"],
    "heads": heads,
    "depth": config["num_layers"],
    "ffn_dim": config["ffn_dim"],
    "patch": tuple(config["patch_size"]),
    "in_channels": config["in_channels"],
    "out_channels": config["out_channels"],
    "text_dim": config["text_dim"],
  }


def wan_params(state: Weights, depth: int) -> dict:
  """Converts a state dict; every name must be used and none may be missing.

  Linear weights are transposed; the patch convolution becomes a linear layer over (pt, ph, pw, C).

  Args:
    state: names to arrays, as in the diffusers checkpoint.
    depth: number of blocks.

  Returns:
    float32 parameters of `VideoDiT(scan=False)`; see `vidstep.models.dit.stack_blocks`.

  Raises:
    ValueError: naming the weights that are missing and those that are left over.
  """
  rules = list(_rules(depth))
  names = {name for _, name, _ in rules}
  missing, left = sorted(names - set(state)), sorted(set(state) - names)
  if missing or left:
    raise ValueError(
      f"weights do not fit a Wan transformer of {depth} blocks: "
      f"missing {_some(missing)}; left over {_some(left)}."
    )
  params = {}
  for path, name, convert in rules:
    *parents, leaf = path.split("/")
    node = params
    for parent in parents:
      node = node.setdefault(parent, {})
    node[leaf] = np.ascontiguousarray(convert(np.asarray(state[name])), np.float32)
  return params


def _rules(depth: int) -> Iterator[tuple[str, str, Callable]]:
  """(our path, their name, conversion) of every weight."""
  yield from _linear("patch_embed", "patch_embedding", _conv)
  for ours, theirs in (("time_embed", "time_embedder"), ("text_embed", "text_embedder")):
    yield from _linear(f"{ours}/in", f"condition_embedder.{theirs}.linear_1")
    yield from _linear(f"{ours}/out", f"condition_embedder.{theirs}.linear_2")
  yield from _linear("time_proj", "condition_embedder.time_proj")
  for i in range(depth):
    ours, theirs = f"blocks_{i}", f"blocks.{i}"
    yield f"{ours}/modulation", f"{theirs}.scale_shift_table", _squeeze
    for a, b in (("self_attn", "attn1"), ("cross_attn", "attn2")):
      for c, d in (("q", "to_q"), ("k", "to_k"), ("v", "to_v"), ("o", "to_out.0")):
        yield from _linear(f"{ours}/{a}/{c}", f"{theirs}.{b}.{d}")
      for norm in ("norm_q", "norm_k"):
        yield f"{ours}/{a}/{norm}/scale", f"{theirs}.{b}.{norm}.weight", _same
    yield f"{ours}/cross_norm/scale", f"{theirs}.norm2.weight", _same
    yield f"{ours}/cross_norm/bias", f"{theirs}.norm2.bias", _same
    yield from _linear(f"{ours}/ffn_in", f"{theirs}.ffn.net.0.proj")
    yield from _linear(f"{ours}/ffn_out", f"{theirs}.ffn.net.2")
  yield "head_modulation", "scale_shift_table", _squeeze
  yield from _linear("head", "proj_out")


def _linear(ours, theirs, convert=np.transpose):
  yield f"{ours}/kernel", f"{theirs}.weight", convert
  yield f"{ours}/bias", f"{theirs}.bias", _same


def _same(a):
  return a


def _squeeze(a):
  return a[0]


def _conv(a):
  """[dim, C, pt, ph, pw] -> [pt*ph*pw*C, dim]."""
  return a.transpose(2, 3, 4, 1, 0).reshape(-1, a.shape[0])


def _some(names, most: int = 5):
  more = len(names) - most
  return (", ".join(names[:most]) or "nothing") + (f" and {more} more" if more > 0 else "")
