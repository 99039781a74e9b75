"""Rules that say which foreign tensor becomes which of our parameters, in both directions."""

from collections.abc import Callable, Iterable, Iterator, Mapping
from functools import partial
from typing import NamedTuple

import jax
import numpy as np

from vidstep.io.safetensors_file import Item


class Form(NamedTuple):
  """How a tensor is laid out by others and by us.

  Attributes:
    load: their array -> ours; a view, so that slicing it afterwards reads that slice alone.
    save: our array -> theirs.
  """

  load: Callable
  save: Callable


class Rule(NamedTuple):
  """One parameter.

  Attributes:
    ours: path of the parameter, "decoder/conv_in/kernel".
    theirs: name of the tensor, "decoder.conv_in.weight".
    form: the conversion.
  """

  ours: str
  theirs: str
  form: Form


def _convolution(a):
  """[out, in, *kernel] -> [*kernel, in, out]."""
  return a.transpose(*range(2, a.ndim), 1, 0)


def _convolution_back(a):
  return a.transpose(a.ndim - 1, a.ndim - 2, *range(a.ndim - 2))


SAME = Form(lambda a: a, lambda a: a)
LINEAR = Form(np.transpose, np.transpose)
CONVOLUTION = Form(_convolution, _convolution_back)
LEADING = Form(lambda a: a[0], lambda a: a[None])


def trailing(ones: int) -> Form:
  """A vector [C] that others keep as [C, 1, 1, ..] with so many ones."""
  return Form(lambda a: a.reshape(-1), lambda a: a.reshape(-1, *(1,) * ones))


def pointwise(ones: int) -> Form:
  """A linear layer [in, out] that others keep as a convolution [out, in, 1, ..]."""
  back = lambda a: np.transpose(a).reshape(*a.shape[::-1], *(1,) * ones)
  return Form(lambda a: a.reshape(a.shape[:2]).T, back)


def layer(ours: str, theirs: str, form: Form = LINEAR, *, bias: bool = True) -> Iterator[Rule]:
  """The rules of a layer with a kernel and a bias."""
  yield Rule(f"{ours}/kernel", f"{theirs}.weight", form)
  if bias:
    yield Rule(f"{ours}/bias", f"{theirs}.bias", SAME)


def load_params(tensors: Mapping, rules: Iterable[Rule], like, *, what: str):
  """Fills a tree of parameters from foreign tensors, one after another.

  Every device receives its shard of a parameter and nothing else; tensors that are memory maps are
  read shard by shard, so that no host ever holds a full copy.

  Args:
    tensors: name to array, with the names of the rules.
    rules: what becomes what. Blocks that `like` holds stacked (`VideoDiT(scan=True)`) are stacked.
    like: tree of `ShapeDtypeStruct` (see `jax.eval_shape`): shapes and dtypes of the parameters,
      and shardings; without them everything comes to the first device.
    what: name of the network, for messages.

  Returns:
    The tree of `like` with arrays.

  Raises:
    ValueError: naming the tensors that are missing, those that are left over, and the first whose
      shape differs.
  """
  sources = _sources(rules, like)
  names = {rule.theirs for parts in sources.values() for rule in parts}
  missing, left = sorted(names - set(tensors)), sorted(set(tensors) - names)
  if missing or left:
    raise ValueError(f"weights do not fit {what}: missing {some(missing)}; left over {some(left)}.")
  leaves = flatten(like)
  if set(leaves) != set(sources):
    wrong = sorted(set(leaves) ^ set(sources))
    raise ValueError(f"the rules for {what} do not cover its parameters: {some(wrong)}.")
  here = jax.sharding.SingleDeviceSharding(jax.local_devices()[0])
  out = {}
  for path, want in leaves.items():
    parts = sources[path]
    stacked = len(want.shape) > 0 and parts[0].ours != path
    for part in parts:
      _check_shape(tensors, part, want.shape[1:] if stacked else want.shape, what)
    read = _reader(tensors, parts, want.dtype, stacked)
    sharding = getattr(want, "sharding", None)
    out[path] = jax.make_array_from_callback(want.shape, sharding or here, read)
  return unflatten(out)


def save_params(params, rules: Iterable[Rule], dtype=np.float32) -> Iterator[Item]:
  """The inverse of `load_params`: what to write, each fetched when its turn comes.

  Args:
    params: a tree of arrays.
    rules: those that loaded it.
    dtype: that of the file.
  """
  leaves = flatten(params)
  for path, parts in _sources(rules, params).items():
    for i, rule in enumerate(parts):
      index = i if rule.ours != path else ...
      shape = leaves[path].shape[1:] if rule.ours != path else leaves[path].shape
      shape = rule.form.save(np.broadcast_to(np.zeros((), dtype), shape)).shape
      read = partial(_fetch, leaves[path], index, rule.form)
      yield Item(rule.theirs, shape, np.dtype(dtype), read)


def _fetch(leaf, index, form):
  return form.save(np.asarray(leaf[index]))


def flatten(tree, prefix: str = "") -> dict:
  """Nested dicts -> {"a/b/c": leaf}."""
  out = {}
  for name, node in tree.items():
    path = f"{prefix}{name}"
    out |= flatten(node, path + "/") if isinstance(node, Mapping) else {path: node}
  return out


def unflatten(leaves: Mapping) -> dict:
  """{"a/b/c": leaf} -> nested dicts."""
  tree = {}
  for path, leaf in leaves.items():
    *parents, name = path.split("/")
    node = tree
    for parent in parents:
      node = node.setdefault(parent, {})
    node[name] = leaf
  return tree


def some(names, most: int = 5) -> str:
  """The first few of a list of names, for messages."""
  more = len(names) - most
  return (", ".join(names[:most]) or "nothing") + (f" and {more} more" if more > 0 else "")


def _sources(rules, like) -> dict[str, list[Rule]]:
  """Parameter path -> its rules: one, or one for each block where blocks are stacked."""
  out = {}
  for rule in rules:
    head, _, rest = rule.ours.partition("/")
    stacked = head.startswith("blocks_") and "blocks" in like
    out.setdefault(f"blocks/{rest}" if stacked else rule.ours, []).append(rule)
  return out


def _check_shape(tensors, rule, want, what):
  theirs = tensors[rule.theirs]
  try:
    got = rule.form.load(np.broadcast_to(np.zeros((), theirs.dtype), theirs.shape)).shape
  except (ValueError, IndexError):
    got = None
  if got != tuple(want):
    raise ValueError(
      f"weights do not fit {what}: {rule.theirs} has shape {tuple(theirs.shape)}, which does not "
      f"make {rule.ours} of shape {tuple(want)}."
    )


def _reader(tensors, parts, dtype, stacked):
  """index -> the values of that part of a parameter."""

  def read(index):
    if not stacked:
      return _cast(parts[0].form.load(tensors[parts[0].theirs])[index], dtype)
    chosen = parts[index[0]]
    return np.stack([_cast(p.form.load(tensors[p.theirs])[index[1:]], dtype) for p in chosen])

  return read


def _cast(a, dtype):
  return np.asarray(a, dtype, order="C")
