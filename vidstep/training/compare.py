"""Differences between a checkpoint and what is asked of it, in words."""

import jax


def first_mismatch(stored, wanted):
  """The first leaf that differs between two trees, as half a sentence; None if none does.

  Args:
    stored: nested dict of leaves with `.shape` and `.dtype`: what is on disk.
    wanted: the same of what shall be filled.
  """
  stored, wanted = _leaves(stored), _leaves(wanted)
  for name in sorted(stored.keys() | wanted.keys()):
    if name not in stored:
      return f"lacks {name}, which the model has with shape {_shape(wanted[name])}"
    if name not in wanted:
      return f"has {name} with shape {_shape(stored[name])}, which the model lacks"
    if _shape(stored[name]) != _shape(wanted[name]):
      return f"has {name} with shape {_shape(stored[name])}, the model with {_shape(wanted[name])}"
  return None


def config_changes(old, new):
  """Keys that decide what is trained and differ: "model.dim: 64 -> 96".

  Compared are seed-independent identity: `model`, `causal`, `objective`, and every role's own.
  """
  identity = lambda c: {
    "model": c.get("model"),
    "objective": c.get("objective"),
    "causal": c.get("causal"),
    "nets": {
      name: {key: net.get(key) for key in ("model", "causal", "lora", "param_dtype")}
      for name, net in (c.get("nets") or {}).items()
    },
  }
  old, new = flatten(identity(old)), flatten(identity(new))
  show = lambda d, key: repr(d[key]) if key in d else "absent"
  return [
    f"{key}: {show(old, key)} -> {show(new, key)}"
    for key in sorted(old.keys() | new.keys())
    if old.get(key) != new.get(key)
  ]


def flatten(tree, prefix=""):
  """Nested dicts -> {"a.b": leaf}; empty dicts and None vanish, tuples become lists."""
  if isinstance(tree, dict):
    items = [flatten(v, f"{prefix}{k}.") for k, v in tree.items()]
    return {k: v for item in items for k, v in item.items()}
  if tree is None:
    return {}
  return {prefix[:-1]: list(tree) if isinstance(tree, tuple) else tree}


def _leaves(tree):
  flat, _ = jax.tree_util.tree_flatten_with_path(tree, is_leaf=lambda x: hasattr(x, "shape"))
  leaves = {jax.tree_util.keystr(p, simple=True, separator="/"): x for p, x in flat}
  return {name: x for name, x in leaves.items() if hasattr(x, "shape")}


def _shape(x):
  if jax.dtypes.issubdtype(x.dtype, jax.dtypes.prng_key):
    x = jax.eval_shape(jax.random.key_data, x)
  return tuple(x.shape)
