"""One session of a batch: rows of a cache taken out and put back, whatever its leaves are."""

from functools import partial

import jax


def batch_axes(start, *given):
  """The batch axis of every leaf of a state: the one that grows with the batch.

  Args:
    start: (*given, batch=size) -> state, traceable; only its shapes are used.
    *given: arrays, or shapes.

  Returns:
    A tree of axes like the state.

  Raises:
    ValueError: if a leaf has not one row for each session.
  """
  one, two = (jax.eval_shape(partial(start, batch=batch), *given) for batch in (1, 2))

  def axis(path, a, b):
    grown = [i for i, (m, n) in enumerate(zip(a.shape, b.shape, strict=True)) if m != n]
    if len(grown) != 1 or a.shape[grown[0]] != 1:
      raise ValueError(
        f"The cache leaf {jax.tree_util.keystr(path)} {a.shape} has no row for each session of a "
        "batch (a guided network has two; stream a student, which needs no guidance)."
      )
    return grown[0]

  return jax.tree_util.tree_map_with_path(axis, one, two)


def take(batch, row, axes):
  """The row of a batched state, a state of batch 1; a copy. `row` may be traced."""
  cut = lambda a, axis: jax.lax.dynamic_slice_in_dim(a, row, 1, axis)
  return jax.tree.map(cut, batch, axes)


def put(batch, row, one, axes):
  """The batched state with one row replaced by `one`, a state of batch 1."""
  write = lambda a, b, axis: jax.lax.dynamic_update_slice_in_dim(a, b, row, axis)
  return jax.tree.map(write, batch, one, axes)
